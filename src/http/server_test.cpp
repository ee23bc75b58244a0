#include "http/server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cctype>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <vector>

#include "http/router.h"

namespace lathe::http {
namespace {

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

// A connection on which a test writes what it likes.
class Connection {
 public:
  explicit Connection(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
    ::inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    const timeval patience{.tv_sec = 5};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  ~Connection() { ::close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void send(const std::string& text) {
    EXPECT_EQ(::send(socket_, text.data(), text.size(), MSG_NOSIGNAL), std::ssize(text));
  }

  // The next answer; status 0 if there is none before the connection ends.
  Reply read() {
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!receive()) return {};
    }
    Reply reply{.status = std::stoi(buffer_.substr(9, 3))};
    for (size_t at = buffer_.find("\r\n") + 2; at < end; at = buffer_.find("\r\n", at) + 2) {
      const size_t colon = buffer_.find(": ", at), line = buffer_.find("\r\n", at);
      std::string name = buffer_.substr(at, colon - at);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      reply.headers[name] = buffer_.substr(colon + 2, line - colon - 2);
    }
    const size_t size = reply.headers.contains("content-length") ? std::stoul(reply.headers["content-length"]) : 0;
    while (buffer_.size() < end + 4 + size && receive()) {
    }
    reply.body = buffer_.substr(end + 4, size);
    buffer_.erase(0, end + 4 + size);
    return reply;
  }

  // All until the server ends the connection.
  std::string read_all() {
    while (receive()) {
    }
    return buffer_;
  }

 private:
  bool receive() {
    char piece[4096];
    const ssize_t count = ::recv(socket_, piece, sizeof piece, 0);
    if (count > 0) buffer_.append(piece, static_cast<size_t>(count));
    return count > 0;
  }

  int socket_;
  std::string buffer_;
};

// A server with one route of each kind, which count how often they were reached.
class ServerTest : public testing::Test {
 protected:
  void start(Options options = {}) {
    start_with([](Server&) {}, std::move(options));
  }
  void start_with(const std::function<void(Server&)>& add_routes, Options options = {}) {
    options.port = 0;
    options.threads = 4;
    server_ = std::make_unique<Server>(std::move(options));
    server_->route("POST", "/v1/learn", [this](const Request& request) {
      ++taught_;
      return Response{.body = "{\"got\": " + std::to_string(request.body.size()) + "}"};
    });
    server_->route("GET", "/v1/kept", [this](const Request&) {
      ++told_;
      return Response{.body = "{\"secret\": 1}"};
    });
    server_->route("GET", "/healthz", [](const Request&) { return Response{.body = "{}"}; });
    server_->route("DELETE", "/v1/learn/*", [this](const Request& request) {
      ++taught_;
      return Response{.body = "{\"deleted\": \"" + request.argument + "\"}"};
    });
    add_routes(*server_);
    const Status started = server_->start();
    ASSERT_TRUE(started.ok()) << started.error().message;
  }

