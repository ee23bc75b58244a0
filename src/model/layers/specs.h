// How layers name their parameters.
//
// Threads: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "weights/weight_store.h"

namespace lathe::model {

// A parameter that is one tensor of the checkpoint.
inline weights::ParameterSpec single(const std::string& name, std::vector<int64_t> shape) {
  return {name, {{name, std::move(shape)}}};
}

// A parameter that the model may lack: null then.
inline const weights::Parameter* find_if(bool present, const weights::WeightStore& store, const std::string& name) {
  return present ? &store.parameter(name) : nullptr;
}

}  // namespace lathe::model
