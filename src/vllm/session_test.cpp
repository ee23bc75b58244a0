// The trainer's side against a socket that answers what the test says. The engine's side has tests of its own
// (python/lathe_vllm/tests), and both meet in tests/e2e/test_attach.py.
#include "vllm/session.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace lathe::vllm {
namespace {

using Json = nlohmann::json;

class Listener {
 public:
  Listener() : folder_(std::filesystem::temp_directory_path() / ("session_test_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "socket";
    std::filesystem::remove(path_);
    socket_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ::chmod(path_.c_str(), 0600);
    EXPECT_EQ(::listen(socket_, 1), 0);
  }
  ~Listener() {
    if (thread_.joinable()) thread_.join();
    ::close(socket_);
    std::filesystem::remove_all(folder_);
  }

  // Answers each line with the next of `replies`, then closes; keeps what was asked.
  void answer(std::vector<std::string> replies) {
    thread_ = std::thread([this, replies = std::move(replies)] {
      const int peer = ::accept(socket_, nullptr, nullptr);
      for (const std::string& reply : replies) {
        std::string line;
        for (char c = 0; ::read(peer, &c, 1) == 1 && c != '\n';) line += c;
        asked.push_back(Json::parse(line, nullptr, false));
        EXPECT_EQ(::write(peer, reply.data(), reply.size()), static_cast<ssize_t>(reply.size()));
      }
      ::close(peer);
    });
  }
  void join() { thread_.join(); }

  const std::filesystem::path& path() const { return path_; }
  std::vector<Json> asked;

 private:
  std::filesystem::path folder_, path_;
  int socket_;
  std::thread thread_;
};

std::string greeting() {
  std::ifstream file(std::string(LATHE_SOURCE_DIR) + "/src/vllm/fuzz/seeds/manifest/shared.json");
  const Json rank = Json::parse(file);
  return Json{{"ok", true}, {"manifest", {{"ranks", {rank}}}}, {"version", "4"}, {"as_on_disk", false}}.dump() + "\n";
}

TEST(Session, AnUpdate) {
  Listener listener;
  listener.answer({greeting(), "{\"ok\":true}\n", "{\"ok\":true}\n", "{\"ok\":true,\"seconds\":0.1}\n"});
  auto session = Session::connect(listener.path());
  ASSERT_TRUE(session.ok()) << session.error().message;
  const auto hello = session->hello();
  ASSERT_TRUE(hello.ok()) << hello.error().message;
  EXPECT_EQ(hello->ranks.at(0).tensors.size(), 3u);
  EXPECT_EQ(hello->version, "4");
  EXPECT_FALSE(hello->as_on_disk);
  EXPECT_TRUE(session->begin(std::chrono::seconds(9), true).ok());
  EXPECT_TRUE(session->write().ok());
  EXPECT_TRUE(session->end(5).ok());
  listener.join();
  EXPECT_TRUE(session->wait_closed(std::chrono::seconds(5)));
  EXPECT_EQ(listener.asked.at(0), (Json{{"op", "hello"}, {"protocol", 1}}));
  EXPECT_EQ(listener.asked.at(1), (Json{{"op", "begin"}, {"lease_seconds", 9}, {"pause", true}}));
  EXPECT_EQ(listener.asked.at(2), (Json{{"op", "write"}}));
  EXPECT_EQ(listener.asked.at(3), (Json{{"op", "end"}, {"version", "5"}}));
}

TEST(Session, ARefusalSaysWhy) {
  Listener listener;
  listener.answer({"{\"ok\":false,\"error\":\"process 12 is teaching this server already\"}\n"});
  auto session = Session::connect(listener.path());
  ASSERT_TRUE(session.ok());
  const auto hello = session->hello();
  ASSERT_FALSE(hello.ok());
  EXPECT_NE(hello.error().message.find("process 12 is teaching"), std::string::npos);
}

TEST(Session, AnEngineThatIsGoneIsUnavailable) {
  Listener listener;
  listener.answer({});
  auto session = Session::connect(listener.path());
  ASSERT_TRUE(session.ok());
  const Status begun = session->begin(std::chrono::seconds(1), true);
  ASSERT_FALSE(begun.ok());
  EXPECT_EQ(begun.error().code, Code::kUnavailable);
}

TEST(Session, AStrangerIsRefused) {
  for (const char* reply : {"HTTP/1.1 400 Bad Request\n", "{\"ok\":1}\n", "[]\n", "{\"ok\":true}\n"}) {
    Listener listener;
    listener.answer({reply});
    auto session = Session::connect(listener.path());
    ASSERT_TRUE(session.ok());
    EXPECT_FALSE(session->hello().ok()) << reply;
  }
}

TEST(Session, OnlyAPrivateSocketIsTrusted) {
  Listener listener;
  ::chmod(listener.path().c_str(), 0660);
  const auto open = Session::connect(listener.path());
  ASSERT_FALSE(open.ok());
  EXPECT_NE(open.error().message.find("0600"), std::string::npos);
  EXPECT_FALSE(Session::connect("/etc/passwd").ok());
  const auto nothing = Session::connect(listener.path().string() + "x");
  ASSERT_FALSE(nothing.ok());
  EXPECT_NE(nothing.error().message.find("VLLM_PLUGINS=lathe"), std::string::npos);
}

TEST(Session, AnotherUsersSocketIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a socket away";
  Listener listener;
  ASSERT_EQ(::chown(listener.path().c_str(), 65534, 65534), 0);
  const auto theirs = Session::connect(listener.path());
  ASSERT_FALSE(theirs.ok());
  EXPECT_NE(theirs.error().message.find("belongs to user 65534"), std::string::npos);
}

}  // namespace
}  // namespace lathe::vllm
