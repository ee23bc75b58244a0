#include "daemon/daemon.h"

#include <ATen/Parallel.h>
#include <signal.h>

#include <filesystem>
#include <thread>

#include "base/log.h"
#include "checkpoint/sync.h"
#include "daemon/learner.h"
#include "daemon/service.h"
#include "engine/engine.h"
#include "gpu/device.h"
#include "http/server.h"

namespace lathe::daemon {
namespace {

// Blocks SIGTERM and SIGINT for this thread and all it starts, so that wait() alone sees them.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  int wait() const {
    int number = 0;
    sigwait(&set_, &number);
    return number;
  }
  // A second signal means now: the default action ends the process.
  void release() const { pthread_sigmask(SIG_UNBLOCK, &set_, nullptr); }

 private:
  sigset_t set_;
};

// Finishes what a crash interrupted.
Result<int64_t> recovered_version(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(checkpoint::lock_history(env, directory));
  LATHE_TRY(checkpoint::recover(env, directory));
  return checkpoint::read_version(env, directory);
}

// The file that tells `lathe sync MODEL_DIR` where to ask. Not worth failing for: --server says it as well.
class Announcement {
 public:
  Announcement(io::Env& env, const std::string& directory, const config::Settings& settings, int port)
      : env_(env), path_(checkpoint::Paths(directory).server) {
    const bool any = settings.host == "0.0.0.0" || settings.host == "::";
    const std::string url = "http://" + (any ? "127.0.0.1" : settings.host) + ":" + std::to_string(port);
    const Status written = io::write_text_atomically(env_, path_, "{\"url\": \"" + url + "\"}");
    if (!written.ok()) log::warning(written.error().message);
  }
  ~Announcement() { [[maybe_unused]] const Status removed = io::remove_if_there(env_, path_); }
  Announcement(const Announcement&) = delete;
  Announcement& operator=(const Announcement&) = delete;

 private:
  io::Env& env_;
  std::string path_;
};

std::string name_of(const std::string& directory) {
  auto path = std::filesystem::path(directory).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename() == "." ? std::filesystem::absolute(path).lexically_normal().parent_path().filename().string()
                                : path.filename().string();
}

}  // namespace

Status serve(const std::string& directory, config::Settings settings, const std::function<void(int port)>& ready) {
  const Signals signals;
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(settings.device));
  if (settings.compute_threads > 0) at::set_num_threads(settings.compute_threads);
  const auto lock = LATHE_TRY(checkpoint::lock_directory(env, directory));
  const int64_t on_disk = LATHE_TRY(recovered_version(env, directory));
  const text::Text text = LATHE_TRY(text::Text::load(env, directory));
  model::LoadedModel loaded = LATHE_TRY(model::load_model(env, directory, {.device = device}));
  const auto store = LATHE_TRY(store::Store::open(directory + "/.lathe/lathe.db"));
  log::info("loaded " + directory + ": " + std::to_string(loaded.store->element_count() / 1'000'000) +
            " M parameters on " + device.str() + ", version " + std::to_string(on_disk));

  weights::Gate gate;
  engine::Engine engine(
      *loaded.model, gate,
      {.max_running = settings.max_running, .max_waiting = settings.max_waiting, .max_context = settings.max_context});
  Learner learner(loaded, gate, *store, env, directory, settings, on_disk);
  const std::string name = settings.served_name.empty() ? name_of(directory) : settings.served_name;
  Service service(text, loaded.model->config(), engine, learner, *store, settings, name);
  http::Server server({.host = settings.host,
                       .port = settings.port,
                       .api_key = settings.api_key,
                       .threads = settings.http_threads,
                       .max_body_bytes = settings.max_body_bytes});
  service.add_routes(server);

  Status last_sync;
  {
    std::jthread serving([&](std::stop_token stop) { engine.run(stop); });
    std::jthread teaching([&](std::stop_token stop) { last_sync = learner.run(stop); });
    LATHE_TRY(server.start());  // leaving here stops and joins both threads
    const Announcement announcement(env, directory, settings, server.port());
    ready(server.port());
    signals.wait();
    signals.release();
    log::info("stopping: finishing the step at hand, then syncing");
    teaching.request_stop();
    serving.request_stop();
    server.stop();
  }
  return last_sync;
}

}  // namespace lathe::daemon
