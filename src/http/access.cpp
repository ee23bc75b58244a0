#include "http/access.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

namespace lathe::http {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// The name or address in "host:port" or "[address]:port", as it is compared: lower case, no brackets, no final dot.
std::string host_of(std::string_view authority) {
  std::string_view host = authority;
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') - 1);
  } else if (const size_t colon = host.find(':'); colon != std::string_view::npos && colon == host.rfind(':')) {
    host = host.substr(0, colon);
  }
  if (host.ends_with('.')) host.remove_suffix(1);
  return lower(host);
}

// The bytes of an IP address, of 4 or 16; empty if it is none.
std::string address_bytes(const std::string& text) {
  std::array<char, sizeof(in6_addr)> bytes{};
  if (::inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return {bytes.data(), sizeof(in_addr)};
  if (::inet_pton(AF_INET6, text.c_str(), bytes.data()) != 1) return "";
  constexpr std::string_view kMapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);  // an IPv4 address in an IPv6 socket
  const std::string_view all(bytes.data(), bytes.size());
  return std::string(all.starts_with(kMapped) ? all.substr(kMapped.size()) : all);
}

bool is_wildcard(const std::string& host) {
  const std::string bytes = address_bytes(host);
  return !bytes.empty() && bytes.find_first_not_of('\0') == std::string::npos;
}

bool contains(const std::vector<std::string>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

// Takes as long for a wrong key as for a right one.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[b.empty() ? 0 : i % b.size()]);
  return difference == 0;
}

std::string first(const RequestHead& request, const char* name) {
  const auto values = request.header(name);
  return values.empty() ? "" : values.front();
}

// A scheme and an authority with nothing after it.
bool is_origin(const std::string& origin) {
  const size_t scheme = origin.find("://");
  return scheme != std::string::npos && scheme > 0 && scheme + 3 < origin.size() &&
         origin.find_first_of("/?#* ", scheme + 3) == std::string::npos;
}

std::optional<Refusal> refuse_content_type(const RequestHead& request) {
  if (request.method != "POST" && request.method != "PUT" && request.method != "PATCH") return {};
  const auto types = request.header("Content-Type");
  if (types.size() == 1 && lower(trimmed(types[0].substr(0, types[0].find(';')))) == "application/json") return {};
  return Refusal{415, invalid_argument(request.method + " " + request.path + " wants the header 'Content-Type: " +
                                       "application/json'" + (types.empty() ? "" : ", not '" + types[0] + "'"))};
}

}  // namespace

bool is_loopback(const std::string& host) {
  const std::string bytes = address_bytes(host);
  if (bytes.size() == sizeof(in_addr)) return bytes[0] == 127;
  if (bytes.size() == sizeof(in6_addr)) return bytes == address_bytes("::1");
  return host == "localhost";
}

Access::Access(AccessRules rules) : rules_(std::move(rules)) {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) == 0) machine_ = host_of(name.data());
}

Result<Access> Access::create(AccessRules rules) {
  rules.host = host_of(rules.host);
  if (rules.api_key.empty() && !is_loopback(rules.host)) {
    return invalid_argument("binding to " + rules.host +
                            " lets others in: set an API key (LATHE_API_KEY, a configuration file, or --api-key), or "
                            "bind to 127.0.0.1");
  }
  for (std::string& host : rules.allowed_hosts) host = host_of(host);
  for (std::string& origin : rules.allowed_origins) {
    while (origin.ends_with('/')) origin.pop_back();
    origin = lower(origin);
    if (origin != "*" && !is_origin(origin))
      return invalid_argument("'" + origin + "' is no origin of a web page; write it as https://page.example or '*'");
  }
  return Access(std::move(rules));
}

bool Access::knows_host(const std::string& name, const std::string& local_address) const {
  if (name.empty()) return false;
  if (contains(rules_.allowed_hosts, "*") || contains(rules_.allowed_hosts, name) || name == rules_.host) return true;
  // No page can make an address, or a name that this machine resolves by itself, mean another machine than it says.
  const bool everywhere = is_wildcard(rules_.host);
  if (is_loopback(name)) return everywhere || is_loopback(rules_.host);
  if (everywhere && (name == machine_ || name == machine_ + ".local")) return true;
  const std::string address = address_bytes(name);
  return !address.empty() && (everywhere || address == address_bytes(local_address));
}

