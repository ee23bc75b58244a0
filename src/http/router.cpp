#include "http/router.h"

#include <algorithm>
#include <optional>

namespace lathe::http {
namespace {

using Parts = std::vector<std::string_view>;

Parts parts_of(std::string_view path) {
  Parts parts;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (end > begin) parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

void drop_version(Parts& parts) {
  const auto other = std::find_if(parts.begin(), parts.end(), [](std::string_view part) { return part != "v1"; });
  parts.erase(parts.begin(), other);
}

// The argument, empty for a route without one; nothing if the path is another.
std::optional<std::string> argument_of(std::string_view route, std::string_view path) {
  Parts wanted = parts_of(route), given = parts_of(path);
  if (!wanted.empty() && wanted.front() == "v1") {
    drop_version(wanted);
    drop_version(given);
  }
  const bool one = !wanted.empty() && wanted.back() == "*", more = !wanted.empty() && wanted.back() == "**";
  if (!one && !more) return wanted == given ? std::optional(std::string()) : std::nullopt;
  wanted.pop_back();
  const bool long_enough = one ? given.size() == wanted.size() + 1 : given.size() > wanted.size();
  if (!long_enough || !std::equal(wanted.begin(), wanted.end(), given.begin())) return {};
  std::string argument;
  for (size_t i = wanted.size(); i < given.size(); ++i) {
    if (!argument.empty()) argument += '/';
    argument += given[i];
  }
  return argument;
}

}  // namespace

void Router::add(Route route) {
  routes_.push_back(std::move(route));
}

Router::Found Router::find(std::string_view method, std::string_view path) const {
  Found found;
  for (const Route& route : routes_) {
    auto argument = argument_of(route.path, path);
    if (!argument) continue;
    if (route.method == method || (route.method == "GET" && method == "HEAD"))
      return {&route, std::move(*argument), {}};
    found.methods.push_back(route.method);
  }
  return found;
}

}  // namespace lathe::http
