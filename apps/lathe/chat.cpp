#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "client.h"
#include "commands.h"
#include "line_editor.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string server = "http://127.0.0.1:8077", api_key, system;
  double temperature = 0;
  bool no_history = false;
  int64_t max_tokens = 1024;  // a small model at temperature 0 may repeat itself until its context is full
};

constexpr const char* kHelp =
    "Type a message. Commands:\n"
    "  /fix BETTER ANSWER   teach the model to answer your last message like this\n"
    "  /undo                take the last lesson back; repeated, the one before it\n"
    "  /redo                take the last /undo back\n"
    "  /again               ask your last message again\n"
    "  /new                 start a new conversation\n"
    "  /sync                make what was learned durable now\n"
    "  /quit                leave\n"
    "Arrow keys edit the line and bring back earlier ones. Ctrl-C stops an answer, or drops the line.\n"
    "Pressed twice it leaves, as Ctrl-D does.\n";

std::atomic<bool> stopped{false};

// While it lives, the first Ctrl-C sets `stopped`; a second one ends the program, as it does without this.
class StopOnInterrupt {
 public:
  StopOnInterrupt() {
    stopped = false;
    struct sigaction action {};
    action.sa_handler = [](int) { stopped = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    ::sigaction(SIGINT, &action, &before_);
  }
  ~StopOnInterrupt() { ::sigaction(SIGINT, &before_, nullptr); }
  StopOnInterrupt(const StopOnInterrupt&) = delete;
  StopOnInterrupt& operator=(const StopOnInterrupt&) = delete;

 private:
  struct sigaction before_ {};
};

class Chat {
 public:
  Chat(Client client, const Options& options) : client_(std::move(client)), options_(options) { restart(); }

  // Whether to go on.
  Result<bool> handle(const std::string& line) {
    if (line == "/quit" || line == "/exit") return false;
    if (line == "/help") {
      std::printf("%s", kHelp);
    } else if (line == "/new") {
      restart();
    } else if (line == "/undo") {
      LATHE_TRY(undo());
    } else if (line == "/redo") {
      LATHE_TRY(redo());
    } else if (line == "/again") {
      LATHE_TRY(ask_again());
    } else if (line == "/sync") {
      const Json synced = LATHE_TRY(client_.post("/v1/sync", Json::object()));
      std::printf("version %ld is on disk (%.2f s)\n", static_cast<long>(synced.value("version", 0)),
                  synced.value("seconds", 0.0));
    } else if (line == "/fix" || line.starts_with("/fix ")) {
      LATHE_TRY(fix(line.size() > 5 ? line.substr(5) : ""));
    } else if (line.starts_with("/")) {
      std::printf("unknown command; /help lists them\n");
    } else if (!line.empty()) {
      Json asked = messages_;
      asked.push_back({{"role", "user"}, {"content", line}});
      LATHE_TRY(ask(std::move(asked)));
    }
    return true;
  }

 private:
  void restart() {
    messages_ = Json::array();
    before_fix_.reset();
    undone_fix_.reset();
    if (!options_.system.empty()) messages_.push_back({{"role", "system"}, {"content", options_.system}});
  }

  bool answered() const { return !messages_.empty() && messages_.back()["role"] == "assistant"; }

  Status ask_again() {
    if (!answered()) return invalid_argument("there is no message to ask again");
    Json asked = messages_;
    asked.erase(asked.size() - 1);
    return ask(std::move(asked));
  }

  // Prints the answer as it comes. The conversation stays as it was unless there is one.
  Status ask(Json asked) {
    const StopOnInterrupt interruptible;
    const Json prompt = LATHE_TRY(client_.post("/tokenize", {{"messages", asked}}));
    const auto limit = prompt.value("max_model_len", int64_t{0});
    const int64_t room = limit - prompt.value("count", int64_t{0});
    if (room <= 0)
      return invalid_argument("the conversation fills the model's context of " + std::to_string(limit) +
                              " tokens; /new starts another");
    std::string text, finish;
    const Json body = {{"messages", asked},
                       {"temperature", options_.temperature},
                       {"max_tokens", std::min(room, options_.max_tokens)},
                       {"stream", true}};
    const Status answered = client_.post_streaming("/v1/chat/completions", body, [&](const Json& event) {
      if (event.contains("choices") && !event["choices"].empty()) {
        const Json& choice = event["choices"][0];
        const std::string piece = choice["delta"].value("content", "");
        std::printf("%s", piece.c_str());
        std::fflush(stdout);
        text += piece;
        if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
      }
      return !stopped;
    });
    if (!answered.ok() && text.empty()) return answered;
    std::printf("%s\n", stopped ? " (stopped)" : finish == "length" ? " (cut: no room for more)" : "");
    asked.push_back({{"role", "assistant"}, {"content", text}});
    messages_ = std::move(asked);
    before_fix_.reset();
    undone_fix_.reset();
    return stopped ? Status() : answered;
  }

