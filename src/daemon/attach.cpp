#include "daemon/attach.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>

#include "base/log.h"
#include "daemon/life_cycle.h"
#include "delta/other_formats.h"
#include "gpu/device.h"
#include "gpu/ipc_memory.h"
#include "model/directory.h"
#include "teach/holder.h"
#include "text/foreign_tokens.h"
#include "vllm/import.h"
#include "vllm/proxy.h"
#include "vllm/shared_memory.h"

namespace lathe::daemon {
namespace {

Error no_directory(const std::string& named) {
  return invalid_argument("vLLM was started with '" + named +
                          "', which is not a directory here; start it with a model directory (lathe needs one to make "
                          "what was learned durable), or name the same directory as MODEL_DIR");
}

// The directory that is taught must be the one vLLM would restore its weights from.
Result<std::string> shared_directory(const std::string& asked, const std::string& served) {
  std::error_code unused;
  const std::string directory = asked.empty() ? served : asked;
  if (!std::filesystem::is_directory(directory, unused)) return no_directory(served);
  const bool visible = std::filesystem::exists(served, unused);
  if (visible && !std::filesystem::equivalent(directory, served, unused)) {
    return invalid_argument("vLLM serves " + served + ", not " + directory +
                            "; omit MODEL_DIR, or start vLLM with that directory");
  }
  return directory;
}

struct Mapped {
  c10::Device device{c10::DeviceType::CPU};
  std::vector<vllm::MappedMemory> memories;
};

Result<Mapped> map_shared(const vllm::Manifest& manifest) {
  Mapped mapped;
  for (const vllm::Memory& memory : manifest.memories) {
    if (memory.kind != vllm::Memory::Kind::kShared) return unsupported("vLLM's weights are on CPUs and GPUs at once");
    const auto shared = LATHE_TRY(vllm::SharedMemory::map(memory));
    mapped.memories.push_back({shared->data(), shared});
  }
  return mapped;
}

Result<Mapped> map_cuda(const vllm::Manifest& manifest) {
  Mapped mapped{.device = LATHE_TRY(gpu::open_uuid(manifest.memories.front().uuid))};
  for (const vllm::Memory& memory : manifest.memories) {
    if (memory.kind != vllm::Memory::Kind::kCudaIpc || memory.uuid != manifest.memories.front().uuid)
      return unsupported("vLLM's weights are on more than one device; start it on one GPU");
    const auto ipc = LATHE_TRY(gpu::IpcMemory::open(mapped.device, memory.handle, memory.bytes));
    mapped.memories.push_back({static_cast<std::byte*>(ipc->data()), ipc});
  }
  return mapped;
}

Result<Mapped> map_memories(const vllm::Manifest& manifest) {
  if (manifest.memories.empty()) return invalid_argument("vLLM's manifest names no weights");
  const bool cuda = manifest.memories.front().kind == vllm::Memory::Kind::kCudaIpc;
  return cuda ? map_cuda(manifest) : map_shared(manifest);
}

// Brings live weights and directory together, or says how. True if the live weights are to become a version of their
// own.
Result<bool> settle_difference(io::Env& env, vllm::Session& session, const Imported& imported, OnDifference choice) {
  auto names = LATHE_TRY(differing(env, imported));
  if (names.empty()) return false;
  if (choice == OnDifference::kAdopt) {
    log::warning("adopting " + std::to_string(names.size()) + " tensors of vLLM that are not as on disk");
    return true;
  }
  if (choice == OnDifference::kRestore) {
    log::warning("restoring " + std::to_string(names.size()) + " tensors of vLLM from " + imported.directory);
    LATHE_TRY(session.restore());
    names = LATHE_TRY(differing(env, imported));
    if (names.empty()) return false;
  }
  return Error{Code::kConflict,
               "vLLM's weights are not those of " + imported.directory + ": " + std::to_string(names.size()) +
                   " tensors differ, the first is " + names.front() +
                   ". If a trainer ended without a sync: --on-difference restore reloads them from disk, adopt makes "
                   "them a new version. Otherwise vLLM changed them while loading, and they cannot be taught"};
}

// Other tokens than the directory's are taught only if asked for.
Status settle_tokens(const text::Text& text, const AttachOptions& options) {
  const Status compared = compare_tokens(text, options.server);
  if (compared.ok() || options.tokens == Tokens::kOurs || compared.error().code != Code::kConflict) return compared;
  log::warning(compared.error().message + " (it is set)");
  return {};
}

LearningRoutes::Grade grade(const text::Text& text, const AttachOptions& options) {
  if (options.tokens == Tokens::kOurs) return {};
  return [&](const api::LearnExample& example) {
    text::RenderOptions render = example.render;
    render.add_generation_prompt = false;
    return text::graded_elsewhere(
        example.messages, example.turn_weights,
        [&](std::span<const text::Message> messages) { return options.server.tokenize(messages, render); },
        [&](text::TokenId id) { return text.tokenizer().is_special(id); });
  };
}

}  // namespace

Result<Imported> import_manifest(io::Env& env, const std::string& asked, const vllm::Manifest& manifest) {
  const std::string directory = LATHE_TRY(shared_directory(asked, manifest.directory));
  LATHE_TRY(delta::check_model_files(env, directory));
  model::ModelConfig config = LATHE_TRY(model::read_config(env, directory));
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, directory));
  LATHE_TRY(model::check_tensors(config, dir).at(directory));
  LATHE_TRY(model::check_stored_head(config, dir).at(directory));
  const Mapped mapped = LATHE_TRY(map_memories(manifest));
  const auto specs = model::Model::parameter_specs(config);
  weights::WeightStore store =
      LATHE_TRY(vllm::import_weights(manifest, mapped.memories, mapped.device, specs, config.prefix));
  LATHE_TRY(vllm::check_dtypes(store, dir));
  model::alias_stored_head(config, dir, store);
  model::LoadedModel loaded{.store = std::make_unique<weights::WeightStore>(std::move(store))};
  loaded.model = std::make_unique<model::Model>(std::move(config), *loaded.store);
  return Imported{directory, std::move(loaded)};
}

