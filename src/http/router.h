// Router: which handler a method and a path have. Private to src/http.
//
// Paths are taken as people write base addresses: doubled and final slashes count for nothing, and the "/v1" in front
// of OpenAI's routes may be absent or doubled, as it is when a client adds one to an address that has it, or when an
// address lacks the one that the client expects.
// Threads: immutable once the server runs; any.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "http/server.h"

namespace lathe::http {

struct Route {
  std::string method, path;  // "/*" at the end: one more part; "/**": one or more
  Handler handler;
};

class Router {
 public:
  void add(Route route);

  struct Found {
    const Route* route = nullptr;      // null if there is none
    std::string argument;              // what the end of the route's path stands for
    std::vector<std::string> methods;  // that the path has otherwise, if there is no route
  };
  // `path`: percent-decoded. HEAD is answered as GET.
  Found find(std::string_view method, std::string_view path) const;

 private:
  std::vector<Route> routes_;
};

}  // namespace lathe::http