  std::string own_host() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  Reply ask(const std::string& first_line, const std::string& headers, const std::string& body = "") {
    Connection connection(server_->port());
    connection.send(first_line + " HTTP/1.1\r\n" + headers +
                    (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body);
    return connection.read();
  }
  Reply learn(const std::string& headers, const std::string& body = "{}") {
    return ask("POST /v1/learn", headers, body);
  }

  std::unique_ptr<Server> server_;
  std::atomic<int> taught_{0}, told_{0};
};

const std::string kJson = "Content-Type: application/json\r\n";

TEST_F(ServerTest, TakesWhatProgramsSend) {
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  EXPECT_EQ(learn(host + kJson).status, 200);
  EXPECT_EQ(learn(host + "content-type: Application/JSON; charset=utf-8\r\n").status, 200);
  EXPECT_EQ(learn("Host: localhost\r\n" + kJson).status, 200);
  EXPECT_EQ(learn("Host: [::1]:80\r\n" + kJson).status, 200);
  EXPECT_EQ(learn("Host: LOCALHOST.:9000\r\n" + kJson).status, 200) << "a tunnel's port, a full name";
  EXPECT_EQ(taught_, 5);
  EXPECT_EQ(ask("GET /v1/kept", host).status, 200);
  const Reply deleted = ask("DELETE /v1/learn/x", host);
  EXPECT_EQ(deleted.status, 200);
  EXPECT_EQ(deleted.body, "{\"deleted\": \"x\"}");
}

TEST_F(ServerTest, AStateChangingRequestIsJson) {
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  for (const char* type :
       {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
        "text/plain; application/json", "text/plain;charset=application/json", "application/jsonp", ""}) {
    const Reply reply = learn(host + "Content-Type: " + type + "\r\n");
    EXPECT_EQ(reply.status, 415) << type;
    EXPECT_NE(reply.body.find("application/json"), std::string::npos) << reply.body;
  }
  EXPECT_EQ(learn(host).status, 415);
  EXPECT_EQ(learn(host, "").status, 415) << "a request without a body too";
  EXPECT_EQ(learn(host + "Content-Type: text/plain\r\n" + kJson).status, 415) << "which of the two is meant?";
  EXPECT_EQ(taught_, 0);
}

TEST_F(ServerTest, AForeignNameIsRefused) {  // DNS rebinding: the page's own name points to this machine
  start();
  for (const char* host : {"evil.example", "evil.example:8077", "localhost.evil.example", "127.0.0.1.evil.example",
                           "10.0.0.5:8077", "[fe80::1]", "localhost@evil.example"}) {
    const std::string header = std::string("Host: ") + host + "\r\n";
    const Reply taught = learn(header + kJson);
    EXPECT_EQ(taught.status, 403) << host << taught.body;
    const Reply told = ask("GET /v1/kept", header);
    EXPECT_EQ(told.status, 403) << host;
    EXPECT_EQ(told.body.find("secret"), std::string::npos);
    EXPECT_EQ(ask("GET /healthz", header).status, 403) << "it tells the model's name";
  }
  EXPECT_NE(learn("Host: evil.example:1\r\n" + kJson).body.find("--allow-host evil.example"), std::string::npos);
  EXPECT_EQ(learn(kJson).status, 400) << "HTTP/1.1 has the header";
  EXPECT_EQ(learn("Host: \r\n" + kJson).status, 400);
  EXPECT_EQ(learn("Host: localhost\r\nHost: evil.example\r\n" + kJson).status, 400);
  EXPECT_EQ(taught_ + told_, 0);
}

TEST_F(ServerTest, FurtherNamesAreAllowedByName) {
  start({.allowed_hosts = {"Lathe.Example:443"}});
  EXPECT_EQ(learn("Host: lathe.example\r\n" + kJson).status, 200);
  EXPECT_EQ(learn("Host: other.example\r\n" + kJson).status, 403);
}

TEST_F(ServerTest, AServerForEverybodyKnowsItsAddresses) {
  start({.host = "0.0.0.0", .api_key = "k"});
  const std::string rest = "Authorization: Bearer k\r\n" + kJson;
  EXPECT_EQ(learn("Host: 10.1.2.3:8077\r\n" + rest).status, 200) << "an address that a router gave it";
  EXPECT_EQ(learn("Host: localhost\r\n" + rest).status, 200);
  EXPECT_EQ(learn("Host: evil.example\r\n" + rest).status, 403);
}

TEST_F(ServerTest, AForeignPageIsRefused) {
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  for (const char* origin :
       {"https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1", "http://", "x"}) {
    const std::string headers = host + "Origin: " + origin + "\r\n";
    EXPECT_EQ(learn(headers + kJson).status, 403) << origin;
    const Reply told = ask("GET /v1/kept", headers);
    EXPECT_EQ(told.status, 403) << origin;
    EXPECT_FALSE(told.headers.contains("access-control-allow-origin"));
    EXPECT_EQ(ask("GET /healthz", headers).status, 403);
    EXPECT_EQ(ask("DELETE /v1/learn/x", headers).status, 403);
    EXPECT_EQ(ask("OPTIONS /v1/learn", headers + "Access-Control-Request-Method: POST\r\n").status, 403);
  }
  EXPECT_EQ(learn(host + "Origin: http://" + own_host() + "\r\nOrigin: https://evil.example\r\n" + kJson).status, 403);
  EXPECT_EQ(taught_ + told_, 0);
  EXPECT_EQ(learn(host + "Origin: http://" + own_host() + "\r\n" + kJson).status, 200) << "a page of the server's own";
}

TEST_F(ServerTest, APageThatSendsNoOriginIsRefused) {  // images, scripts, frames
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  for (const char* site : {"cross-site", "same-site"}) {
    const std::string from = host + "Sec-Fetch-Site: " + site + "\r\n";
    EXPECT_EQ(ask("GET /v1/kept", from + "Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n").status, 403);
    EXPECT_EQ(ask("GET /v1/kept", from + "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n").status, 403);
    EXPECT_EQ(learn(from + "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n" + kJson).status, 403);
  }
  EXPECT_EQ(taught_ + told_, 0);
  EXPECT_EQ(
      ask("GET /v1/kept", host + "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n")
          .status,
      200)
      << "typed into the browser";
}

TEST_F(ServerTest, AllowedPagesMayAskAndRead) {
  start({.api_key = "k", .allowed_origins = {"https://Page.example/", "http://localhost:3000"}});
  const std::string host = "Host: " + own_host() + "\r\n", page = "Origin: https://page.example\r\n";
  const Reply preflight =
      ask("OPTIONS /v1/learn", host + page +
                                   "Access-Control-Request-Method: POST\r\n"
                                   "Access-Control-Request-Headers: authorization,x-stainless-os\r\n"
                                   "Access-Control-Request-Private-Network: true\r\n");
  EXPECT_EQ(preflight.status, 204) << "it carries no key";
  auto allowed = preflight.headers;
  EXPECT_EQ(allowed["access-control-allow-origin"], "https://page.example");
  EXPECT_EQ(allowed["access-control-allow-headers"], "authorization,x-stainless-os");
  EXPECT_NE(allowed["access-control-allow-methods"].find("POST"), std::string::npos);
  EXPECT_EQ(allowed["access-control-allow-private-network"], "true");
  EXPECT_EQ(allowed["vary"], "Origin");
  EXPECT_FALSE(allowed.contains("access-control-allow-credentials"));

  auto answer = learn(host + page + kJson + "Authorization: Bearer k\r\n");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers["access-control-allow-origin"], "https://page.example");
  auto refused = learn(host + page + kJson);
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.headers["access-control-allow-origin"], "https://page.example") << "or the page cannot tell why";
  EXPECT_EQ(learn(host + "Origin: https://page.example.evil\r\n" + kJson + "Authorization: Bearer k\r\n").status, 403);
  EXPECT_EQ(ask("OPTIONS /v1/learn", host + "Origin: http://page.example\r\n").status, 403) << "another scheme";
}

TEST_F(ServerTest, AnyPageIfSoAsked) {
  start({.allowed_origins = {"*"}});
  const std::string host = "Host: " + own_host() + "\r\n";
  auto reply = learn(host + "Origin: https://any.example\r\n" + kJson);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers["access-control-allow-origin"], "https://any.example");
  EXPECT_EQ(learn("Host: evil.example\r\nOrigin: https://any.example\r\n" + kJson).status, 403)
      << "its name is another matter";
}