Result<std::vector<std::string>> differing(io::Env& env, const Imported& imported) {
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, imported.directory));
  return vllm::differing_parts(*imported.loaded.store, dir);
}

Status compare_tokens(const text::Text& text, const vllm::Server& server) {
  if (!text.has_chat_template()) return {};
  const std::vector<text::Message> messages = {{.role = "user", .content = "What flows through Velmora? \xC2\xB5 1+1"}};
  const auto ours = LATHE_TRY(text.prompt(messages, {}));
  const auto theirs = LATHE_TRY(server.tokenize(messages, {}));
  if (ours == theirs) return {};
  return Error{Code::kConflict,
               "vLLM cuts a conversation into " + std::to_string(theirs.size()) +
                   " tokens, its directory's template and tokenizer into " + std::to_string(ours.size()) +
                   " or others; was vLLM started with --chat-template or --tokenizer? Put them into the directory, or "
                   "teach vLLM's tokens with --tokens=server"};
}

Status attach(const AttachOptions& options, config::Settings settings, const std::function<void(int port)>& ready) {
  LATHE_TRY(check_access(settings));
  const Signals signals;
  io::Env& env = io::posix_env();
  if (settings.compute_threads > 0) at::set_num_threads(settings.compute_threads);
  const std::string socket = options.socket.empty() ? LATHE_TRY(options.server.socket_path()) : options.socket;
  vllm::Session session = LATHE_TRY(vllm::Session::connect(socket));
  const vllm::Session::Greeting greeting = LATHE_TRY(session.hello());
  const vllm::Manifest& manifest = greeting.ranks.front();
  LATHE_TRY(vllm::check_refusals(manifest));
  for (const vllm::Finding& warning : manifest.warnings)
    log::warning("vLLM: " + warning.condition + " (" + warning.found + "): " + warning.remedy);
  Imported imported = LATHE_TRY(import_manifest(env, options.directory, manifest));
  const std::string& directory = imported.directory;
  const auto lock = LATHE_TRY(delta::lock_directory(env, directory));
  const int64_t on_disk = LATHE_TRY(recovered_version(env, directory));
  const bool adopt = LATHE_TRY(settle_difference(env, session, imported, options.on_difference));
  const text::Text text = LATHE_TRY(text::Text::load(env, directory));
  LATHE_TRY(model::check_tokens(imported.loaded.model->config(), text).at(directory));
  if (!options.server.url.empty()) LATHE_TRY(settle_tokens(text, options));
  const auto store = LATHE_TRY(store::Store::open(directory + "/.lathe/lathe.db"));

  teach::SessionHolder holder(session, options.live);
  const auto cycle = LATHE_TRY(LifeCycle::create({.env = env,
                                                  .directory = directory,
                                                  .text = text,
                                                  .loaded = imported.loaded,
                                                  .holder = holder,
                                                  .store = *store,
                                                  .on_disk = on_disk,
                                                  .adopt = adopt,
                                                  .grade = grade(text, options)},
                                                 settings));
  vllm::Proxy proxy(
      options.server, [&] { return cycle->teacher().version(); }, *store, settings.keep_completions);
  if (options.proxy) {
    proxy.add_routes(cycle->server());
  } else {
    cycle->learning().add_text_routes(cycle->server());
  }
  cycle->server().route("GET", "/healthz", [&](const http::Request&) {
    return http::Response{.body = api::health_body(cycle->health())};
  });
  log::info("attached to " + manifest.engine + " " + manifest.engine_version + ", " +
            std::to_string(imported.loaded.store->element_count() / 1'000'000) + " M parameters of " + directory +
            ", version " + std::to_string(on_disk));

  std::atomic<bool> gone = false;
  const LifeCycle::Thread watching = [&](std::stop_token stop) {
    while (!stop.stop_requested() && !gone) gone = session.wait_closed(std::chrono::milliseconds(200));
    if (!gone) return;
    log::error("vLLM is gone");
    ::kill(::getpid(), SIGTERM);
  };
  LATHE_TRY(cycle->run(signals, ready, {watching}, [&] { proxy.stop(); }));
  return gone ? Status(Error{Code::kUnavailable, "vLLM is gone; what was learned is durable"}) : Status();
}

}  // namespace lathe::daemon
