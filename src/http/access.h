// Access: which requests a server accepts at all, before any route sees them.
//
// Why: a server on a loopback address is reachable for every web page that its user opens. A page cannot read the
// answers, but it may send requests, and under a name of its own that it makes point here (DNS rebinding) it may read
// them too. So the header Host must name an address that the server was started for, a page that sends a request
// (Origin, Sec-Fetch-Site) must be the server's own or an allowed one, and a body must be announced as JSON, which no
// page may do to another site without asking first (a preflight). Programs other than browsers send no Origin.
// Threads: immutable; any.
// Protocol page: docs/protocols/http.md. Threat model: SECURITY.md
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace lathe::http {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct AccessRules {
  std::string host = "127.0.0.1";            // that the server listens on
  std::string api_key;                       // empty: none is asked for
  std::vector<std::string> allowed_hosts;    // further names under which it is reached, such as a proxy's; "*": any
  std::vector<std::string> allowed_origins;  // of web pages that may use it: "https://page.example"; "*": any
};

// A refused request: its status, and what to say.
struct Refusal {
  int status = 403;
  Error error;
};

// The parts of a request that are looked at.
struct RequestHead {
  std::string method, path;
  std::string version = "HTTP/1.1";
  std::string local_address;  // the server's end of the connection, an IP address
  std::function<std::vector<std::string>(const char* name)> header;  // the values of all headers of this name
};

class Access {
 public:
  // kInvalidArgument for an address that lets others in without a key, or for an origin that is none.
  static Result<Access> create(AccessRules rules);

  // Nothing if the request may go on to its route.
  std::optional<Refusal> refuse(const RequestHead& request) const;

  // Of an answer to a request that was not refused as foreign: lets an allowed page read it.
  Headers answer_headers(const RequestHead& request) const;
  // Of the answer (204) to OPTIONS: what an allowed page may send.
  Headers preflight_headers(const RequestHead& request) const;

 private:
  explicit Access(AccessRules rules);
  bool knows_host(const std::string& name, const std::string& local_address) const;
  bool allows_origin(const std::string& origin) const;
  std::optional<Refusal> refuse_host(const RequestHead& request) const;
  std::optional<Refusal> refuse_page(const RequestHead& request) const;
  std::optional<Refusal> refuse_key(const RequestHead& request) const;

  AccessRules rules_;
  std::string machine_;  // this machine's own name
};

// Whether an address or name is one that only this machine reaches.
bool is_loopback(const std::string& host);

}  // namespace lathe::http
