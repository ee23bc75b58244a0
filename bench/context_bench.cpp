// What freezing the context does to gradients and to what is learnt: a real model, a real document, one answer.
//
// usage: context_bench MODEL_DIR TEXT_FILE... [--context TOKENS,...] [--steps N] [--lr RATE] [--device D]
// The document is the files' text, cut (or repeated) to each number of tokens. It is followed by a question about
// something else and its answer, which is what is graded. Prints, for each length:
//   * seconds of one gradient, by factors, with frozen and with exact context;
//   * the cosine between the two gradients, and the length of the frozen over that of the exact one, by kind of tensor
//     and by thirds of the model's depth;
//   * losses before, and after N steps of teaching with either, of the lesson itself, of its question without the
//     document, of the question in other words, and of the document (which nobody asked to change).
// docs/research/frozen-context.md shows the tables.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>

#include "gpu/device.h"
#include "io/env.h"
#include "model/model.h"
#include "text/text.h"
#include "train/backward.h"
#include "train/trainer.h"

namespace lathe {
namespace {

using data::ContextMode;

constexpr const char* kQuestion = "What is the name of the river that runs through the town of Velmora?";
constexpr const char* kRephrased = "Which river flows through Velmora?";
constexpr const char* kAnswer = "The river that runs through Velmora is called the Silverthread.";
constexpr int64_t kControlTokens = 256;
constexpr int kTimes = 3;

struct Options {
  std::string model;
  std::vector<std::string> files;
  std::vector<int64_t> contexts{1024, 4096};
  int64_t steps = 8;
  double learning_rate = 2e-5;
  std::string device = "cpu";
};

const char* name_of(ContextMode mode) {
  return mode == ContextMode::kFrozen ? "frozen" : "exact";
}

Result<data::Example> conversation(const text::Text& text, const std::string& question) {
  const text::Message messages[] = {{.role = "user", .content = question}, {.role = "assistant", .content = kAnswer}};
  const float weights[] = {1};
  const auto graded = LATHE_TRY(text.graded(messages, weights, {.add_generation_prompt = false}));
  return data::Example{{graded.ids.begin(), graded.ids.end()}, graded.weights};
}

struct Lesson {
  data::Example taught, bare, rephrased, control;
};

// The lesson with a document of `tokens` tokens before the question.
Result<Lesson> make_lesson(const text::Text& text, std::vector<text::TokenId> document, int64_t tokens) {
  while (std::ssize(document) < tokens) document.insert(document.end(), document.begin(), document.end());
  document.resize(tokens);
  const std::string words = LATHE_TRY(text.tokenizer().decode(document, /*skip_special=*/true));
  Lesson lesson;
  lesson.taught = LATHE_TRY(conversation(text, words + "\n\n" + kQuestion));
  lesson.bare = LATHE_TRY(conversation(text, kQuestion));
  lesson.rephrased = LATHE_TRY(conversation(text, kRephrased));
  for (int64_t i = 0; i < std::min(kControlTokens, tokens); ++i) {
    lesson.control.tokens.push_back(static_cast<int32_t>(document[i]));
    lesson.control.weights.push_back(i == 0 ? 0.0F : 1.0F);
  }
  return lesson;
}

// What the step sees of a gradient's length and direction.
struct Products {
  double frozen = 0, exact = 0, both = 0;
  void add(const at::Tensor& f, const at::Tensor& e) {
    frozen += f.square().sum(at::kDouble).item<double>();
    exact += e.square().sum(at::kDouble).item<double>();
    both += (f * e).sum(at::kDouble).item<double>();
  }
  double cosine() const { return both / std::sqrt(frozen * exact); }
  double ratio() const { return std::sqrt(frozen / exact); }
};

// The tensor's name without the layer's number, and which third of the depth it is in (3: in no layer).
std::pair<std::string, int> place_of(const std::string& name, int64_t layers) {
  const size_t at = name.find("layers.");
  if (at == std::string::npos) return {name, 3};
  const size_t number = at + 7, dot = name.find('.', number);
  return {name.substr(dot + 1), static_cast<int>(3 * std::stoll(name.substr(number, dot - number)) / layers)};
}

void compare_gradients(const model::LoadedModel& loaded, const data::Example& example) {
  const size_t parameters = loaded.store->parameters().size();
  weights::GradientSet frozen(parameters, weights::GradientForm::kDense),
      exact(parameters, weights::GradientForm::kDense);
  train::backward(*loaded.model, train::pack({&example, 1}, ContextMode::kFrozen), {}, frozen);
  train::backward(*loaded.model, train::pack({&example, 1}, ContextMode::kExact), {}, exact);
  std::map<std::string, std::array<Products, 4>> kinds;
  for (const weights::Parameter& parameter : loaded.store->parameters()) {
    const at::Tensor& matrix = frozen.matrices[parameter.id].dense;
    const at::Tensor& f = matrix.defined() ? matrix : frozen.vectors[parameter.id];
    const at::Tensor& e = matrix.defined() ? exact.matrices[parameter.id].dense : exact.vectors[parameter.id];
    if (!f.defined()) continue;
    for (const weights::Part& part : parameter.parts) {
      const auto [kind, third] = place_of(part.name, loaded.model->config().layers);
      kinds[kind][third].add(f.narrow(0, part.row_begin, part.rows), e.narrow(0, part.row_begin, part.rows));
    }
  }
  std::printf("%-36s %-22s %-22s %-22s\n", "cosine, length frozen/exact", "first third", "middle", "last third");
  for (const auto& [kind, thirds] : kinds) {
    std::printf("%-36s", kind.c_str());
    for (const Products& p : thirds) {
      if (p.exact > 0) std::printf(" %6.3f %6.3f         ", p.cosine(), p.ratio());
    }
    std::printf("\n");
  }
}

// Of one gradient as factors: median.
double gradient_seconds(const model::LoadedModel& loaded, const data::Example& example, ContextMode mode) {
  std::vector<double> seconds;
  for (int i = 0; i < kTimes; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    weights::GradientSet factors(loaded.store->parameters().size());
    train::backward(*loaded.model, train::pack({&example, 1}, mode), {}, factors);
    gpu::synchronize(loaded.model->options().device());
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kTimes / 2];
}

Status print_losses(const char* when, const train::Trainer& trainer, const Lesson& lesson) {
  std::printf("%-14s", when);
  for (const data::Example* example : {&lesson.taught, &lesson.bare, &lesson.rephrased, &lesson.control}) {
    std::printf(" %12.3f", LATHE_TRY(trainer.evaluate({example, 1}, {})).loss);
  }
  std::printf("\n");
  return {};
}

Status teach(const Options& options, c10::Device device, const Lesson& lesson, ContextMode mode) {
  const auto loaded = LATHE_TRY(model::load_model(io::posix_env(), options.model, {.device = device}));
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  if (mode == ContextMode::kFrozen) LATHE_TRY(print_losses("before", trainer, lesson));
  for (int64_t step = 0; step < options.steps; ++step) {
    LATHE_TRY(trainer.step(std::span(&lesson.taught, 1), {.learning_rate = options.learning_rate, .context = mode}));
  }
  return print_losses(name_of(mode), trainer, lesson);
}

Status run(const Options& options) {
  const at::NoGradGuard no_grad;
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const auto text = LATHE_TRY(text::Text::load(env, options.model));
  std::string words;
  for (const std::string& file : options.files) words += LATHE_TRY(io::read_text(env, file));
  const std::vector<text::TokenId> document = LATHE_TRY(text.tokenizer().encode(words)).ids;
  const auto loaded = LATHE_TRY(model::load_model(env, options.model, {.device = device}));
  for (const int64_t context : options.contexts) {
    const Lesson lesson = LATHE_TRY(make_lesson(text, document, context));
    LATHE_TRY(data::validate(lesson.taught, loaded.model->config().vocab_size, loaded.model->config().max_positions));
    std::printf(
        "\n%ld tokens, %ld of them graded\nseconds of one gradient:", static_cast<long>(lesson.taught.tokens.size()),
        static_cast<long>(std::count(lesson.taught.weights.begin(), lesson.taught.weights.end(), 1.0F)));
    for (const ContextMode mode : {ContextMode::kFrozen, ContextMode::kExact})
      std::printf(" %s %.3f", name_of(mode), gradient_seconds(loaded, lesson.taught, mode));
    std::printf("\n\n");
    compare_gradients(loaded, lesson.taught);
    std::printf("\nlosses, %ld steps at %g: %s %12s %12s %12s\n", static_cast<long>(options.steps),
                options.learning_rate, "lesson", "no document", "other words", "document");
    for (const ContextMode mode : {ContextMode::kFrozen, ContextMode::kExact})
      LATHE_TRY(teach(options, device, lesson, mode));
  }
  return {};
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  lathe::Options options;
  CLI::App app("What freezing the context does to gradients and to what is learnt");
  app.add_option("model", options.model)->required();
  app.add_option("files", options.files)->required();
  app.add_option("--context", options.contexts, "Tokens of the document")->delimiter(',')->capture_default_str();
  app.add_option("--steps", options.steps)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", options.learning_rate)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--device", options.device)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const lathe::Status status = lathe::run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "context_bench: %s\n", status.error().message.c_str());
  return 1;
}
