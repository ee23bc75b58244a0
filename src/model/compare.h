// Whether two configurations are of one model: the same weights mean the same under both.
//
// Threads: pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/config.h"

namespace lathe::model {

// Names of what differs, in the words of config.json: everything that the forward pass depends on. Special tokens and
// the largest number of positions are no part of that.
std::vector<std::string> differences(const ModelConfig& a, const ModelConfig& b);

// The same of two config.json. Where one of them is of no family that is served, the fields that both have are compared
// as they stand, but for those that say nothing of the model (who wrote the file, and how it is to be loaded).
Result<std::vector<std::string>> differences(std::string_view config_json, std::string_view other_json);

}  // namespace lathe::model
