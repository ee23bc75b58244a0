#include "model/config_fields.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace lathe::model {

using Json = nlohmann::json;

namespace {

// For messages; a string in the file need not be UTF-8, nor short.
std::string dumped(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

bool ConfigFields::has(const char* name) const {
  return json_.contains(name) && !json_.at(name).is_null();
}

int64_t ConfigFields::positive(const char* name, std::optional<int64_t> otherwise, int64_t most) {
  if (!has(name) && otherwise) return *otherwise;
  if (!has(name)) return fail(std::string("there is no ") + name, int64_t{1});
  const Json& value = json_.at(name);
  if (!value.is_number_integer() || value.get<int64_t>() <= 0 || value.get<int64_t>() > most) {
    return fail(std::string(name) + " must be an integer from 1 to " + std::to_string(most) + ", not " + dumped(value),
                int64_t{1});
  }
  return value.get<int64_t>();
}

double ConfigFields::number(const char* name, double otherwise) {
  if (!has(name)) return otherwise;
  const Json& value = json_.at(name);
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() <= 0) {
    return fail(std::string(name) + " must be a positive number, not " + dumped(value), otherwise);
  }
  return value.get<double>();
}

bool ConfigFields::flag(const char* name, bool otherwise) {
  if (!has(name)) return otherwise;
  if (!json_.at(name).is_boolean()) return fail(std::string(name) + " must be true or false", otherwise);
  return json_.at(name).get<bool>();
}

std::string ConfigFields::text(const char* name, const std::string& otherwise) {
  if (!has(name)) return otherwise;
  if (!json_.at(name).is_string()) return fail(std::string(name) + " must be a string", otherwise);
  return json_.at(name).get<std::string>();
}

std::vector<int64_t> ConfigFields::ids(const char* name) {
  std::vector<int64_t> out;
  if (!has(name)) return out;
  const Json& value = json_.at(name);
  for (const Json& entry : value.is_array() ? value : Json::array({value})) {
    // No vocabulary is so large. Older configurations say -1 for none.
    if (!entry.is_number_integer() || entry.get<int64_t>() < -1 || entry.get<int64_t>() > INT32_MAX)
      return fail(std::string(name) + " must be a token id or a list of them, not " + dumped(value),
                  std::vector<int64_t>());
    if (entry.get<int64_t>() >= 0) out.push_back(entry.get<int64_t>());
  }
  return out;
}

std::vector<std::string> ConfigFields::texts(const char* name) {
  std::vector<std::string> out;
  if (!has(name)) return out;
  const Json& value = json_.at(name);
  for (const Json& entry : value.is_array() ? value : Json::array({value})) {
    if (!entry.is_string()) return fail(std::string(name) + " must be a list of strings", out);
    out.push_back(entry.get<std::string>());
  }
  return out;
}

const Json& ConfigFields::object(const char* name) {
  static const Json empty = Json::object();
  if (!has(name)) return empty;
  if (!json_.at(name).is_object()) return fail<const Json&>(std::string(name) + " must be an object", empty);
  return json_.at(name);
}

std::vector<std::string> ConfigFields::names() const {
  std::vector<std::string> out;
  for (const auto& [name, value] : json_.items()) {
    if (!value.is_null()) out.push_back(name);
  }
  return out;
}

}  // namespace lathe::model
