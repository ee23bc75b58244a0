#include "teach/versions.h"

#include <gtest/gtest.h>

namespace lathe::teach {
namespace {

TEST(Versions, NumbersAreGivenOnce) {
  Versions versions(4, 9);  // 5 to 9 were given by a process that is gone
  EXPECT_EQ(versions.live(), 4);
  EXPECT_FALSE(versions.pending());
  EXPECT_EQ(versions.begin(), 10);
  versions.unchanged();
  EXPECT_EQ(versions.live(), 4);
  EXPECT_EQ(versions.begin(), 11);
  versions.committed();
  EXPECT_EQ(versions.live(), 11);
  EXPECT_EQ(versions.durable(), 4);
  EXPECT_TRUE(versions.pending());
  versions.synced();
  EXPECT_FALSE(versions.pending());
}

TEST(Versions, AChangeTakenBackTakesWhatWasNotDurable) {
  Versions versions(2, 2);
  versions.begin(), versions.committed();
  versions.begin(), versions.committed();
  EXPECT_EQ(versions.live(), 4);
  versions.begin();
  versions.taken_back();
  EXPECT_EQ(versions.live(), 2);
  EXPECT_EQ(versions.begin(), 6);
}

TEST(Versions, TornUntilRepaired) {
  Versions versions(2, 2);
  versions.begin();
  versions.tore();
  EXPECT_TRUE(versions.torn());
  EXPECT_DEATH(versions.begin(), "");
  EXPECT_DEATH(versions.synced(), "");
  EXPECT_DEATH(versions.begin_restore(), "");
  versions.repaired();
  EXPECT_FALSE(versions.torn());
  EXPECT_EQ(versions.live(), 2);
  EXPECT_EQ(versions.begin(), 4);
}

TEST(Versions, ARollbackThatTheLiveWeightsFollow) {
  Versions versions(7, 7);
  EXPECT_EQ(versions.begin_restore(), 8);
  versions.moved();
  EXPECT_EQ(versions.durable(), 8);
  EXPECT_EQ(versions.live(), 7);
  versions.followed();
  EXPECT_EQ(versions.live(), 8);
  EXPECT_FALSE(versions.pending());
}

// The live weights stay what they were: a version after the directory's, so that a sync can make them durable.
TEST(Versions, ARollbackThatTheLiveWeightsDoNotFollow) {
  Versions versions(7, 7);
  versions.begin_restore();
  versions.moved();
  EXPECT_EQ(versions.kept(), 9);
  EXPECT_EQ(versions.live(), 9);
  EXPECT_EQ(versions.durable(), 8);
  versions.synced();
  EXPECT_EQ(versions.durable(), 9);
}

TEST(Versions, ARollbackThatTearsOrDoesNotHappen) {
  Versions versions(7, 7);
  versions.begin_restore();
  versions.unchanged();
  EXPECT_EQ(versions.durable(), 7);
  versions.begin_restore();
  versions.moved();
  versions.tore();
  EXPECT_TRUE(versions.torn());
  versions.repaired();
  EXPECT_EQ(versions.live(), 9);  // as the directory
}

}  // namespace
}  // namespace lathe::teach
