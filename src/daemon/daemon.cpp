#include "daemon/daemon.h"

#include <ATen/Parallel.h>

#include "base/log.h"
#include "daemon/life_cycle.h"
#include "daemon/service.h"
#include "delta/model_dir.h"
#include "engine/engine.h"
#include "gpu/device.h"
#include "model/directory.h"
#include "teach/holder.h"

namespace lathe::daemon {

Status serve(const std::string& directory, config::Settings settings, const std::function<void(int port)>& ready) {
  LATHE_TRY(check_access(settings));
  const Signals signals;
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(settings.device));
  if (settings.compute_threads > 0) at::set_num_threads(settings.compute_threads);
  const text::Text text = LATHE_TRY(text::Text::load(env, directory));
  const model::ModelConfig config = LATHE_TRY(model::read_config(env, directory));
  LATHE_TRY(model::check_tokens(config, text).at(directory));
  const auto lock = LATHE_TRY(delta::lock_directory(env, directory));
  const int64_t on_disk = LATHE_TRY(recovered_version(env, directory));
  model::LoadedModel loaded = LATHE_TRY(model::load_model(env, directory, {.device = device}));
  const auto store = LATHE_TRY(store::Store::open(directory + "/.lathe/lathe.db"));
  log::info("loaded " + directory + ": " + std::to_string(loaded.store->element_count() / 1'000'000) +
            " M parameters on " + device.str() + ", version " + std::to_string(on_disk));

  weights::Gate gate;
  teach::GateHolder holder(gate, [&]() -> Status {
    const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, directory));
    const gpu::Fence finished(device);
    return loaded.store->reload(dir);
  });
  const auto cycle = LATHE_TRY(LifeCycle::create({.env = env,
                                                  .directory = directory,
                                                  .text = text,
                                                  .loaded = loaded,
                                                  .holder = holder,
                                                  .store = *store,
                                                  .on_disk = on_disk},
                                                 settings));
  engine::Engine engine(
      *loaded.model, gate,
      {.max_running = settings.max_running, .max_waiting = settings.max_waiting, .max_context = settings.max_context});
  Service service(text, loaded.model->config(), engine, *store,
                  {.model_name = model_name(settings.served_name, directory),
                   .max_context = context_limit(settings.max_context, loaded.model->config()),
                   .keep_completions = settings.keep_completions,
                   .version = [&] { return cycle->teacher().version(); },
                   .health = [&] { return cycle->health(); }});
  cycle->learning().add_text_routes(cycle->server());
  service.add_routes(cycle->server());
  return cycle->run(signals, ready, {[&](std::stop_token stop) { engine.run(stop); }});
}

}  // namespace lathe::daemon
