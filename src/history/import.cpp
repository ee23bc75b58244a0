#include "history/import.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/units.h"
#include "delta/numbers.h"

namespace lathe::history {
namespace {

// Computed from the configuration: whether it is stored or not says nothing.
bool is_computed(std::string_view tensor) {
  return tensor.ends_with(".rotary_emb.inv_freq");
}

std::string described(const delta::TensorInfo& info) {
  return std::string(delta::dtype_name(info.dtype)) + " " + shape_text(info.shape);
}

}  // namespace

Result<DirectoryTensors> DirectoryTensors::open(io::Env& env, const std::string& directory, const std::string& like,
                                                ImportOptions options) {
  DirectoryTensors out(LATHE_TRY(delta::ModelDir::open(env, directory)), directory, options.not_finite);
  const delta::ModelDir model = LATHE_TRY(delta::ModelDir::open(env, like));
  for (const delta::Shard& shard : model.shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) LATHE_TRY(out.add(info, like, options));
  }
  LATHE_TRY(out.check_rest(model, like, options));
  return out;
}

Status DirectoryTensors::add(const delta::TensorInfo& info, const std::string& like, const ImportOptions& options) {
  const delta::TensorInfo* other = dir_.find(info.name);
  if (!other && options.tie && info.name == options.tie->head) other = dir_.find(options.tie->embedding);
  if (!other && is_computed(info.name)) return {};  // it stays as it is
  if (!other) return invalid_argument(directory_ + " has no tensor " + info.name + ", which " + like + " has");
  if (other->shape != info.shape) {
    return invalid_argument("tensor " + info.name + " is " + described(*other) + " in " + directory_ + ", " +
                            described(info) + " in " + like);
  }
  const bool rounds = options.round && delta::can_convert(other->dtype, info.dtype);
  const bool exact = other->dtype == info.dtype ||
                     (delta::widens(other->dtype, info.dtype) && delta::can_convert(other->dtype, info.dtype));
  if (!exact && !rounds) {
    return invalid_argument("tensor " + info.name + " is " + described(*other) + " in " + directory_ + ", " +
                            described(info) + " in " + like +
                            (delta::can_convert(other->dtype, info.dtype)
                                 ? "; --round takes it over, rounded to " + std::string(delta::dtype_name(info.dtype))
                                 : "; save it in that type"));
  }
  sources_[info.name] = {.name = other->name,
                         .from = other->dtype,
                         .to = info.dtype,
                         .elements = other->size() / static_cast<uint64_t>(delta::dtype_size(other->dtype))};
  return {};
}

// What the source has beside what is taken over: nothing is dropped in silence.
Status DirectoryTensors::check_rest(const delta::ModelDir& model, const std::string& like,
                                    const ImportOptions& options) const {
  const std::optional<Tie>& tie = options.tie;
  if (tie && dir_.find(tie->head) && dir_.find(tie->embedding) &&
      !LATHE_TRY(delta::same_numbers(dir_, tie->head, tie->embedding))) {
    return invalid_argument(
        directory_ + ": " + tie->head + " holds other numbers than " + tie->embedding +
        ", to which the configuration of " + like +
        " ties it; tie them before saving, or set tie_word_embeddings to false in a copy with both");
  }
  for (const delta::Shard& shard : dir_.shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) {
      if (model.find(info.name) || is_computed(info.name) || (tie && info.name == tie->head)) continue;
      return invalid_argument(directory_ + " has a tensor " + info.name + ", which " + like +
                              " has not; it would be lost: is it the same model, saved whole and merged?");
    }
  }
  return {};
}

std::optional<uint64_t> DirectoryTensors::size(std::string_view tensor) const {
  const auto found = sources_.find(tensor);
  if (found == sources_.end()) return std::nullopt;
  return found->second.elements * static_cast<uint64_t>(delta::dtype_size(found->second.to));
}

// Bytes may begin and end inside an element: whole ones are read and converted.
Status DirectoryTensors::read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const {
  const auto found = sources_.find(tensor);
  if (found == sources_.end()) return internal("read() of tensor " + std::string(tensor) + ", which is not taken over");
  const Source& source = found->second;
  const auto from = static_cast<uint64_t>(delta::dtype_size(source.from));
  const auto to = static_cast<uint64_t>(delta::dtype_size(source.to));
  const uint64_t begin = offset / to, end = (offset + out.size() + to - 1) / to;
  if (end > source.elements) return internal("read() past the end of " + source.name);
  thread_local std::vector<std::byte> there, here;
  there.resize((end - begin) * from);
  LATHE_TRY(dir_.read(source.name, begin * from, there));
  const auto refuse = [&](const char* what) {
    return corruption("tensor " + source.name + " of " + directory_ + " holds NaN or infinite values" + what +
                      " (--allow-not-finite takes them over)");
  };
  if (!not_finite_ && !delta::all_finite(source.from, there))
    return refuse("; its training diverged, or the file is damaged");
  const std::vector<std::byte>* bytes = &there;
  if (source.from != source.to) {
    here.resize((end - begin) * to);
    delta::convert(source.from, there, source.to, here);
    if (!not_finite_ && !delta::all_finite(source.to, here)) return refuse(" once it is rounded");
    bytes = &here;
  }
  std::memcpy(out.data(), bytes->data() + (offset - begin * to), out.size());
  return {};
}

}  // namespace lathe::history
