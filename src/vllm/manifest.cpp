#include "vllm/manifest.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>

namespace lathe::vllm {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "lathe manifest 1";
constexpr size_t kMaxTensors = 1 << 20, kMaxMemories = 1 << 18;

Error malformed(const std::string& what) {
  return invalid_argument("the manifest is malformed: " + what);
}

// A member of an object, of the type asked for; the error names it.
Result<const Json*> member(const Json& object, const char* key, Json::value_t type, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end()) return malformed(where + " has no '" + key + "'");
  const bool integer = type == Json::value_t::number_unsigned;
  if (integer ? !found->is_number_unsigned() : found->type() != type)
    return malformed(where + ": '" + key + "' is not " + (integer ? "a whole number" : Json(type).type_name()));
  return &*found;
}

Result<std::string> text(const Json& object, const char* key, const std::string& where) {
  return LATHE_TRY(member(object, key, Json::value_t::string, where))->get<std::string>();
}

Result<uint64_t> number(const Json& object, const char* key, const std::string& where) {
  const Json* found = LATHE_TRY(member(object, key, Json::value_t::number_unsigned, where));
  return found->get<uint64_t>();
}

Result<const Json*> list(const Json& object, const char* key, size_t limit) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return malformed(std::string("'") + key + "' is not a list");
  if (found->size() > limit) return malformed(std::string("'") + key + "' is longer than any model's");
  return &*found;
}

// "/proc/PID/fd/N" and nothing else: no other file is ours to map.
bool is_descriptor_path(std::string_view path, uint64_t pid) {
  const std::string prefix = "/proc/" + std::to_string(pid) + "/fd/";
  if (!path.starts_with(prefix)) return false;
  path.remove_prefix(prefix.size());
  return !path.empty() && path.size() <= 9 &&
         std::all_of(path.begin(), path.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool parse_handle(std::string_view hex, std::array<std::byte, kIpcHandleBytes>& out) {
  if (hex.size() != 2 * out.size()) return false;
  for (size_t i = 0; i < out.size(); ++i) {
    uint8_t value = 0;
    const char* begin = hex.data() + 2 * i;
    if (std::from_chars(begin, begin + 2, value, 16).ptr != begin + 2) return false;
    out[i] = std::byte{value};
  }
  return true;
}

Result<Memory> parse_memory(const Json& json, const std::string& where, uint64_t pid) {
  Memory memory;
  memory.bytes = LATHE_TRY(number(json, "bytes", where));
  if (memory.bytes == 0 || memory.bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return malformed(where + " has an impossible size");
  const std::string kind = LATHE_TRY(text(json, "kind", where));
  if (kind == "shared_memory") {
    memory.path = LATHE_TRY(text(json, "path", where));
    if (!is_descriptor_path(memory.path, pid))
      return malformed(where + ": '" + memory.path + "' is not a descriptor of process " + std::to_string(pid));
  } else if (kind == "cuda_ipc") {
    memory.kind = Memory::Kind::kCudaIpc;
    memory.uuid = LATHE_TRY(text(json, "uuid", where));
    if (!memory.uuid.starts_with("GPU-")) return malformed(where + ": '" + memory.uuid + "' is not a GPU's UUID");
    if (!parse_handle(LATHE_TRY(text(json, "handle", where)), memory.handle))
      return malformed(where + ": the handle is not 64 bytes in hexadecimal digits");
  } else {
    return unsupported("weights in memory of kind '" + kind + "'; this Lathe knows shared_memory and cuda_ipc");
  }
  return memory;
}

std::optional<delta::Dtype> dtype_of(const std::string& name) {
  using delta::Dtype;
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32, Dtype::kF16}) {
    if (delta::dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

// Bytes of a tensor, or nothing if the number does not exist.
std::optional<uint64_t> byte_size(const std::vector<int64_t>& shape, int64_t element) {
  auto bytes = static_cast<uint64_t>(element);
  for (const int64_t size : shape) {
    if (size <= 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) return std::nullopt;
  }
  return bytes;
}

Result<ServedTensor> parse_tensor(const Json& json, const std::vector<Memory>& memories) {
  ServedTensor tensor;
  tensor.name = LATHE_TRY(text(json, "name", "a tensor"));
  const std::string where = "tensor " + tensor.name;
  const std::string dtype = LATHE_TRY(text(json, "dtype", where));
  const auto known = dtype_of(dtype);
  if (!known) return unsupported(where + " is served as " + dtype + "; Lathe teaches BF16 and F32");
  tensor.dtype = *known;
  const Json* shape = LATHE_TRY(member(json, "shape", Json::value_t::array, where));
  for (const Json& size : *shape) {
    const bool fits = size.is_number_unsigned() && size.get<uint64_t>() <= std::numeric_limits<int64_t>::max();
    if (!fits || tensor.shape.size() == 8) return malformed(where + " has an impossible shape");
    tensor.shape.push_back(size.get<int64_t>());
  }
  const auto bytes = byte_size(tensor.shape, delta::dtype_size(tensor.dtype));
  if (!bytes || tensor.shape.empty()) return malformed(where + " has an impossible shape");
  tensor.bytes = *bytes;
  const uint64_t memory = LATHE_TRY(number(json, "memory", where));
  if (memory >= memories.size())
    return malformed(where + " is in memory " + std::to_string(memory) + ", which is not listed");
  tensor.memory = memory;
  tensor.offset = LATHE_TRY(number(json, "offset", where));
  const uint64_t room = memories[memory].bytes;
  if (tensor.offset > room || tensor.bytes > room - tensor.offset)
    return malformed(where + " ends past its memory of " + std::to_string(room) + " bytes");
  if (tensor.offset % static_cast<uint64_t>(delta::dtype_size(tensor.dtype)) != 0)
    return malformed(where + " begins inside an element");
  return tensor;
}

// Two tensors are the same one under two names, or have no byte in common.
Status check_overlaps(const std::vector<ServedTensor>& tensors) {
  std::vector<const ServedTensor*> by_place;
  by_place.reserve(tensors.size());
  for (const ServedTensor& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const ServedTensor* a, const ServedTensor* b) {
    return std::tie(a->memory, a->offset, b->bytes) < std::tie(b->memory, b->offset, a->bytes);
  });
  for (size_t i = 1; i < by_place.size(); ++i) {
    const ServedTensor &a = *by_place[i - 1], &b = *by_place[i];
    if (a.memory != b.memory || b.offset >= a.offset + a.bytes) continue;
    const bool tied = a.offset == b.offset && a.dtype == b.dtype && a.shape == b.shape;
    if (!tied) return malformed("tensors " + a.name + " and " + b.name + " overlap");
  }
  return {};
}

Result<std::vector<Finding>> parse_findings(const Json& json, const char* key) {
  std::vector<Finding> findings;
  const Json* entries = LATHE_TRY(list(json, key, kMaxTensors));
  for (const Json& entry : *entries) {
    Finding finding;
    finding.condition = LATHE_TRY(text(entry, "condition", key));
    finding.found = LATHE_TRY(text(entry, "found", key));
    finding.remedy = LATHE_TRY(text(entry, "remedy", key));
    findings.push_back(std::move(finding));
  }
  return findings;
}

Status parse_memories(const Json& json, Manifest& manifest) {
  const Json* entries = LATHE_TRY(list(json, "memories", kMaxMemories));
  for (const Json& entry : *entries) {
    const std::string where = "memory " + std::to_string(manifest.memories.size());
    manifest.memories.push_back(LATHE_TRY(parse_memory(entry, where, static_cast<uint64_t>(manifest.pid))));
  }
  // An allocation that is listed twice would be mapped twice, and its tensors could overlap unseen.
  auto sorted = manifest.memories;
  const auto key = [](const Memory& m) { return std::tie(m.kind, m.path, m.uuid, m.handle); };
  std::sort(sorted.begin(), sorted.end(), [&](const Memory& a, const Memory& b) { return key(a) < key(b); });
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end(),
                                        [&](const Memory& a, const Memory& b) { return key(a) == key(b); });
  if (twice != sorted.end()) return malformed("one memory is listed twice");
  return {};
}

Status parse_tensors(const Json& json, Manifest& manifest) {
  const Json* entries = LATHE_TRY(list(json, "tensors", kMaxTensors));
  for (const Json& entry : *entries) manifest.tensors.push_back(LATHE_TRY(parse_tensor(entry, manifest.memories)));
  auto& tensors = manifest.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twice != tensors.end()) return malformed("tensor " + twice->name + " is listed twice");
  return check_overlaps(tensors);
}

}  // namespace