// What a page puts into the body of a request that is refused must not be taken for the next request. The library reads
// pieces of 4 KiB and forgets the rest of a piece, so the inner request begins with the second one.
TEST_F(ServerTest, TheBodyOfARefusedRequestIsNoRequest) {
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  const std::string inner = "POST /v1/learn HTTP/1.1\r\n" + host + kJson + "Content-Length: 2\r\n\r\n{}";
  const struct {
    std::string head;
    int status;
  } cases[] = {{"POST /v1/learn HTTP/1.1\r\nHost: evil.example\r\n" + kJson, 403},
               {"POST /v1/learn HTTP/1.1\r\n" + host + "Origin: null\r\n" + kJson, 403},
               {"POST /v1/learn HTTP/1.1\r\n" + host + "Content-Type: text/plain\r\n", 415},
               {"POST /v1/learn HTTP/1.1\r\n" + host + "Content-Type: multipart/form-data; boundary=x\r\n", 415},
               {"POST /v1/nothing HTTP/1.1\r\n" + host + "Content-Type: text/plain\r\n", 415},
               {"PUT /v1/learn HTTP/1.1\r\n" + host + kJson, 405},
               {"GET /v1/kept HTTP/1.1\r\n" + host, 400},
               {"OPTIONS /v1/learn HTTP/1.1\r\n" + host, 400},
               {"DELETE /v1/learn/x HTTP/1.1\r\n" + host, 400}};
  for (const auto& [head, status] : cases) {
    constexpr size_t kPiece = 4096;
    std::string request = head + "Content-Length: ", rest = "0000\r\n\r\n";
    const std::string padding(kPiece - request.size() - rest.size(), 'x');
    rest.replace(0, 4, std::to_string(padding.size() + inner.size()));
    Connection connection(server_->port());
    connection.send(request + rest + padding + inner);
    EXPECT_EQ(connection.read().status, status) << head;
    EXPECT_EQ(connection.read().status, 0) << head;
    EXPECT_EQ(taught_, 0) << head;
  }
}

