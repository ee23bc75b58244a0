// Address: where an HTTP server is, as people write it.
//
// Threads: a value; pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace lathe::http {

struct Address {
  std::string host;  // a name, or an IPv4 or IPv6 address without brackets
  int port = 80;

  // "http://host:port", an IPv6 address in brackets.
  std::string url() const;
};

// "http://HOST:PORT", with or without "http://", an IPv6 address in brackets. OpenAI's clients want a base address that
// ends in "/v1", and people copy it from there: that and slashes at the end are dropped. kInvalidArgument says what is
// wrong with anything else.
Result<Address> parse_address(std::string_view text);

// host:port as it stands in a URL and in the header Host.
std::string authority(const std::string& host, int port);

}  // namespace lathe::http
