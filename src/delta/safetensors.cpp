#include "delta/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "io/lfs.h"

namespace lathe::delta {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation

struct DtypeEntry {
  Dtype dtype;
  std::string_view name;
  int64_t size;
};
constexpr std::array kDtypes = {DtypeEntry{Dtype::kBool, "BOOL", 1},      DtypeEntry{Dtype::kU8, "U8", 1},
                                DtypeEntry{Dtype::kI8, "I8", 1},          DtypeEntry{Dtype::kF8E5M2, "F8_E5M2", 1},
                                DtypeEntry{Dtype::kF8E4M3, "F8_E4M3", 1}, DtypeEntry{Dtype::kI16, "I16", 2},
                                DtypeEntry{Dtype::kU16, "U16", 2},        DtypeEntry{Dtype::kF16, "F16", 2},
                                DtypeEntry{Dtype::kBF16, "BF16", 2},      DtypeEntry{Dtype::kI32, "I32", 4},
                                DtypeEntry{Dtype::kU32, "U32", 4},        DtypeEntry{Dtype::kF32, "F32", 4},
                                DtypeEntry{Dtype::kF64, "F64", 8},        DtypeEntry{Dtype::kI64, "I64", 8},
                                DtypeEntry{Dtype::kU64, "U64", 8}};

const DtypeEntry& entry(Dtype dtype) {
  return *std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeEntry& e) { return e.dtype == dtype; });
}

Error malformed(const std::string& what) {
  return corruption("malformed safetensors header: " + what);
}

// nlohmann keeps the last of two equal keys; the format forbids them, so a SAX-like callback watches for them. Depth 3
// is all the format needs; deeper nesting is refused before it costs memory.
struct JsonWatch {
  std::vector<std::set<std::string>> keys;
  std::optional<std::string> complaint;

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > 3 && !complaint) complaint = "nested too deep";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty()) {
      const bool fresh = keys.back().insert(parsed.get<std::string>()).second;
      if (!fresh && !complaint) complaint = "the name " + parsed.get<std::string>() + " appears twice";
    }
    return !complaint;
  }
};

Result<uint64_t> unsigned_integer(const Json& value, const std::string& what) {
  if (!value.is_number_unsigned()) return malformed(what + " is not an unsigned integer");
  return value.get<uint64_t>();
}

Result<TensorInfo> parse_tensor(const std::string& name, const Json& json) {
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets")) {
    return malformed("tensor " + name + " needs exactly dtype, shape and data_offsets");
  }
  TensorInfo info{.name = name};
  const Json &dtype = json["dtype"], &shape = json["shape"], &offsets = json["data_offsets"];
  const auto known =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeEntry& e) { return dtype == std::string(e.name); });
  if (known == kDtypes.end()) return malformed("tensor " + name + " has unknown dtype " + dtype.dump());
  info.dtype = known->dtype;
  if (!shape.is_array() || !offsets.is_array() || offsets.size() != 2)
    return malformed("tensor " + name + " has a malformed shape or data_offsets");
  auto bytes = static_cast<uint64_t>(known->size);
  for (const Json& size : shape) {
    const uint64_t n = LATHE_TRY(unsigned_integer(size, "a size of tensor " + name));
    if (n > INT64_MAX || __builtin_mul_overflow(bytes, n, &bytes))
      return malformed("tensor " + name + " is larger than 2^64 bytes");
    info.shape.push_back(static_cast<int64_t>(n));
  }
  info.begin = LATHE_TRY(unsigned_integer(offsets[0], "an offset of tensor " + name));
  info.end = LATHE_TRY(unsigned_integer(offsets[1], "an offset of tensor " + name));
  if (info.end < info.begin || info.end - info.begin != bytes) {
    return malformed("tensor " + name + " has " + std::to_string(info.end - info.begin) +
                     " bytes; its dtype and shape need " + std::to_string(bytes));
  }
  return info;
}

// The format packs tensors without gaps from 0 to the end of the file.
Status check_layout(const std::vector<TensorInfo>& tensors, uint64_t data_size) {
  uint64_t expected = 0;
  for (const TensorInfo& info : tensors) {
    if (info.begin != expected) {
      return malformed("tensor " + info.name + " begins at " + std::to_string(info.begin) + ", not at " +
                       std::to_string(expected) + ", where the data before it ends");
    }
    expected = info.end;
  }
  if (expected > data_size) {
    return corruption("the file is truncated: its tensors need " + std::to_string(expected) + " bytes, it has " +
                      std::to_string(data_size));
  }
  if (expected < data_size)
    return malformed("the file has " + std::to_string(data_size - expected) + " bytes after its last tensor");
  return {};
}

}  // namespace

std::string_view dtype_name(Dtype dtype) {
  return entry(dtype).name;
}
int64_t dtype_size(Dtype dtype) {
  return entry(dtype).size;
}

Result<uint64_t> header_bytes(std::span<const std::byte> first_eight, uint64_t file_size) {
  if (file_size < 8 || first_eight.size() < 8)
    return corruption("the file is truncated: shorter than the 8 bytes of a safetensors header length");
  uint64_t length = 0;
  std::memcpy(&length, first_eight.data(), 8);
  if (length > kMaxHeader)
    return malformed("its length field says " + std::to_string(length) + " bytes; is this a safetensors file?");
  if (length > file_size - 8) return corruption("the file is truncated inside its header");
  return 8 + length;
}

Result<Header> parse_header(std::span<const std::byte> file, uint64_t file_size) {
  const uint64_t end = LATHE_TRY(header_bytes(file, file_size));
  if (file.size() < end) return internal("parse_header was given less than header_bytes()");
  const char* text = reinterpret_cast<const char*>(file.data());
  JsonWatch watch;
  const Json json = Json::parse(text + 8, text + end, std::ref(watch), /*allow_exceptions=*/false);
  if (watch.complaint) return malformed(*watch.complaint);
  if (!json.is_object()) return malformed("not a JSON object");

  Header header{.data_offset = end};
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      header.tensors.push_back(LATHE_TRY(parse_tensor(name, value)));
      continue;
    }
    if (!value.is_object()) return malformed("__metadata__ is not an object");
    for (const auto& [key, text_value] : value.items()) {
      if (!text_value.is_string()) return malformed("__metadata__." + key + " is not a string");
      header.metadata[key] = text_value.get<std::string>();
    }
  }
  // Empty tensors share their offset with the next one, so the end decides second; among them, the name.
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  LATHE_TRY(check_layout(header.tensors, file_size - end));
  return header;
}

Result<Header> read_header(const io::RandomAccessFile& file) {
  const uint64_t size = file.size();
  std::vector<std::byte> head(std::min<uint64_t>(io::kLfsMark, size));
  LATHE_TRY(file.read_at(0, head));
  LATHE_TRY(io::refuse_lfs_pointer({reinterpret_cast<const char*>(head.data()), head.size()}));
  head.resize(LATHE_TRY(header_bytes(head, size)));
  LATHE_TRY(file.read_at(0, head));
  return parse_header(head, size);
}

std::string format_header(std::span<TensorInfo> tensors, const std::map<std::string, std::string>& metadata) {
  Json json = Json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (TensorInfo& info : tensors) {
    auto bytes = static_cast<uint64_t>(dtype_size(info.dtype));
    for (const int64_t size : info.shape) bytes *= static_cast<uint64_t>(size);
    info.begin = offset;
    info.end = offset += bytes;
    json[info.name] = {
        {"dtype", dtype_name(info.dtype)}, {"shape", info.shape}, {"data_offsets", {info.begin, info.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace lathe::delta
