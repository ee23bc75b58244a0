// Weights that are read again from their directory: what cannot be read is found before anything changes.
#include "weights/weight_store.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "history/test_model.h"

namespace lathe::weights {
namespace {

class Reload : public testing::Test {
 protected:
  void SetUp() override {
    history::write_model(env_, "/model", history::small_model("xyz"));
    for (const auto& [name, size] : std::vector<std::pair<std::string, int64_t>>{{"a", 700}, {"b", 900}, {"c", 9000}})
      store_.add(name, at::zeros({size, 1}, at::kByte), {{name, size}}, false);
  }
  delta::ModelDir open() { return delta::ModelDir::open(env_, "/model").value(); }
  int64_t changed() const {
    int64_t count = 0;
    for (const Parameter& parameter : store_.parameters()) count += parameter.data.count_nonzero().item<int64_t>();
    return count;
  }

  io::FaultEnv env_;
  WeightStore store_;
};

TEST_F(Reload, ReplacesEveryByte) {
  const delta::ModelDir dir = open();
  ASSERT_TRUE(store_.check_reload(dir).ok());
  EXPECT_EQ(changed(), 0);
  ASSERT_TRUE(store_.reload(dir).ok());
  EXPECT_EQ(changed(), 700 + 900 + 9000);
  EXPECT_EQ(store_.parameter("c").data[4200].item<uint8_t>(), 'y');
}

TEST_F(Reload, ACheckFindsEachReadThatFailsAndChangesNothing) {
  const delta::ModelDir dir = open();
  env_.set_fault({});
  ASSERT_TRUE(store_.check_reload(dir).ok());
  const int64_t reads = env_.reads();
  ASSERT_GE(reads, 3);
  for (int64_t at = 1; at <= reads; ++at) {
    env_.set_fault({.kind = io::Fault::Kind::kRead, .at = at});
    EXPECT_FALSE(store_.check_reload(dir).ok()) << at;
  }
  EXPECT_EQ(changed(), 0);
}

TEST_F(Reload, ADirectoryOfAnotherModelIsRefusedByName) {
  store_.add("d", at::zeros({601, 1}, at::kByte), {{"d", 601}}, false);
  const Status checked = store_.check_reload(open());
  ASSERT_FALSE(checked.ok());
  EXPECT_NE(checked.error().message.find("tensor d "), std::string::npos) << checked.error().message;
}

}  // namespace
}  // namespace lathe::weights
