#include "apollo_case.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "optim/optimizer.h"
#include "reference_case.h"

namespace lathe::parity {
namespace {

using Json = nlohmann::json;
using weights::GradientForm;
using weights::GradientSet;

enum class Way { kFactored, kDense, kStreamed };

Result<optim::OptimizerConfig> config_of(const Json& c) {
  if (c.value("proj", "random") != "random" || c.value("proj_type", "std") != "std") {
    return unsupported("only random projections of the smaller side (proj random, proj_type std) can be replayed");
  }
  // scale_front moves a factor past a limiter that does not see it.
  const optim::OptimizerConfig config{
      .method = c.at("scale_type") == "tensor" ? optim::Method::kApolloMini : optim::Method::kApollo,
      .rank = c.at("rank"),
      .refresh_every = c.at("update_proj_gap"),
      .beta1 = c.at("betas").at(0),
      .beta2 = c.at("betas").at(1),
      .epsilon = c.at("eps"),
      .weight_decay = c.at("weight_decay"),
      .scale = c.at("scale"),
      .seed = c.at("seeds").at("w"),
      .official_compat = true};
  LATHE_TRY(config.validate());
  return config;
}

// One weight matrix and one bias, as the reference keeps them.
class Trajectory {
 public:
  Trajectory(const Json& settings, const Tensors& tensors, const std::string& id)
      : rate_(settings.at("lr")), tensors_(tensors), id_(id) {
    for (const char* name : {"w", "b"}) {
      const at::Tensor& start = tensors.at(id + name + "0");
      store_.add(name, start.clone(), {{name, start.size(0)}}, /*vocabulary=*/false);
    }
  }

  Status follow(const optim::OptimizerConfig& config, Way way, ApolloErrors& errors) {
    optim::Optimizer optimizer(store_, config);
    for (int64_t step = 0; step < tensors_.at(id_ + "w").size(0); ++step) {
      if (way == Way::kStreamed) {
        LATHE_TRY(optim::StreamedUpdate(optimizer, rate_).apply(gradients(step, way)));
      } else {
        optimizer.commit(LATHE_TRY(optimizer.propose(gradients(step, way), rate_)));
      }
      for (const auto& parameter : store_.parameters()) compare(parameter, step, errors);
    }
    return {};
  }

 private:
  GradientSet gradients(int64_t step, Way way) const {
    GradientSet set(2, way == Way::kDense ? GradientForm::kDense : GradientForm::kFactors);
    const at::Tensor g = tensors_.at(id_ + "gw")[step];
    set.linear(store_.parameters()[0], at::eye(g.size(1)), g.t().contiguous());  // G = (Gᵀ)ᵀ I
    set.vector(store_.parameters()[1], tensors_.at(id_ + "gb")[step]);
    return set;
  }

  void compare(const weights::Parameter& parameter, int64_t step, ApolloErrors& errors) const {
    const at::Tensor ours = parameter.data.to(at::kDouble),
                     theirs = tensors_.at(id_ + parameter.name)[step].to(at::kDouble),
                     start = tensors_.at(id_ + parameter.name + "0").to(at::kDouble);
    const double weights = relative_error(ours, theirs), way = relative_error(ours - start, theirs - start);
    if (!(weights <= errors.weights)) errors.weights = weights;  // also takes NaN
    if (!(way <= errors.way))
      errors.way = way, errors.way_name = id_ + parameter.name + "[" + std::to_string(step) + "]";
  }

  double rate_;
  const Tensors& tensors_;
  std::string id_;
  weights::WeightStore store_;
};

}  // namespace

Result<ApolloErrors> replay_apollo(io::Env& env, const std::string& directory) {
  const std::string path = directory + "/apollo.json";
  const auto file = LATHE_TRY(env.map(path));
  const Tensors tensors = LATHE_TRY(read_tensors(env, directory + "/apollo.safetensors"));
  ApolloErrors errors;
  try {
    const auto* text = reinterpret_cast<const char*>(file->bytes().data());
    const Json cases = Json::parse(text, text + file->bytes().size());
    if (!cases.is_array() || cases.empty()) return invalid_argument(path + " lists no cases");
    for (const Json& c : cases) {
      const std::string id = std::to_string(c.at("case").get<int64_t>()) + ".";
      const optim::OptimizerConfig config = LATHE_TRY(config_of(c).at(path + ", case " + id));
      for (const Way way : {Way::kFactored, Way::kDense, Way::kStreamed}) {
        LATHE_TRY(Trajectory(c, tensors, id).follow(config, way, errors).at(path + ", case " + id));
      }
    }
  } catch (const std::exception& e) {
    return invalid_argument(path + " or its tensors are not as docs/formats/golden.md says: " + e.what());
  }
  return errors;
}

}  // namespace lathe::parity