bool Access::allows_origin(const std::string& origin) const {
  return contains(rules_.allowed_origins, "*") || contains(rules_.allowed_origins, lower(origin));
}

std::optional<Refusal> Access::refuse_host(const RequestHead& request) const {
  const auto hosts = request.header("Host");
  if (hosts.empty() && request.version == "HTTP/1.0") return {};  // no browser
  if (hosts.size() != 1) return Refusal{400, invalid_argument("a request must have exactly one Host header")};
  if (knows_host(host_of(hosts[0]), request.local_address)) return {};
  return Refusal{403, invalid_argument("this server was not started for the name '" + host_of(hosts[0]) +
                                       "'; start it with --allow-host " + host_of(hosts[0]) +
                                       " if it is reached under that name")};
}

std::optional<Refusal> Access::refuse_page(const RequestHead& request) const {
  const auto origins = request.header("Origin");
  if (origins.empty()) {
    // Browsers send none when a page loads an image, a script, a frame. Opening an address in a window is no page's.
    const std::string site = first(request, "Sec-Fetch-Site");
    const bool foreign = !site.empty() && site != "same-origin" && site != "none";
    const bool window =
        first(request, "Sec-Fetch-Mode") == "navigate" && first(request, "Sec-Fetch-Dest") == "document";
    if (!foreign || (window && request.method == "GET") || contains(rules_.allowed_origins, "*")) return {};
    return Refusal{403, invalid_argument("a web page of another site may not use this server")};
  }
  const std::string origin = lower(origins[0]), host = lower(first(request, "Host"));
  const size_t scheme = origin.find("://");
  const bool own =
      origins.size() == 1 && scheme != std::string::npos && !host.empty() && origin.substr(scheme + 3) == host;
  if (own || (origins.size() == 1 && allows_origin(origin))) return {};
  return Refusal{
      403, invalid_argument("web pages of '" + origins[0] + "' may not use this server; start it with --allow-origin " +
                            origins[0] + " if they should")};
}

std::optional<Refusal> Access::refuse_key(const RequestHead& request) const {
  // A preflight carries no key, and gives nothing away; nor does being alive.
  if (rules_.api_key.empty() || request.path == "/healthz" || request.method == "OPTIONS") return {};
  if (equal_in_constant_time(first(request, "Authorization"), "Bearer " + rules_.api_key)) return {};
  return Refusal{401, invalid_argument("missing or wrong API key; send it as 'Authorization: Bearer KEY'")};
}

std::optional<Refusal> Access::refuse(const RequestHead& request) const {
  if (auto refused = refuse_host(request)) return refused;
  if (auto refused = refuse_page(request)) return refused;
  if (auto refused = refuse_key(request)) return refused;
  return refuse_content_type(request);
}

Headers Access::answer_headers(const RequestHead& request) const {
  // Whatever a page does without asking (an image, a script), it must not be given an answer's bytes to probe.
  Headers headers = {{"Cross-Origin-Resource-Policy", "same-origin"}, {"X-Content-Type-Options", "nosniff"}};
  if (rules_.allowed_origins.empty()) return headers;
  headers.emplace_back("Vary", "Origin");
  const std::string origin = first(request, "Origin");
  if (origin.empty() || !allows_origin(origin)) return headers;
  headers.emplace_back("Access-Control-Allow-Origin", origin);
  headers.emplace_back("Access-Control-Expose-Headers", "X-Lathe-Version, Retry-After");
  return headers;
}

Headers Access::preflight_headers(const RequestHead& request) const {
  constexpr const char* kMethods = "GET, HEAD, POST, DELETE, OPTIONS";
  Headers headers = {{"Allow", kMethods}};
  if (const std::string origin = first(request, "Origin"); origin.empty() || !allows_origin(origin)) return headers;
  const std::string asked = first(request, "Access-Control-Request-Headers");  // OpenAI's client sends many of its own
  headers.emplace_back("Access-Control-Allow-Methods", kMethods);
  headers.emplace_back("Access-Control-Allow-Headers", asked.empty() ? "Authorization, Content-Type" : asked);
  headers.emplace_back("Access-Control-Max-Age", "600");
  if (first(request, "Access-Control-Request-Private-Network") == "true")
    headers.emplace_back("Access-Control-Allow-Private-Network", "true");
  return headers;
}

}  // namespace lathe::http
