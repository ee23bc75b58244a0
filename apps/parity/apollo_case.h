// Trajectories of the APOLLO authors' package, replayed through OptimizerConfig::official_compat. Format page:
// docs/formats/golden.md.
#pragma once

#include <string>

#include "base/result.h"
#include "io/env.h"

namespace lathe::parity {

// The worst over all cases, steps, and the three ways of handing a gradient over: as factors, dense, streamed.
struct ApolloErrors {
  double weights = 0;  // ‖ours - theirs‖ / ‖theirs‖ of a parameter
  double way = 0;  // ‖ours - theirs‖ / ‖theirs - start‖: the same difference over how far the parameter has gone
  std::string way_name;  // where the latter is
};

// Of the folder that holds apollo.json and apollo.safetensors. Refuses by name what the settings ask for and the
// compatibility mode does not have, and tensors that are missing.
Result<ApolloErrors> replay_apollo(io::Env& env, const std::string& directory);

}  // namespace lathe::parity
