// Against the server of this module. The real program as a proxy for a server that is not ours:
// tests/e2e/test_proxy.py.
#include "http/exchange.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>

namespace lathe::http {
namespace {

using namespace std::chrono_literals;

const Exchange::Wanted kAlways = [] { return true; };

// Waits up to ten seconds.
template <class Condition>
bool comes_true(const Condition& condition) {
  for (int i = 0; i < 1000 && !condition(); ++i) std::this_thread::sleep_for(10ms);
  return condition();
}

class ExchangeTest : public ::testing::Test {
 protected:
  // Serves `handler` at POST /x.
  void serve(Handler handler) {
    server_.route("POST", "/x", std::move(handler));
    ASSERT_TRUE(server_.start().ok());
  }
  std::unique_ptr<Exchange> ask(const std::string& body = "{}") const {
    auto exchange = Exchange::start({.url = "http://127.0.0.1:" + std::to_string(server_.port()),
                                     .method = "POST",
                                     .path = "/x",
                                     .body = body,
                                     .headers = {{"Content-Type", "application/json"}, {"X-Asked", "yes"}}});
    EXPECT_TRUE(exchange.ok());
    return std::move(exchange).value();
  }

  Server server_{{.port = 0}};
};

std::string rest(Exchange& exchange) {
  std::string body;
  for (;;) {
    const auto piece = exchange.next(kAlways);
    if (!piece.ok()) return body + "|" + piece.error().message;
    if (piece->empty()) return body;
    body += *piece;
  }
}

TEST_F(ExchangeTest, BringsStatusHeadersAndBody) {
  serve([](const Request& request) {
    for (const auto& [name, value] : request.headers) {
      if (name == "X-Asked")
        return Response{.status = 418, .body = request.body + value, .headers = {{"X-Said", "this"}}};
    }
    return Response{.status = 500};
  });
  const auto exchange = ask("[1]");
  const auto head = exchange->head(kAlways);
  ASSERT_TRUE(head.ok()) << head.error().message;
  EXPECT_EQ(head->status, 418);
  EXPECT_NE(
      std::find(head->headers.begin(), head->headers.end(), std::pair<std::string, std::string>("X-Said", "this")),
      head->headers.end());
  EXPECT_EQ(rest(*exchange), "[1]yes");
}

TEST_F(ExchangeTest, BringsAPieceBeforeTheNextOneExists) {
  std::atomic<bool> go = false;
  serve([&](const Request&) {
    return Response{.content_type = "text/plain", .pieces = [&](const SendPiece& send) {
                      return send("one") && comes_true([&] { return go.load(); }) && send("two");
                    }};
  });
  const auto exchange = ask();
  ASSERT_TRUE(exchange->head(kAlways).ok());
  EXPECT_EQ(exchange->next(kAlways).value(), "one");
  go = true;
  EXPECT_EQ(rest(*exchange), "two");
}

TEST_F(ExchangeTest, TellsABodyThatBreaksOff) {
  serve([](const Request&) {
    return Response{.content_type = "text/plain",
                    .pieces = [](const SendPiece& send) { return send("half") && false; }};
  });
  const auto exchange = ask();
  ASSERT_TRUE(exchange->head(kAlways).ok());
  const std::string body = rest(*exchange);
  EXPECT_TRUE(body.starts_with("half|the answer of http://127.0.0.1:")) << body;
}

TEST_F(ExchangeTest, WhatAnAnswerThrowsBreaksItOffAndTheServerContinues) {
  std::atomic<int> asked{0};
  serve([&](const Request& request) {
    const int turn = asked++;
    if (turn == 3) return Response{.body = "well"};
    const auto fail = []() -> bool { throw std::bad_alloc(); };
    if (turn == 0) return Response{.stream = [=](const auto& send) { (void)(send("a") && fail()); }};
    if (turn == 1) return Response{.pieces = [=](const auto& send) { return send("a") && fail(); }};
    return Response{.deferred = [=](const auto&) -> Result<std::string> { return fail() ? request.body : ""; }};
  });
  for (const std::string before : {"data: a\n\n", "a", ""}) {
    const std::string got = rest(*ask());
    EXPECT_EQ(got.substr(0, got.find('|')), before);
    EXPECT_NE(got.find("broke off"), std::string::npos) << got;
  }
  EXPECT_EQ(rest(*ask()), "well");
}

TEST_F(ExchangeTest, GivesUpBeforeTheAnswerAndTheServerNotices) {
  std::atomic<bool> entered = false, left = false;
  serve([&](const Request& request) {
    entered = true;
    left = comes_true([&] { return !request.connected(); });
    return Response{};
  });
  {
    const auto exchange = ask();
    const auto head = exchange->head([&] { return !entered; });
    ASSERT_FALSE(head.ok());
    EXPECT_EQ(head.error().code, Code::kCancelled);
    EXPECT_FALSE(left);
  }
  EXPECT_TRUE(comes_true([&] { return left.load(); }));
}

TEST_F(ExchangeTest, AClientThatWaitsIsConnected) {
  serve([](const Request& request) { return Response{.body = request.connected() ? "here" : "gone"}; });
  const auto exchange = ask();
  ASSERT_TRUE(exchange->head(kAlways).ok());
  EXPECT_EQ(rest(*exchange), "here");
}

TEST_F(ExchangeTest, GivesUpInTheBodyAndTheServerNotices) {
  std::atomic<bool> left = false;
  serve([&](const Request&) {
    return Response{.content_type = "text/plain", .pieces = [&](const SendPiece& send) {
                      left = comes_true([&] { return !send("x"); });
                      return false;
                    }};
  });
  {
    const auto exchange = ask();
    ASSERT_TRUE(exchange->head(kAlways).ok());
    ASSERT_TRUE(exchange->next(kAlways).ok());
  }
  EXPECT_TRUE(comes_true([&] { return left.load(); }));
}

TEST_F(ExchangeTest, ASlowOwnerMakesTheServerWait) {
  constexpr size_t kPieces = 512;
  const std::string piece(64 << 10, 'x');
  std::atomic<size_t> sent = 0;
  serve([&](const Request&) {
    return Response{.content_type = "text/plain", .pieces = [&](const SendPiece& send) {
                      while (sent < kPieces && send(piece)) ++sent;
                      return sent == kPieces;
                    }};
  });
  const auto exchange = ask();
  ASSERT_TRUE(exchange->head(kAlways).ok());
  size_t before = 0;
  while (before != sent || before == 0) {  // until the server stands still
    before = sent;
    std::this_thread::sleep_for(300ms);
  }
  EXPECT_LT(sent, kPieces) << "32 MiB wait nowhere";
  EXPECT_EQ(rest(*exchange).size(), kPieces * piece.size());
}

TEST(Exchange, NamesAServerThatIsNotThere) {
  const auto exchange = Exchange::start({.url = "http://127.0.0.1:1", .method = "GET", .path = "/"});
  ASSERT_TRUE(exchange.ok());
  const auto head = (*exchange)->head(kAlways);
  ASSERT_FALSE(head.ok());
  EXPECT_EQ(head.error().code, Code::kUnavailable);
  EXPECT_NE(head.error().message.find("http://127.0.0.1:1"), std::string::npos);
  EXPECT_EQ(Exchange::start({.url = "ftp://a"}).error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace lathe::http
