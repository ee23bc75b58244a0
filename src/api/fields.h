// Reads typed fields of a JSON object and keeps the first complaint, so that a parser reads as a list of fields.
// Private to src/api.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::api {

using Json = nlohmann::ordered_json;

// kInvalidArgument, about `what`, unless `body` is a JSON object. Nesting is bounded, so that a small body cannot
// exhaust the stack.
Result<Json> parse_object(std::string_view body, const std::string& what = "the request body");

// What of a chat request a correction of its answer needs: {"messages", "tools", "chat_template_kwargs"}.
std::string conversation_json(const Json& request);

class Fields {
 public:
  // `json` is an object and outlives the reader.
  explicit Fields(const Json& json) : json_(json) {}

  bool has(const char* name);                                           // null counts as absent
  bool asked(const char* name) const { return known_.contains(name); }  // whether a reader asked for it
  const Json& at(const char* name) const;

  // Each: nothing if the field is absent; a complaint if it has another type or is out of range.
  std::optional<int64_t> integer(const char* name, int64_t lowest, int64_t highest);
  std::optional<double> number(const char* name);
  std::optional<bool> flag(const char* name);
  std::optional<std::string> text(const char* name);
  std::vector<int32_t> token_ids(const char* name);

  void complain(const std::string& name, const std::string& what);
  void complain(const std::string& message);
  // Complains of a field that no reader asked for, unless it is null.
  void refuse_unknown();
  // The first complaint, as kInvalidArgument.
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  const Json& json_;
  std::set<std::string> known_;
  std::optional<Error> error_;
};

}  // namespace lathe::api
