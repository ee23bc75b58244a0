#include "data/example.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lathe::data {
namespace {

Example make(std::vector<float> weights) {
  Example e;
  e.tokens.resize(weights.size(), 1);
  e.weights = std::move(weights);
  return e;
}

TEST(Segments, EachGradedRunIsOpenedByTheTokenBeforeIt) {
  const auto segments = live_segments(make({0, 0, 1, 1, 0, 0, 1, 0}), ContextMode::kFrozen);
  EXPECT_EQ(segments, (std::vector<Segment>{{1, 3}, {5, 6}}));
}

TEST(Segments, ExactModeIsOneSegmentWithoutTheLastRow) {
  EXPECT_EQ(live_segments(make({0, 0, 1, 0}), ContextMode::kExact), (std::vector<Segment>{{0, 3}}));
}

TEST(Segments, EveryGradedTokenHasExactlyOneLiveRow) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    std::vector<float> weights(9, 0);
    for (int i = 0; i < 8; ++i) weights[i + 1] = (bits >> i) & 1;
    std::vector<int> rows(9, 0);
    int64_t last_end = -1;
    for (const Segment& s : live_segments(make(weights), ContextMode::kFrozen)) {
      EXPECT_GT(s.begin, last_end - (last_end < 0 ? 1 : 0)) << "segments that touch should have been one";
      last_end = s.end;
      for (int64_t p = s.begin; p < s.end; ++p) rows[p]++;
    }
    for (int t = 1; t < 9; ++t) EXPECT_EQ(rows[t - 1], weights[t] > 0 ? 1 : 0) << "bits " << bits << " token " << t;
  }
}

TEST(Validate, NamesWhatIsWrong) {
  auto message = [](Example e) {
    const Status s = validate(e, 10, 5);
    return s.ok() ? std::string("ok") : s.error().message;
  };
  EXPECT_EQ(message(make({0, 1})), "ok");
  EXPECT_NE(message(make({0})).find("1 tokens"), std::string::npos);
  EXPECT_NE(message(make({0, 0})).find("nothing is graded"), std::string::npos);
  EXPECT_NE(message(make({1, 1})).find("first token"), std::string::npos);
  EXPECT_NE(message(make({0, NAN})).find("position 1"), std::string::npos);
  EXPECT_NE(message(make({0, -1})).find("position 1"), std::string::npos);
  EXPECT_NE(message(make({0, 1, 0, 0, 0, 0})).find("context holds 5"), std::string::npos);
  Example e = make({0, 1});
  e.tokens[1] = 10;
  EXPECT_NE(message(e).find("token 10 at position 1"), std::string::npos);
  e = make({0, 1});
  e.weights.pop_back();
  EXPECT_NE(message(e).find("1 weights"), std::string::npos);
}

}  // namespace
}  // namespace lathe::data
