#include "history/convert.h"

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/units.h"
#include "delta/model_dir.h"
#include "delta/numbers.h"
#include "delta/paths.h"
#include "history/apply.h"
#include "history/export.h"

namespace lathe::history {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
constexpr const char* kIndex = "/model.safetensors.index.json";
constexpr const char* kConfig = "/config.json";

uint64_t elements(const delta::TensorInfo& info) {
  return info.size() / static_cast<uint64_t>(delta::dtype_size(info.dtype));
}

class Converter {
 public:
  Converter(io::Env& env, std::string source, std::string target, const ConvertOptions& options)
      : env_(env), source_(std::move(source)), target_(std::move(target)), options_(options) {}

  Result<ConvertReport> run(const delta::ModelDir& dir) {
    for (const delta::Shard& shard : dir.shards()) total_ += shard.data->size();
    LATHE_TRY(env_.create_directories(target_));
    for (const delta::Shard& shard : dir.shards()) LATHE_TRY(write_shard(dir, shard));
    LATHE_TRY(copy_companions(env_, source_, target_));
    LATHE_TRY(write_config());
    LATHE_TRY(write_index());
    LATHE_TRY(env_.sync_directory(target_));
    return report_;
  }

 private:
  delta::Dtype type_of(const delta::TensorInfo& info) const {
    return delta::is_floating(info.dtype) ? options_.dtype : info.dtype;
  }

  Status write_shard(const delta::ModelDir& dir, const delta::Shard& shard) {
    std::vector<delta::TensorInfo> infos = shard.header.tensors;
    for (delta::TensorInfo& info : infos) info.dtype = type_of(info);
    const auto file = LATHE_TRY(env_.create(target_ + "/" + shard.file));
    const std::string header = delta::format_header(infos, shard.header.metadata);
    LATHE_TRY(file->append(std::as_bytes(std::span(header))));
    for (const delta::TensorInfo& info : shard.header.tensors) LATHE_TRY(write_tensor(dir, info, *file));
    LATHE_TRY(file->sync());
    return file->close();
  }

  Status write_tensor(const delta::ModelDir& dir, const delta::TensorInfo& info, io::WritableFile& file) {
    const delta::Dtype to = type_of(info);
    const auto from_size = static_cast<uint64_t>(delta::dtype_size(info.dtype)),
               to_size = static_cast<uint64_t>(delta::dtype_size(to));
    ++report_.tensors;
    report_.converted += to != info.dtype;
    for (uint64_t at = 0; at < elements(info); at += kPieceBytes / from_size) {
      const uint64_t count = std::min(kPieceBytes / from_size, elements(info) - at);
      there_.resize(count * from_size);
      LATHE_TRY(dir.read(info.name, at * from_size, there_));
      LATHE_TRY(check(info, info.dtype, there_, ""));
      if (to != info.dtype) {
        here_.resize(count * to_size);
        delta::convert(info.dtype, there_, to, here_);
        LATHE_TRY(check(info, to, here_, " once it is rounded"));
      }
      LATHE_TRY(file.append(to == info.dtype ? there_ : here_));
      report_.bytes += count * to_size;
      done_ += count * from_size;
      if (options_.progress) options_.progress("converting", done_, total_);
    }
    return {};
  }

  static Status check(const delta::TensorInfo& info, delta::Dtype dtype, std::span<const std::byte> bytes,
                      const char* when) {
    if (delta::all_finite(dtype, bytes)) return {};
    return corruption("tensor " + info.name + " holds NaN or infinite values" + when);
  }

  // The type that transformers would load it as, where config.json names one.
  Status write_config() {
    if (!LATHE_TRY(env_.exists(source_ + kConfig))) return {};
    Json config = Json::parse(LATHE_TRY(io::read_text(env_, source_ + kConfig)), nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) return corruption(source_ + kConfig + " is not a JSON object");
    const char* name = options_.dtype == delta::Dtype::kF32 ? "float32" : "bfloat16";
    const auto rename = [&](Json& object) {
      for (const char* field : {"torch_dtype", "dtype"}) {
        if (object.contains(field)) object[field] = name;
      }
    };
    rename(config);
    if (config.contains("text_config") && config["text_config"].is_object()) rename(config["text_config"]);
    return io::write_text_atomically(env_, target_ + kConfig,
                                     config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  Status write_index() {
    if (!LATHE_TRY(env_.exists(source_ + kIndex))) return {};
    Json index = Json::parse(LATHE_TRY(io::read_text(env_, source_ + kIndex)), nullptr, /*allow_exceptions=*/false);
    if (!index.is_object()) return corruption(source_ + kIndex + " is not a JSON object");
    if (index.contains("metadata") && index["metadata"].is_object()) index["metadata"]["total_size"] = report_.bytes;
    return io::write_text_atomically(env_, target_ + kIndex,
                                     index.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  io::Env& env_;
  const std::string source_, target_;
  const ConvertOptions& options_;
  ConvertReport report_;
  uint64_t done_ = 0, total_ = 0;
  std::vector<std::byte> there_, here_;
};

}  // namespace

Result<ConvertReport> convert(io::Env& env, const std::string& source, const std::string& target,
                              const ConvertOptions& options) {
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, source));
  uint64_t needed = kSpareBytes;
  for (const delta::Shard& shard : dir.shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) {
      const bool floating = delta::is_floating(info.dtype);
      needed += floating ? elements(info) * static_cast<uint64_t>(delta::dtype_size(options.dtype)) : info.size();
    }
  }
  if (LATHE_TRY(env.exists(target)))
    return invalid_argument(target + " exists already; name a directory that does not");
  const std::string parent = io::parent_directory(target);
  LATHE_TRY(env.create_directories(parent));
  if (const uint64_t free = LATHE_TRY(env.free_space(parent)); free < needed) {
    return Error{Code::kIo,
                 "the disk of " + target + " has " + mebibytes(free) + " free; the model needs " + mebibytes(needed),
                 ENOSPC};
  }
  const std::string temporary = target + delta::kNew;
  LATHE_TRY(io::remove_tree(env, temporary));
  const auto report = Converter(env, source, temporary, options).run(dir);
  if (!report.ok()) {
    // The failure is what is reported.
    [[maybe_unused]] const Status removed = io::remove_tree(env, temporary);
    return report;
  }
  LATHE_TRY(env.rename(temporary, target));
  LATHE_TRY(env.sync_directory(parent));
  return report;
}

}  // namespace lathe::history
