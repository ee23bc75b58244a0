#include "config/settings.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace lathe::config {
namespace {

constexpr double kMost = std::numeric_limits<double>::infinity();

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

// "an integer", "a number", and its range.
Error out_of_range(const Setting& setting, const char* what, const std::string& text) {
  std::string range;
  if (std::isfinite(setting.highest)) {
    range = " from " + number_text(setting.lowest) + " to " + number_text(setting.highest);
  } else if (std::isfinite(setting.lowest)) {
    range = ", " + number_text(setting.lowest) + " or more";
  }
  return invalid_argument(std::string("must be ") + what + range + ", not '" + text + "'");
}

template <class Number>
Status set_number(const Setting& setting, Number& value, const std::string& text) {
  Number parsed{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  const bool whole =
      error == std::errc() && end == text.data() + text.size() && std::isfinite(static_cast<double>(parsed));
  if (!whole || static_cast<double>(parsed) < setting.lowest || static_cast<double>(parsed) > setting.highest)
    return out_of_range(setting, std::is_integral_v<Number> ? "an integer" : "a number", text);
  value = parsed;
  return {};
}

Status set_bool(bool& value, const std::string& text) {
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* yes : {"true", "1", "yes", "on"}) {
    if (lower == yes) return value = true, Status();
  }
  for (const char* no : {"false", "0", "no", "off"}) {
    if (lower == no) return value = false, Status();
  }
  return invalid_argument("must be true or false, not '" + text + "'");
}

Status set_text(const Setting& setting, std::string& value, const std::string& text) {
  if (!setting.choices.empty() &&
      std::find(setting.choices.begin(), setting.choices.end(), text) == setting.choices.end()) {
    std::string names;
    for (const std::string& choice : setting.choices) {
      names += names.empty() ? "" : &choice == &setting.choices.back() ? " or " : ", ";
      names += choice;
    }
    return invalid_argument("must be " + names + ", not '" + text + "'");
  }
  value = text;
  return {};
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> items;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) items.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return items;
}

}  // namespace

std::string Setting::variable() const {
  if (!other_variable.empty()) return other_variable;
  std::string variable = "LATHE_" + name;
  std::transform(variable.begin(), variable.end(), variable.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : std::toupper(c); });
  return variable;
}

Status Setting::set(const std::string& text) const {
  struct Take {
    const Setting& setting;
    const std::string& text;
    Status operator()(std::string* target) const { return set_text(setting, *target, text); }
    Status operator()(int* target) const { return set_number(setting, *target, text); }
    Status operator()(int64_t* target) const { return set_number(setting, *target, text); }
    Status operator()(double* target) const { return set_number(setting, *target, text); }
    Status operator()(bool* target) const { return set_bool(*target, text); }
    Status operator()(std::vector<std::string>* target) const { return *target = split(text), Status(); }
  };
  return std::visit(Take{*this, text}, value);
}

Status Setting::set(const std::vector<std::string>& list) const {
  auto* const* const own = std::get_if<std::vector<std::string>*>(&value);
  if (!own) return invalid_argument("must be one value, not a list");
  **own = list;
  return {};
}

std::string Setting::text() const {
  struct Show {
    std::string operator()(const std::string* source) const { return *source; }
    std::string operator()(const int* source) const { return std::to_string(*source); }
    std::string operator()(const int64_t* source) const { return std::to_string(*source); }
    std::string operator()(const double* source) const { return number_text(*source); }
    std::string operator()(const bool* source) const { return *source ? "true" : "false"; }
    std::string operator()(const std::vector<std::string>* source) const {
      std::string all;
      for (const std::string& item : *source) all += (all.empty() ? "" : ",") + item;
      return all;
    }
  };
  return std::visit(Show{}, value);
}