  // The conversation up to the last user message, with the better answer as its only graded turn.
  Status fix(const std::string& better) {
    if (!answered()) return invalid_argument("there is no answer to fix yet");
    if (better.empty()) return invalid_argument("write the better answer after /fix");
    Json corrected = messages_;
    corrected.back()["content"] = better;
    const Json learned = LATHE_TRY(client_.post("/v1/learn", {{"messages", corrected}}));
    std::printf("learned in %.2f s (version %ld, loss %.3f -> %.3f); /again asks again\n",
                learned.value("seconds", 0.0), static_cast<long>(learned.value("version", 0)),
                learned.value("loss_before", 0.0), learned.value("loss_after", 0.0));
    before_fix_ = std::exchange(messages_, std::move(corrected));
    undone_fix_.reset();
    return {};
  }

  // The server takes its last lesson back, whoever gave it; the conversation goes back if this one did.
  Status undo() {
    const Json result = LATHE_TRY(client_.post("/v1/rollback", Json::object()));
    print_restored("undone", result);
    if (before_fix_) undone_fix_ = std::exchange(messages_, std::move(*before_fix_));
    before_fix_.reset();
    return {};
  }

  Status redo() {
    const Json result = LATHE_TRY(client_.post("/v1/redo", Json::object()));
    print_restored("redone", result);
    if (undone_fix_) before_fix_ = std::exchange(messages_, std::move(*undone_fix_));
    undone_fix_.reset();
    return {};
  }

  static void print_restored(const char* what, const Json& result) {
    std::printf("%s: version %ld has the weights of version %ld\n", what, static_cast<long>(result.value("version", 0)),
                static_cast<long>(result.value("restores", 0)));
  }

  Client client_;
  const Options& options_;
  Json messages_;
  // Until something else is said: the conversation before the last /fix, and the one with it after an /undo.
  std::optional<Json> before_fix_, undone_fix_;
};

Status run_chat(const Options& options) {
  auto client = LATHE_TRY(Client::create(options.server, options.api_key));
  const Json health = LATHE_TRY(client.get("/healthz"));
  std::printf("%s, version %ld. /help lists the commands.\n", health.value("model", "").c_str(),
              static_cast<long>(health.value("version", 0)));
  Chat chat(std::move(client), options);
  LineEditor lines("> ", options.no_history ? "" : "chat_history");
  while (const auto line = lines.read()) {
    const Result<bool> goes_on = chat.handle(*line);
    if (!goes_on.ok()) std::printf("! %s\n", goes_on.error().message.c_str());
    if (goes_on.ok() && !*goes_on) break;
  }
  return {};
}

}  // namespace

Action add_chat(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("--server", options->server, "Address of `lathe serve`")
      ->envname("LATHE_SERVER")
      ->capture_default_str();
  app.add_option("--api-key", options->api_key, "The server's key, if it has one")->envname("LATHE_API_KEY");
  app.add_option("--system", options->system, "System prompt: what the model is told before the conversation");
  app.add_option("--temperature", options->temperature, "0: always the likeliest token; 1: as the model predicts")
      ->check(number(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--max-tokens", options->max_tokens, "Longest answer, in tokens")
      ->check(integer(1, 1 << 20))
      ->capture_default_str();
  app.add_flag("--no-history", options->no_history,
               "Keep no file of what was typed (~/.local/state/lathe/chat_history)");
  return [options] {
    const Status done = run_chat(*options);
    if (done.ok()) return 0;
    std::fprintf(stderr, "lathe chat: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
