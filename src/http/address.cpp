#include "http/address.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace lathe::http {
namespace {

constexpr std::string_view kScheme = "http://";

Error not_an_address(std::string_view text, const std::string& why) {
  return invalid_argument("'" + std::string(text) + "' is not the address of a server: " + why +
                          "; write it as http://HOST:PORT");
}

bool names_a_host(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_' || c == ':';
}

}  // namespace

std::string authority(const std::string& host, int port) {
  const bool brackets = host.find(':') != std::string::npos && !host.starts_with('[');
  return (brackets ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string Address::url() const {
  return std::string(kScheme) + authority(host, port);
}

Result<Address> parse_address(std::string_view text) {
  std::string_view rest = text;
  if (rest.starts_with("https://")) return not_an_address(text, "https needs a proxy in front, which is what to name");
  if (rest.starts_with(kScheme)) rest.remove_prefix(kScheme.size());
  if (rest.find("://") != std::string_view::npos) return not_an_address(text, "it has another scheme than http");
  const auto drop = [&](std::string_view end) {
    if (!rest.ends_with(end)) return false;
    rest.remove_suffix(end.size());
    return true;
  };
  const auto drop_slashes = [&] {
    while (drop("/")) {
    }
  };
  drop_slashes();
  if (drop("/v1")) drop_slashes();
  if (rest.find_first_of("/?#") != std::string_view::npos) return not_an_address(text, "it has a path");
  if (rest.find('@') != std::string_view::npos) return not_an_address(text, "give a key with --api-key");

  Address address;
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t end = rest.find(']');
    if (end == std::string_view::npos) return not_an_address(text, "a bracket is not closed");
    address.host = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    if (!rest.empty() && rest[0] != ':') return not_an_address(text, "only a port may follow the bracket");
    port = rest.empty() ? rest : rest.substr(1);
    if (!rest.empty() && port.empty()) return not_an_address(text, "its port is empty");
  } else {
    const size_t colon = rest.find(':');
    if (colon != rest.rfind(':')) return not_an_address(text, "an IPv6 address stands in brackets");
    address.host = rest.substr(0, colon);
    if (colon != std::string_view::npos) {
      port = rest.substr(colon + 1);
      if (port.empty()) return not_an_address(text, "its port is empty");
    }
  }
  if (address.host.empty()) return not_an_address(text, "it names no host");
  if (!std::all_of(address.host.begin(), address.host.end(), names_a_host))
    return not_an_address(text, "a host's name has only letters, digits, '.', '-' and '_'");
  if (!port.empty()) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
    if (error != std::errc() || end != port.data() + port.size() || address.port < 1 || address.port > 65535)
      return not_an_address(text, "'" + std::string(port) + "' is not a port");
  }
  return address;
}

}  // namespace lathe::http
