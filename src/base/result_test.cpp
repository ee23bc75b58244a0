#include "base/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace lathe {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return invalid_argument(std::to_string(n) + " is odd");
  return n / 2;
}

Result<int> quarter(int n) {
  const int once = LATHE_TRY(half(n));
  return half(once);
}

Status check_even(int n) {
  LATHE_TRY(half(n));
  return {};
}

TEST(Result, TryYieldsTheValueOrLeavesWithTheError) {
  ASSERT_TRUE(quarter(12).ok());
  EXPECT_EQ(*quarter(12), 3);
  ASSERT_FALSE(quarter(6).ok());
  EXPECT_EQ(quarter(6).error().code, Code::kInvalidArgument);
  EXPECT_EQ(quarter(6).error().message, "3 is odd");
  EXPECT_TRUE(check_even(2).ok());
  EXPECT_FALSE(check_even(3).ok());
}

TEST(Result, CarriesMoveOnlyValues) {
  auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(7); };
  auto use = [&]() -> Result<int> {
    auto p = LATHE_TRY(make());
    return *p;
  };
  EXPECT_EQ(*use(), 7);
}

TEST(Result, AtPutsThePlaceInFront) {
  EXPECT_EQ(half(3).at("shard 2").error().message, "shard 2: 3 is odd");
  EXPECT_EQ(*half(4).at("shard 2"), 2);
}

TEST(Result, IoErrorKeepsTheNativeCode) {
  Error e = io_error("open x", ENOENT);
  EXPECT_EQ(e.code, Code::kIo);
  EXPECT_EQ(e.native, ENOENT);
  EXPECT_NE(e.message.find("No such file"), std::string::npos);
}

}  // namespace
}  // namespace lathe