std::vector<Setting> server_settings(Settings& s) {
  const std::string serving = "Serving", learning = "Learning";
  return {
      {"host", serving, "Address to listen on; any but loopback needs an API key", &s.host},
      {"port", serving, "Port to listen on; 0 picks a free one", &s.port, 0, 65535},
      {.name = "api-key",
       .group = serving,
       .help = "Key that clients send as 'Authorization: Bearer KEY'. Other users can see it in the process list: "
               "better use "
               "LATHE_API_KEY or a file",
       .value = &s.api_key,
       .secret = true},
      {"allow-host", serving, "Further names under which clients reach this server, such as a proxy's; '*': any",
       &s.allowed_hosts},
      {"allow-origin", serving, "Web pages that may use this server, such as https://page.example; '*': any",
       &s.allowed_origins},
      {"served-model-name", serving, "Name of the model in the API (default: the directory's)", &s.served_name},
      {"max-running", serving, "Answers generated at once", &s.max_running, 1, 1024},
      {"max-waiting", serving, "Requests queued before 429", &s.max_waiting, 0, 100000},
      {"max-context", serving, "Tokens of prompt and answer; 0: the model's limit", &s.max_context, 0, kMost},
      {"max-body-bytes", serving, "Largest request body", &s.max_body_bytes, 1024, 1 << 30},
      {"http-threads", serving, "Requests (POST) that work at once; more wait", &s.http_threads, 2, 1024},
      {"threads", serving, "Compute threads; 0: one per core", &s.compute_threads, 0, 1024},
      {"device", serving, "auto (a GPU if there is one), cpu, cuda or cuda:N", &s.device},

      {.name = "optimizer",
       .group = learning,
       .help = "apollo_mini, apollo, adamw or sgd",
       .value = &s.optimizer,
       .choices = {"apollo_mini", "apollo", "adamw", "sgd"}},
      {"lr", learning, "Learning rate, as for AdamW", &s.learning_rate, 1e-9, 1},
      {"steps", learning, "Steps per correction, at most", &s.steps, 1, 10000},
      {"until-loss", learning, "A correction stops when its loss is below this", &s.until_loss, 0, 100},
      {"train-embeddings", learning, "Whether embedding and head learn too", &s.train_embeddings},
      {"keep-completions", learning,
       "Latest chat completions kept in MODEL_DIR/.lathe, so that they can be corrected by id; 0: none",
       &s.keep_completions, 0, kMost},
      {"max-learning", learning, "Learning jobs queued before 429", &s.max_learning, 1, 10000},
      {.name = "history",
       .group = learning,
       .help = "What is one version on disk: each lesson, made durable right after it, or all of an interval "
               "(sync-seconds), for models where a sync takes long",
       .value = &s.history,
       .choices = {"lesson", "interval"}},
      {"sync-seconds", learning,
       "How long a change may wait until it is durable (with history=lesson: within one lesson); 0: on demand, at "
       "shutdown, and before the next lesson only",
       &s.sync_seconds, 0, kMost},
      {"lesson-memory", learning, "MiB that a lesson may take in addition to the model, by estimate; 0: what is free",
       &s.lesson_memory, 0, 1 << 30},
      {"materialize", learning,
       "Replace shards that are symbolic links (a Hugging Face cache) by copies at the first sync", &s.materialize},
  };
}

std::vector<Setting> attach_settings(AttachSettings& s) {
  const std::string group = "vLLM";
  return {
      {"vllm", group, "Address of the vLLM server, http://host:port", &s.vllm},
      {.name = "vllm-api-key",
       .group = group,
       .help = "Key of the vLLM server",
       .value = &s.vllm_api_key,
       .secret = true,
       .other_variable = "VLLM_API_KEY"},
      {"socket", group, "Socket of the plugin (default: what vLLM says)", &s.socket},
      {.name = "on-difference",
       .group = group,
       .help = "If vLLM's weights are not those on disk: refuse, restore (reload them from disk) or adopt (make them a "
               "new version)",
       .value = &s.on_difference,
       .choices = {"refuse", "restore", "adopt"}},
      {.name = "tokens",
       .group = group,
       .help = "Whose tokens to teach: ours (the directory's tokenizer and chat template) or server (vLLM's /tokenize)",
       .value = &s.tokens,
       .choices = {"ours", "server"}},
      {"proxy", group,
       "Pass vLLM's inference routes through, and keep the chat completions, so that they can be corrected by id",
       &s.proxy},
      {"live", group, "Write while requests run, which may see a mixture, and pause them only briefly after the write",
       &s.live},
  };
}

}  // namespace lathe::config
