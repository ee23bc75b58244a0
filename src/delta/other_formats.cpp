#include "delta/other_formats.h"

#include <algorithm>
#include <functional>
#include <string_view>
#include <vector>

#include "delta/paths.h"

namespace lathe::delta {
namespace {

constexpr const char* kConfig = "/config.json";
constexpr const char* kSingle = "/model.safetensors";
constexpr const char* kIndex = "/model.safetensors.index.json";

using Names = std::vector<std::string>;

bool any(const Names& names, const std::function<bool(std::string_view)>& like) {
  return std::any_of(names.begin(), names.end(), like);
}

std::string first(const Names& names, const std::function<bool(std::string_view)>& like) {
  const auto found = std::find_if(names.begin(), names.end(), like);
  return found == names.end() ? "" : *found;
}

std::function<bool(std::string_view)> ending(std::string_view end) {
  return [end](std::string_view name) { return name.ends_with(end); };
}

std::function<bool(std::string_view)> beginning(std::string_view begin) {
  return [begin](std::string_view name) { return name.starts_with(begin); };
}

// A line of Python that loads a model with transformers and saves it as safetensors.
std::string python(const std::string& import, const std::string& load) {
  return "`python3 -c \"" + import + "; " + load + ".save_pretrained('NEW_DIR')\"`";
}

std::string with_transformers(const std::string& directory, const std::string& more) {
  return python("from transformers import AutoModelForCausalLM as M",
                "M.from_pretrained('" + directory + "'" + more + ")") +
         ", and copy the tokenizer's files beside it";
}

// A folder of a folder that holds a model, as trainers and caches make them.
std::string model_inside(io::Env& env, const std::string& directory, const Names& names) {
  for (const std::string& name : names) {
    const std::string path = directory + "/" + name;
    const auto stat = env.stat(path);
    if (!stat.ok() || !stat->is_directory) continue;
    for (const char* file : {kSingle, kIndex}) {
      if (env.exists(path + file).ok() && *env.exists(path + file)) return path;
    }
  }
  return "";
}

Error adapter(const std::string& directory) {
  return unsupported(directory +
                     " is a LoRA adapter (adapter_config.json), not a whole model; merge it into its base model: " +
                     python("from peft import AutoPeftModelForCausalLM as M",
                            "M.from_pretrained('" + directory + "').merge_and_unload()") +
                     ", and copy the tokenizer's files beside it");
}

bool is_adapter(const Names& names) {
  return any(names, beginning("adapter_config.json")) || any(names, beginning("adapter_model."));
}

Names names_in(io::Env& env, const std::string& directory) {
  const auto names = env.list(directory);
  return names.ok() ? *names : Names();
}

}  // namespace

Error is_a_file(io::Env& env, const std::string& path) {
  char mark[4] = {};
  const auto file = env.open_read(path);
  if (file.ok() && (*file)->size() >= sizeof mark &&
      (*file)->read_at(0, std::as_writable_bytes(std::span(mark))).ok() &&
      std::string_view(mark, sizeof mark) == "GGUF") {
    const std::string name = path.substr(path.rfind('/') + 1);
    return unsupported(
        path +
        " is a GGUF file; Lathe serves directories with safetensors: use the checkpoint it was made from, or "
        "convert it: " +
        with_transformers(io::parent_directory(path), ", gguf_file='" + name + "'"));
  }
  return not_found(path + " is a file; name the model directory that it is in");
}

Error no_safetensors(io::Env& env, const std::string& directory) {
  const Names names = names_in(env, directory);
  const std::string has = directory + " has no model.safetensors and no model.safetensors.index.json, but ";
  if (is_adapter(names)) return adapter(directory);
  if (any(names, beginning("model-0")) && any(names, ending(".safetensors")))
    return not_found(has + first(names, beginning("model-0")) +
                     ": a part of a checkpoint whose index is missing; download model.safetensors.index.json too");
  if (any(names, beginning("consolidated")))
    return unsupported(
        has + first(names, beginning("consolidated")) +
        ": the weights in their maker's own format; download the repository's model*.safetensors, or the "
        "repository that ends in -hf");
  if (any(names, ending(".gguf"))) return is_a_file(env, directory + "/" + first(names, ending(".gguf")));
  if (any(names, ending(".distcp")) || any(names, beginning("global_step")))
    return unsupported(has +
                       "the shards of a running trainer (DeepSpeed or torch.distributed.checkpoint); have the trainer "
                       "save the whole model, with DeepSpeed by zero_to_fp32.py");
  if (any(names, ending(".bin")) || any(names, ending(".pt")) || any(names, ending(".pth"))) {
    const std::string name = first(
        names, [](std::string_view n) { return n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth"); });
    return unsupported(has + name + ": PyTorch's pickled weights; convert them: " +
                       with_transformers(directory, ", torch_dtype='bfloat16'"));
  }
  for (const char* other : {".h5", ".msgpack", ".onnx", ".npz", ".ckpt"}) {
    if (!any(names, ending(other))) continue;
    return unsupported(has + first(names, ending(other)) +
                       ": weights of another framework; download the repository's model*.safetensors");
  }
  const std::string inside = model_inside(env, directory, names);
  if (!inside.empty()) return not_found(directory + " holds no model itself; did you mean " + inside + "?");
  if (any(names, ending(".safetensors")))
    return not_found(has + first(names, ending(".safetensors")) + "; a model in one file is named model.safetensors");
  if (any(names, beginning("snapshots")))
    return not_found(directory + " is an entry of a Hugging Face cache; name the directory inside " + directory +
                     "/snapshots");
  return not_found(directory +
                   " has neither model.safetensors nor model.safetensors.index.json; is it a Hugging Face model "
                   "directory?");
}

Error no_tokenizer(io::Env& env, const std::string& directory) {
  const Names names = names_in(env, directory);
  std::string there;
  for (const char* file : {"tokenizer.model", "vocab.json", "tekken.json", "sentencepiece.bpe.model", "vocab.txt"}) {
    if (there.empty() && any(names, beginning(file))) there = file;
  }
  if (there.empty()) return not_found(directory + " has no tokenizer.json; download it beside the weights");
  return unsupported(directory + " has no tokenizer.json, only " + there +
                     ", a tokenizer in an older format; convert it: " +
                     "`python3 -c \"from transformers import AutoTokenizer as T; T.from_pretrained('" + directory +
                     "').save_pretrained('" + directory + "')\"`");
}

Status check_model_files(io::Env& env, const std::string& directory) {
  LATHE_TRY(check_model_directory(env, directory));
  if (LATHE_TRY(env.exists(directory + kConfig))) return {};
  if (is_adapter(names_in(env, directory))) return adapter(directory);
  return not_found(directory + " has no config.json; download it beside the weights");
}

}  // namespace lathe::delta
