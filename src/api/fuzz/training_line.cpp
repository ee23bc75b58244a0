// Fuzz target: one line of a training file, all the way to an example that the trainer would take.
//
//   parse_training_line -> Text::graded -> data::validate -> live_segments
//
// Whatever the bytes are, each step answers or refuses; what it answers must hold together. Built as a libFuzzer target
// by `make fuzz`, and replayed with mutations by `make test` (tests/fuzz/replay_test.cpp).
#include <algorithm>
#include <string_view>

#include "api/requests.h"
#include "data/example.h"
#include "text/text.h"

namespace {

using namespace lathe;

const text::Text& own() {
  static const text::Text text =
      text::Text::load(io::posix_env(), std::string(LATHE_SOURCE_DIR) + "/tests/golden/text/own").value();
  return text;
}

// In frozen context exactly the rows p whose next token p + 1 is graded are live; in exact context all but the last.
void check_segments(const data::Example& example) {
  const auto n = static_cast<int64_t>(example.tokens.size());
  std::vector<bool> live(n);
  int64_t end = -1;
  for (const data::Segment& segment : data::live_segments(example, data::ContextMode::kFrozen)) {
    LATHE_CHECK(segment.begin > end && segment.begin < segment.end && segment.end < n);
    std::fill(live.begin() + segment.begin, live.begin() + segment.end, true);
    end = segment.end;
  }
  for (int64_t p = 0; p + 1 < n; ++p) LATHE_CHECK(live[p] == (example.weights[p + 1] > 0));
  LATHE_CHECK(!live[n - 1]);
  const auto exact = data::live_segments(example, data::ContextMode::kExact);
  LATHE_CHECK(exact.size() == 1 && exact[0] == (data::Segment{0, n - 1}));
}

void check_line(std::string_view line) {
  const auto parsed = api::parse_training_line(line);
  if (!parsed.ok()) {
    LATHE_CHECK(!parsed.error().message.empty());
    return;
  }
  LATHE_CHECK(!parsed->messages.empty());
  const auto assistants = std::count_if(parsed->messages.begin(), parsed->messages.end(),
                                        [](const text::Message& m) { return m.role == "assistant"; });
  LATHE_CHECK(std::ssize(parsed->turn_weights) == assistants && assistants > 0);
  // What is stored says the same again.
  const auto again = api::parse_training_line(parsed->json);
  LATHE_CHECK(!again.ok() || again->messages.size() == parsed->messages.size());

  const auto graded = own().graded(parsed->messages, parsed->turn_weights, parsed->render);
  if (!graded.ok()) return;
  const data::Example example{.tokens = graded->ids, .weights = graded->weights};
  LATHE_CHECK(example.tokens.size() == example.weights.size());
  LATHE_CHECK(std::any_of(example.weights.begin(), example.weights.end(), [](float w) { return w > 0; }));
  for (const float weight : example.weights) {
    const bool known =
        std::find(parsed->turn_weights.begin(), parsed->turn_weights.end(), weight) != parsed->turn_weights.end();
    LATHE_CHECK(weight == 0 || known);
  }
  // The template opens with a header, so nothing of this can be refused but its length.
  LATHE_CHECK(data::validate(example, own().tokenizer().size(), 1 << 30).ok());
  check_segments(example);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  check_line({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
