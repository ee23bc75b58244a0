#include "base/nearest.h"

#include <gtest/gtest.h>

#include <vector>

namespace lathe {
namespace {

TEST(Nearest, FindsWhatWasMeant) {
  const std::vector<std::string> commands = {"serve", "attach", "chat", "learn", "train", "sync", "log", "verify"};
  EXPECT_EQ(nearest("srve", commands), "serve");
  EXPECT_EQ(nearest("sevre", commands), "serve");
  EXPECT_EQ(nearest("lern", commands), "learn");
  EXPECT_EQ(nearest("lgo", commands), "log");
  EXPECT_EQ(nearest("verfy", commands), "verify");
  EXPECT_EQ(did_you_mean("srve", commands), "; did you mean 'serve'?");
}

TEST(Nearest, DoesNotGuessWildly) {
  const std::vector<std::string> commands = {"serve", "log"};
  EXPECT_EQ(nearest("frobnicate", commands), "");
  EXPECT_EQ(nearest("", commands), "");
  EXPECT_EQ(nearest("xyz", commands), "");
  EXPECT_EQ(nearest(std::string(100000, 'x'), commands), "");
  EXPECT_EQ(did_you_mean("frobnicate", commands), "");
}

}  // namespace
}  // namespace lathe
