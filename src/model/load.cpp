#include "delta/model_dir.h"
#include "io/env.h"
#include "model/directory.h"
#include "model/model.h"

namespace lathe::model {

Result<ModelConfig> read_config(io::Env& env, const std::string& directory) {
  const std::string config_text = LATHE_TRY(io::read_text(env, directory + "/config.json"));
  std::string generation_text;
  if (LATHE_TRY(env.exists(directory + "/generation_config.json"))) {
    generation_text = LATHE_TRY(io::read_text(env, directory + "/generation_config.json"));
  }
  return ModelConfig::parse(config_text, generation_text).at(directory);
}

Result<LoadedModel> load_model(io::Env& env, const std::string& directory, const weights::Placement& placement) {
  ModelConfig config = LATHE_TRY(read_config(env, directory));
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, directory));
  LATHE_TRY(check_tensors(config, dir).at(directory));
  if (!placement.device.is_meta()) LATHE_TRY(check_stored_head(config, dir).at(directory));
  const auto specs = Model::parameter_specs(config);
  weights::WeightStore loaded = LATHE_TRY(weights::WeightStore::load(dir, specs, placement).at(directory));
  alias_stored_head(config, dir, loaded);
  LoadedModel out;
  out.store = std::make_unique<weights::WeightStore>(std::move(loaded));
  out.model = std::make_unique<Model>(std::move(config), *out.store);
  return out;
}

}  // namespace lathe::model
