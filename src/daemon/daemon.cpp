#include "daemon/daemon.h"

#include <ATen/Parallel.h>

#include <thread>

#include "base/log.h"
#include "daemon/learner.h"
#include "daemon/learning_routes.h"
#include "daemon/process.h"
#include "daemon/routes.h"
#include "daemon/service.h"
#include "engine/engine.h"
#include "gpu/device.h"
#include "history/sync.h"
#include "http/server.h"

namespace lathe::daemon {

Status serve(const std::string& directory, config::Settings settings, const std::function<void(int port)>& ready) {
  const Signals signals;
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(settings.device));
  if (settings.compute_threads > 0) at::set_num_threads(settings.compute_threads);
  const auto lock = LATHE_TRY(delta::lock_directory(env, directory));
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
  LearningRoutes learning(text, loaded.model->config(), learner, *store, settings);
  Service service(text, loaded.model->config(), engine, learner, *store, settings, name);
  http::Server server(server_options(settings));
  learning.add_routes(server);
  learning.add_text_routes(server);
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
