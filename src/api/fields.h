// Reads typed fields of a JSON object and keeps the first complaint, so that a parser reads as a list of fields.
// Private to src/api: the one header that includes the JSON library.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"

namespace lathe::api {

using Json = nlohmann::ordered_json;

// kInvalidArgument unless `body` is a JSON object. Nesting is bounded, so that a small body cannot exhaust the stack.
Result<Json> parse_object(std::string_view body);

class Fields {
 public:
  explicit Fields(const Json& json) : json_(json) {}

  bool has(const char* name) {
    known_.insert(name);
    return json_.contains(name) && !json_.at(name).is_null();
  }
  const Json& at(const char* name) const { return json_.at(name); }

  std::optional<int64_t> integer(const char* name, int64_t lowest, int64_t highest) {
    if (!has(name)) return {};
    const Json& value = at(name);
    const bool whole = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
    if (whole && value.get<int64_t>() >= lowest && value.get<int64_t>() <= highest) return value.get<int64_t>();
    complain(name, "must be an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
    return {};
  }
  std::optional<double> number(const char* name) {
    if (!has(name)) return {};
    if (at(name).is_number() && std::isfinite(at(name).get<double>())) return at(name).get<double>();
    complain(name, "must be a number");
    return {};
  }
  std::optional<bool> flag(const char* name) {
    if (!has(name)) return {};
    if (at(name).is_boolean()) return at(name).get<bool>();
    complain(name, "must be true or false");
    return {};
  }
  std::optional<std::string> text(const char* name) {
    if (!has(name)) return {};
    if (at(name).is_string()) return at(name).get<std::string>();
    complain(name, "must be a string");
    return {};
  }
  std::vector<int32_t> token_ids(const char* name) {
    std::vector<int32_t> ids;
    if (!has(name)) return ids;
    if (!at(name).is_array()) return complain(name, "must be a list of token ids"), ids;
    for (const Json& id : at(name)) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) return complain(name, "must be a list of token ids"), ids;
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }

  void complain(const std::string& name, const std::string& what) {
    if (!error_) error_ = invalid_argument("'" + name + "' " + what);
  }
  // Refuses fields that no reader asked for.
  void refuse_unknown() {
    for (const auto& [name, value] : json_.items()) {
      if (!known_.contains(name)) return complain(name, "is not a field of this request");
    }
  }
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  const Json& json_;
  std::set<std::string> known_;
  std::optional<Error> error_;
};

}  // namespace lathe::api
