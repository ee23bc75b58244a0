#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "client.h"
#include "commands.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

struct Options {
  std::string server = "http://127.0.0.1:8077", api_key, question, answer, system, completion;
  double learning_rate = 0;
  int64_t steps = 0;
  bool json = false;
};

Result<nlohmann::ordered_json> teach(const Options& options) {
  auto client = LATHE_TRY(Client::create(options.server, options.api_key));
  nlohmann::ordered_json body;
  if (!options.completion.empty()) {
    body = {{"completion", options.completion}, {"answer", options.answer}};
  } else {
    if (!options.system.empty()) body["messages"].push_back({{"role", "system"}, {"content", options.system}});
    body["messages"].push_back({{"role", "user"}, {"content", options.question}});
    body["messages"].push_back({{"role", "assistant"}, {"content", options.answer}});
  }
  if (options.learning_rate > 0) body["lr"] = options.learning_rate;
  if (options.steps > 0) body["steps"] = options.steps;
  return client.post("/v1/learn", body);
}

}  // namespace

Action add_learn(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  auto* question = app.add_option("QUESTION", options->question, "What a user asks")->check(not_empty());
  app.add_option("--completion", options->completion, "Instead of a question: the id of an answer that was given")
      ->check(not_empty())
      ->excludes(question);
  app.add_option("--answer", options->answer, "What the model should answer")->required()->check(not_empty());
  app.add_option("--system", options->system, "System prompt of the conversation")->needs(question);
  app.add_option("--server", options->server, "Address of `lathe serve`")
      ->envname("LATHE_SERVER")
      ->capture_default_str();
  app.add_option("--api-key", options->api_key, "The server's key, if it has one")->envname("LATHE_API_KEY");
  app.add_option("--lr", options->learning_rate, "Learning rate (default: the server's)")->check(number(1e-9, 1.0));
  app.add_option("--steps", options->steps, "Steps at most (default: the server's)")->check(integer(1, 10000));
  app.add_flag("--json", options->json, "Print the server's answer as JSON");
  return [options] {
    if (options->question.empty() && options->completion.empty()) {
      std::fprintf(stderr, "lathe learn: say what was asked: QUESTION or --completion ID\n");
      return 2;
    }
    const auto result = teach(*options);
    if (!result.ok()) {
      std::fprintf(stderr, "lathe learn: %s\n", result.error().message.c_str());
      return 1;
    }
    if (options->json) {
      std::printf("%s\n", result->dump(2).c_str());
    } else if (result->value("status", "") == "nothing_to_do") {
      std::printf("nothing to do: the loss is %.3f already; version %ld\n", result->value("loss_before", 0.0),
                  static_cast<long>(result->value("version", 0)));
    } else if (result->value("status", "") == "not_learned") {
      std::fprintf(stderr,
                   "not learned: loss %.3f -> %.3f in %ld steps, version %ld; `lathe rollback MODEL_DIR` undoes it\n",
                   result->value("loss_before", 0.0), result->value("loss_after", 0.0),
                   static_cast<long>(result->value("steps", 0)), static_cast<long>(result->value("version", 0)));
      return 1;
    } else {
      std::printf(
          "learned in %.2f s: version %ld, loss %.3f -> %.3f, %ld steps, %ld graded tokens, longest pause %.0f ms\n",
          result->value("seconds", 0.0), static_cast<long>(result->value("version", 0)),
          result->value("loss_before", 0.0), result->value("loss_after", 0.0),
          static_cast<long>(result->value("steps", 0)), static_cast<long>(result->value("graded_tokens", 0)),
          result->value("pause_ms", 0.0));
    }
    return 0;
  };
}

}  // namespace lathe::cli
