#include "delta/model_dir.h"

#include "delta/test_dir.h"

namespace lathe::delta {
namespace {

TEST(ModelDir, ReadsOneFileOrManyShards) {
  const TestDir dir;
  dir.two_shards('x');
  EXPECT_EQ(dir.contents(), "xxx");
  dir.shard("model.safetensors", {"only"}, 'y');
  EXPECT_EQ(dir.contents(), "y");
}

TEST(ModelDir, RefusesByName) {
  const TestDir dir;
  EXPECT_NE(dir.contents().find("neither"), std::string::npos);
  dir.two_shards('x');
  std::filesystem::remove(dir.path() + "/model-2.safetensors");
  EXPECT_NE(dir.contents().find("model-2.safetensors"), std::string::npos) << "a missing shard";
  dir.two_shards('x');
  std::filesystem::resize_file(dir.path() + "/model-2.safetensors", 90);
  EXPECT_NE(dir.contents().find("model-2.safetensors: the file is truncated"), std::string::npos) << dir.contents();
  dir.two_shards('x');
  dir.shard("model-2.safetensors", {"d"}, 'x');
  EXPECT_NE(dir.contents().find("tensor c"), std::string::npos)
      << "an index that names an absent tensor: " << dir.contents();
  dir.shard("model-2.safetensors", {"c", "a"}, 'x');
  EXPECT_NE(dir.contents().find("tensor a is in both"), std::string::npos) << dir.contents();
  dir.write("model.safetensors.index.json", "{");
  EXPECT_NE(dir.contents().find("weight_map"), std::string::npos);
  dir.write("model.safetensors.index.json", R"({"weight_map":{"a":"../elsewhere"}})");
  EXPECT_NE(dir.contents().find("plain file name"), std::string::npos);
}

}  // namespace
}  // namespace lathe::delta
