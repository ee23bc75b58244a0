#include "api/fields.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace lathe::api {

Result<Json> parse_object(std::string_view body, const std::string& what) {
  constexpr int kMaxDepth = 64;
  bool too_deep = false;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kMaxDepth;
    return !too_deep;
  };
  Json json = Json::parse(body, watch, /*allow_exceptions=*/false);
  if (too_deep) return invalid_argument(what + " is nested deeper than " + std::to_string(kMaxDepth) + " levels");
  if (json.is_discarded()) return invalid_argument(what + " is not valid JSON");
  if (!json.is_object()) return invalid_argument(what + " must be a JSON object");
  return json;
}

std::string conversation_json(const Json& request) {
  const Json conversation = {{"messages", request["messages"]},
                             {"tools", request.value("tools", Json())},
                             {"chat_template_kwargs", request.value("chat_template_kwargs", Json())}};
  return conversation.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool Fields::has(const char* name) {
  known_.insert(name);
  return json_.contains(name) && !json_.at(name).is_null();
}

const Json& Fields::at(const char* name) const {
  return json_.at(name);
}

std::optional<int64_t> Fields::integer(const char* name, int64_t lowest, int64_t highest) {
  if (!has(name)) return {};
  Json value = at(name);
  // Languages with one type of number write 1e3 and 100.0.
  constexpr double kExact = 0x1p53;
  if (value.is_number_float() && std::abs(value.get<double>()) <= kExact && std::trunc(value.get<double>()) == value)
    value = static_cast<int64_t>(value.get<double>());
  const bool whole = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  if (whole && value.get<int64_t>() >= lowest && value.get<int64_t>() <= highest) return value.get<int64_t>();
  complain(name, "must be an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return {};
}

std::optional<double> Fields::number(const char* name) {
  if (!has(name)) return {};
  if (at(name).is_number() && std::isfinite(at(name).get<double>())) return at(name).get<double>();
  complain(name, "must be a number");
  return {};
}

std::optional<bool> Fields::flag(const char* name) {
  if (!has(name)) return {};
  if (at(name).is_boolean()) return at(name).get<bool>();
  complain(name, "must be true or false");
  return {};
}

std::optional<std::string> Fields::text(const char* name) {
  if (!has(name)) return {};
  if (at(name).is_string()) return at(name).get<std::string>();
  complain(name, "must be a string");
  return {};
}

std::vector<int32_t> Fields::token_ids(const char* name) {
  std::vector<int32_t> ids;
  if (!has(name)) return ids;
  bool good = at(name).is_array();
  for (const Json& id : at(name)) {
    good = good && id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX;
    if (good) ids.push_back(id.get<int32_t>());
  }
  if (!good) complain(name, "must be a list of token ids");
  return ids;
}

void Fields::complain(const std::string& name, const std::string& what) {
  complain("'" + name + "' " + what);
}

void Fields::complain(const std::string& message) {
  if (!error_) error_ = invalid_argument(message);
}

void Fields::refuse_unknown() {
  for (const auto& [name, value] : json_.items()) {
    if (!known_.contains(name) && !value.is_null()) return complain(name, "is not a field of this request");
  }
}

}  // namespace lathe::api
