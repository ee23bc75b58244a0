#include "http/address.h"

#include <gtest/gtest.h>

namespace lathe::http {
namespace {

TEST(Address, ReadsWhatPeopleWrite) {
  const struct {
    const char *text, *host;
    int port;
    const char* url;
  } cases[] = {
      {"http://127.0.0.1:8077", "127.0.0.1", 8077, "http://127.0.0.1:8077"},
      {"http://127.0.0.1:8077/", "127.0.0.1", 8077, "http://127.0.0.1:8077"},
      {"http://127.0.0.1:8077/v1", "127.0.0.1", 8077, "http://127.0.0.1:8077"},
      {"http://127.0.0.1:8077/v1/", "127.0.0.1", 8077, "http://127.0.0.1:8077"},
      {"http://box//v1//", "box", 80, "http://box:80"},
      {"gpu-box.lan:9000", "gpu-box.lan", 9000, "http://gpu-box.lan:9000"},
      {"localhost", "localhost", 80, "http://localhost:80"},
      {"http://[::1]:8077", "::1", 8077, "http://[::1]:8077"},
      {"[fe80::1]", "fe80::1", 80, "http://[fe80::1]:80"},
  };
  for (const auto& c : cases) {
    const auto address = parse_address(c.text);
    ASSERT_TRUE(address.ok()) << c.text << ": " << address.error().message;
    EXPECT_EQ(address->host, c.host) << c.text;
    EXPECT_EQ(address->port, c.port) << c.text;
    EXPECT_EQ(address->url(), c.url) << c.text;
  }
}

TEST(Address, SaysWhatIsWrong) {
  const struct {
    const char *text, *why;
  } cases[] = {
      {"", "no host"},
      {"http://", "no host"},
      {"http://:8077", "no host"},
      {"https://box:8077", "https"},
      {"ftp://box", "another scheme"},
      {"http://box:8077/v1/chat", "a path"},
      {"http://box:8077?x", "a path"},
      {"http://key@box:8077", "--api-key"},
      {"http://box:", "port is empty"},
      {"http://box:99999", "'99999' is not a port"},
      {"http://box:0", "'0' is not a port"},
      {"http://box:80x", "'80x' is not a port"},
      {"http://::1:8077", "in brackets"},
      {"http://[::1", "not closed"},
      {"http://[::1]8077", "may follow the bracket"},
      {"http://my box:8077", "letters"},
  };
  for (const auto& c : cases) {
    const auto address = parse_address(c.text);
    ASSERT_FALSE(address.ok()) << c.text;
    EXPECT_EQ(address.error().code, Code::kInvalidArgument);
    EXPECT_NE(address.error().message.find(c.why), std::string::npos) << c.text << ": " << address.error().message;
  }
}

}  // namespace
}  // namespace lathe::http