const ServedTensor* Manifest::find(std::string_view name) const {
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name,
                                      [](const auto& t, std::string_view n) { return t.name < n; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

Result<Manifest> Manifest::parse(std::string_view text_of_it) {
  const Json json = Json::parse(text_of_it, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return malformed("it is not a JSON object");
  const std::string format = LATHE_TRY(text(json, "format", "it"));
  if (format != kFormat)
    return unsupported("a manifest of format '" + format + "'; this Lathe reads '" + std::string(kFormat) +
                       "': install the lathe-vllm of the same release");
  Manifest manifest;
  const Json* engine = LATHE_TRY(member(json, "engine", Json::value_t::object, "it"));
  manifest.engine = LATHE_TRY(text(*engine, "name", "engine"));
  manifest.engine_version = LATHE_TRY(text(*engine, "version", "engine"));
  const Json* model = LATHE_TRY(member(json, "model", Json::value_t::object, "it"));
  manifest.directory = LATHE_TRY(text(*model, "directory", "model"));
  manifest.architecture = LATHE_TRY(text(*model, "architecture", "model"));
  const Json* parallel = LATHE_TRY(member(json, "tensor_parallel", Json::value_t::object, "it"));
  const uint64_t ranks = LATHE_TRY(number(*parallel, "size", "tensor_parallel"));
  const uint64_t pid = LATHE_TRY(number(json, "pid", "it"));
  if (ranks == 0 || ranks > (1 << 20) || pid == 0 || pid > std::numeric_limits<int32_t>::max())
    return malformed("an impossible number of ranks, or process");
  manifest.tensor_parallel = static_cast<int64_t>(ranks);
  manifest.pid = static_cast<int64_t>(pid);
  manifest.refusals = LATHE_TRY(parse_findings(json, "refusals"));
  manifest.warnings = LATHE_TRY(parse_findings(json, "warnings"));
  LATHE_TRY(parse_memories(json, manifest));
  LATHE_TRY(parse_tensors(json, manifest));
  return manifest;
}

Status check_refusals(const Manifest& manifest) {
  std::string message;
  for (const Finding& refusal : manifest.refusals)
    message += (message.empty() ? "teaching is refused: " : "; ") + refusal.condition + " (" + refusal.found +
               "): " + refusal.remedy;
  if (message.empty() && manifest.tensor_parallel > 1) {
    message = "teaching is refused: the weights are cut over " + std::to_string(manifest.tensor_parallel) +
              " GPUs; start vLLM with --tensor-parallel-size 1";
  }
  if (message.empty()) return {};
  return unsupported(std::move(message));
}

}  // namespace lathe::vllm