TEST_F(ServerTest, ABodyOverTheLimitEndsTheConnection) {
  Options options;
  options.max_body_bytes = 1024;
  start(options);
  const std::string head = "POST /v1/learn HTTP/1.1\r\nHost: " + own_host() + "\r\n" + kJson;
  const std::string inner = head + "Content-Length: 2\r\n\r\n{}";
  // Announced, and in chunks, whose sum nobody announced.
  for (const std::string& start_of :
       {head + "Content-Length: 8000\r\n\r\n", head + "Transfer-Encoding: chunked\r\n\r\nffff\r\n"}) {
    Connection connection(server_->port());
    connection.send(start_of + std::string(4096 - start_of.size(), 'x') + inner);
    EXPECT_EQ(connection.read().status, 413) << start_of;
    EXPECT_EQ(connection.read().status, 0) << start_of;
    EXPECT_EQ(taught_, 0) << start_of;
  }
}

TEST_F(ServerTest, AKeyIsAskedForEverywhereButHealth) {
  start({.api_key = "secret"});
  const std::string host = "Host: " + own_host() + "\r\n";
  EXPECT_EQ(ask("GET /v1/kept", host).status, 401);
  EXPECT_EQ(learn(host + kJson).status, 401);
  EXPECT_EQ(learn(host + kJson + "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(learn(host + kJson + "Authorization: Bearer secretsecret\r\n").status, 401);
  EXPECT_EQ(ask("GET /v1/nothing", host).status, 401) << "what there is, is not told either";
  EXPECT_EQ(taught_ + told_, 0);
  EXPECT_EQ(ask("GET /healthz", host).status, 200);
  EXPECT_EQ(learn(host + kJson + "Authorization: Bearer secret\r\n").status, 200);
}

TEST_F(ServerTest, AConnectionIsUsedAgain) {
  start();
  Connection connection(server_->port());
  for (int i = 0; i < 3; ++i) {
    connection.send("POST /v1/learn HTTP/1.1\r\nHost: " + own_host() + "\r\n" + kJson + "Content-Length: 2\r\n\r\n{}");
    EXPECT_EQ(connection.read().status, 200);
  }
  EXPECT_EQ(taught_, 3);
}

// Half a request holds a connection for as long as its sender likes; so do idle ones. The server must stay answerable.
TEST_F(ServerTest, HealthIsAnsweredWhileOthersHoldTheServer) {
  start();  // four places
  std::vector<std::unique_ptr<Connection>> slow;
  for (int i = 0; i < 20; ++i) {
    slow.push_back(std::make_unique<Connection>(server_->port()));
    slow.back()->send("POST /v1/learn HTTP/1.1\r\nHost: " + own_host() + "\r\n" + kJson +
                      "Content-Length: 100\r\n\r\n{");
  }
  EXPECT_EQ(ask("GET /healthz", "Host: " + own_host() + "\r\n").status, 200);
  EXPECT_EQ(learn("Host: " + own_host() + "\r\n" + kJson).status, 200) << "they have no place before they are read";
}

TEST_F(ServerTest, HealthIsAnsweredWhileAllPlacesAreTaken) {
  std::promise<void> let_go;
  const std::shared_future<void> until = let_go.get_future().share();
  start_with([&](Server& server) {
    server.route("POST", "/v1/wait", [until](const Request&) {
      return Response{.stream = [until](const SendEvent& send) {
        send("begun");
        until.wait();
      }};
    });
  });
  const std::string host = "Host: " + own_host() + "\r\n";
  std::vector<std::unique_ptr<Connection>> streams;
  for (int i = 0; i < 5; ++i) {
    streams.push_back(std::make_unique<Connection>(server_->port()));
    streams.back()->send("POST /v1/wait HTTP/1.1\r\n" + host + kJson + "Content-Length: 2\r\n\r\n{}");
    if (i == 4) continue;
    EXPECT_EQ(streams.back()->read().status, 200) << "a stream under way";
  }
  EXPECT_EQ(ask("GET /healthz", host).status, 200);
  EXPECT_EQ(ask("DELETE /v1/learn/x", host).status, 200);
  EXPECT_EQ(taught_, 1);
  let_go.set_value();
  EXPECT_EQ(streams.back()->read().status, 200) << "the fifth has a place now";
}

TEST_F(ServerTest, AddressesAsPeopleWriteThem) {
  start();
  const std::string host = "Host: " + own_host() + "\r\n";
  for (const char* path : {"/v1/kept", "/kept", "/v1/v1/kept", "//v1/kept", "/v1//kept/", "/v1/kept/"})
    EXPECT_EQ(ask(std::string("GET ") + path, host).status, 200) << path;
  for (const char* path : {"/v1", "/", "/v2/kept", "/v1/kept/more", "/v1/healthz"})
    EXPECT_EQ(ask(std::string("GET ") + path, host).status, 404) << path;
  EXPECT_NE(ask("GET /v2/kept", host).body.find("/v1"), std::string::npos);
  Reply wrong_method = ask("POST /v1/kept", host + kJson, "{}");
  EXPECT_EQ(wrong_method.status, 405);
  EXPECT_EQ(wrong_method.headers["allow"], "GET");
  EXPECT_EQ(ask("PUT /v1/learn", host + kJson, "{}").status, 405);
  EXPECT_EQ(taught_, 0);
}

TEST(RouterTest, ArgumentsMayHaveSlashes) {
  Router router;
  router.add({"GET", "/v1/models", {}});
  router.add({"GET", "/v1/models/**", {}});
  router.add({"DELETE", "/v1/learn/*", {}});
  EXPECT_EQ(router.find("GET", "/v1/models/acme/lathe-7b").argument, "acme/lathe-7b");
  EXPECT_EQ(router.find("GET", "/models/acme/lathe-7b/").argument, "acme/lathe-7b");
  EXPECT_EQ(router.find("GET", "/v1/models/v1").argument, "v1");
  EXPECT_EQ(router.find("HEAD", "/v1/models").route->path, "/v1/models");
  EXPECT_EQ(router.find("DELETE", "/v1/learn/a").argument, "a");
  EXPECT_EQ(router.find("DELETE", "/v1/learn/a/b").route, nullptr);
  EXPECT_EQ(router.find("DELETE", "/v1/learn").route, nullptr);
  EXPECT_EQ(router.find("GET", "/v1/learn/a").methods, std::vector<std::string>{"DELETE"});
}

// HTTP/1.0 knows no chunks: what is sent as it is made ends with the connection, also one that asked to be kept.
TEST_F(ServerTest, AnOldClientReadsToTheEnd) {
  start_with([](Server& server) {
    server.route("POST", "/v1/stream", [](const Request&) {
      return Response{.stream = [](const SendEvent& send) {
        send("one");
        send("[DONE]");
      }};
    });
  });
  for (const char* more : {"", "Connection: keep-alive\r\n"}) {
    Connection connection(server_->port());
    connection.send("POST /v1/stream HTTP/1.0\r\n" + kJson + more + "Content-Length: 2\r\n\r\n{}");
    const std::string all = connection.read_all();
    EXPECT_EQ(all.find("chunked"), std::string::npos) << all;
    EXPECT_TRUE(all.ends_with("\r\n\r\ndata: one\n\ndata: [DONE]\n\n")) << all;
  }
  Connection plain(server_->port());
  plain.send("GET /v1/kept HTTP/1.0\r\n\r\n");
  EXPECT_EQ(plain.read().status, 200);
}

TEST(ServerStart, ListensOnIpv6) {
  for (const char* host : {"::1", "[::1]"}) {
    Server server({.host = host, .port = 0});
    const Status started = server.start();
    ASSERT_TRUE(started.ok()) << host << ": " << started.error().message;
    EXPECT_GT(server.port(), 0);
  }
}

TEST(ServerStart, SaysWhatIsWrong) {
  const auto error = [](Options options) {
    options.port = 0;
    Server server(std::move(options));
    const Status started = server.start();
    return started.ok() ? std::string() : started.error().message;
  };
  EXPECT_NE(error({.host = "0.0.0.0"}).find("API key"), std::string::npos);
  EXPECT_NE(error({.host = "::"}).find("API key"), std::string::npos);
  EXPECT_NE(error({.host = "no-such-host.invalid", .api_key = "k"}).find("no-such-host.invalid"), std::string::npos);
  EXPECT_NE(error({.allowed_origins = {"page.example"}}).find("page.example"), std::string::npos);
  EXPECT_NE(error({.allowed_origins = {"https://page.example/app"}}).find("origin"), std::string::npos);
}

}  // namespace
}  // namespace lathe::http
