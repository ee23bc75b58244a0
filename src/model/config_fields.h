// ConfigFields: typed fields of one object of config.json or generation_config.json. Remembers the first thing that was
// wrong, so that a family reads as a list of fields.
//
// Threads: a value, used by one thread. The JSON outlives it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace lathe::model {

class ConfigFields {
 public:
  // `place`: what messages call the object.
  explicit ConfigFields(const nlohmann::json& json, std::string place = "config.json")
      : json_(json), place_(std::move(place)) {}

  // Null counts as absent, here and below.
  bool has(const char* name) const;
  // An integer of 1 to `most`. An error if it is absent and nothing stands in for it.
  int64_t positive(const char* name, std::optional<int64_t> otherwise = {}, int64_t most = int64_t{1} << 31);
  // Finite and above 0.
  double number(const char* name, double otherwise);
  bool flag(const char* name, bool otherwise);
  std::string text(const char* name, const std::string& otherwise);
  std::vector<int64_t> ids(const char* name);        // token ids, one or a list; -1 names none; empty if absent
  std::vector<std::string> texts(const char* name);  // a text or a list of them; empty if absent
  const nlohmann::json& object(const char* name);    // an empty object if absent
  std::vector<std::string> names() const;            // of the fields that are not null

  // Remembers `message` unless there is an error already, and returns `otherwise`.
  template <class T>
  T fail(std::string message, T otherwise) {
    if (!error_) error_ = invalid_argument(place_ + ": " + std::move(message));
    return otherwise;
  }
  const std::string& place() const { return place_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  const nlohmann::json& json_;
  std::string place_;
  std::optional<Error> error_;
};

}  // namespace lathe::model
