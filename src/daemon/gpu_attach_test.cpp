// Weights that another process holds on a GPU, taught in place: Lathe's side against tests/gpu/exporter.py, which
// allocates as vLLM does. Without a GPU, or without a python3 that has torch with CUDA, every test skips itself.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>

#include "daemon/attach.h"
#include "gpu/device.h"
#include "train/trainer.h"
#include "vllm/session.h"

namespace lathe::daemon {
namespace {

namespace fs = std::filesystem;

const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

// Where exporter.py and lathe_vllm are: beside the packed programs, or in the source tree.
std::string script(const char* packed, const char* in_tree) {
  if (const char* pack = std::getenv("LATHE_PACK")) return std::string(pack) + "/" + packed;
  return std::string(LATHE_SOURCE_DIR) + "/" + in_tree;
}

std::string python(const std::string& arguments) {
  return "PYTHONPATH=" + script("python", "python/lathe_vllm") + " exec python3 " +
         script("exporter.py", "tests/gpu/exporter.py") + " " + arguments;
}

// A running exporter.py.
class Exporter {
 public:
  explicit Exporter(const std::string& directory, const std::string& environment = "")
      : socket(fs::temp_directory_path() / ("gpu_attach_" + std::to_string(::getpid()))) {
    int in[2], out[2];
    EXPECT_EQ(::pipe(in), 0);
    EXPECT_EQ(::pipe(out), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      for (const int fd : {in[0], in[1], out[0], out[1]}) ::close(fd);
      const std::string command = environment + " " + python("serve " + directory + " " + socket);
      ::execl("/bin/bash", "bash", "-c", command.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    commands_ = ::fdopen(in[1], "w");
    answers_ = ::fdopen(out[0], "r");
    EXPECT_EQ(answer(), "ready\n");
  }
  ~Exporter() { kill(); }

  // All tensors' bytes as the exporter sees them.
  std::string bytes() {
    const std::string path = socket + ".bytes";
    std::fprintf(commands_, "save %s\n", path.c_str());
    std::fflush(commands_);
    EXPECT_EQ(answer(), "saved\n");
    std::ifstream file(path, std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    fs::remove(path);
    return all;
  }

  void kill() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    std::fclose(commands_);
    std::fclose(answers_);
    pid_ = -1;
  }

  const std::string socket;

 private:
  std::string answer() {
    char line[256] = {};
    return std::fgets(line, sizeof line, answers_) ? line : "";
  }

  pid_t pid_ = -1;
  FILE* commands_ = nullptr;
  FILE* answers_ = nullptr;
};

// The store's bytes in the order in which exporter.py saves them: by name, whole fused tensors.
std::string bytes_of(const weights::WeightStore& store) {
  std::map<std::string, std::string> by_name;
  for (const auto& parameter : store.parameters()) {
    const at::Tensor host = parameter.data.cpu().contiguous();
    by_name[parameter.name] = {static_cast<const char*>(host.const_data_ptr()), host.nbytes()};
  }
  std::string all;
  for (const auto& [name, bytes] : by_name) all += bytes;
  return all;
}

std::vector<data::Example> examples() {
  data::Example example;
  for (int i = 0; i < 96; ++i) {
    example.tokens.push_back(3 + i * 131 % 16000);
    example.weights.push_back(i < 64 ? 0.0F : 1.0F);
  }
  return {example};
}

void step(const model::LoadedModel& loaded) {
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  const auto all = examples();
  auto proposal = trainer.propose(all, {.learning_rate = 1e-3});
  ASSERT_TRUE(proposal.ok()) << proposal.error().message;
  const auto report = trainer.commit(std::move(*proposal));
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_GT(report->commit.total.changed, 0);
  gpu::synchronize(*device());
}

// Whether there is a python3 whose torch sees a GPU; asked once.
bool python_has_gpu() {
  static const bool has =
      std::system("python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null") == 0;
  return has;
}

// A random model directory of this kind, made once and removed with the process.
class Model {
 public:
  static const Model& of(const std::string& kind) {
    static std::map<std::string, std::unique_ptr<Model>> models;
    auto& model = models[kind];
    if (!model) model.reset(new Model(kind));
    return *model;
  }
  ~Model() { fs::remove_all(folder_); }
  const std::string& directory() const { return folder_; }
  bool made() const { return made_; }

 private:
  explicit Model(const std::string& kind)
      : folder_(fs::temp_directory_path() / ("gpu_attach_" + kind + "_" + std::to_string(::getpid()))) {
    made_ = std::system(("bash -c '" + python("make " + kind + " " + folder_) + "'").c_str()) == 0;
  }
  std::string folder_;
  bool made_ = false;
};

class GpuAttach : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    if (!python_has_gpu()) GTEST_SKIP() << "python3 has no torch that sees a GPU";
    ASSERT_TRUE(Model::of(GetParam()).made());
  }

  std::string directory() const { return Model::of(GetParam()).directory(); }

  struct Connection {
    vllm::Session session;
    vllm::Manifest manifest;
    Imported imported;
  };
  Result<Connection> attach_to(const Exporter& exporter) const {
    vllm::Session session = LATHE_TRY(vllm::Session::connect(exporter.socket));
    auto greeting = LATHE_TRY(session.hello());
    LATHE_TRY(vllm::check_refusals(greeting.ranks.front()));
    Imported imported = LATHE_TRY(import_manifest(io::posix_env(), "", greeting.ranks.front()));
    return Connection{std::move(session), std::move(greeting.ranks.front()), std::move(imported)};
  }

  // All bytes of the weights in this process's own memory, after one step.
  std::string own_step() const {
    const auto own = model::load_model(io::posix_env(), directory(), {.device = *device()});
    EXPECT_TRUE(own.ok());
    step(*own);
    return bytes_of(*own->store);
  }
};

TEST_P(GpuAttach, SeesTheExportersWeights) {
  Exporter exporter(directory());
  const auto connection = attach_to(exporter);
  ASSERT_TRUE(connection.ok()) << connection.error().message;
  EXPECT_GT(connection->manifest.memories.size(), 3u) << "too few allocations to prove anything";
  const auto names = differing(io::posix_env(), connection->imported);
  ASSERT_TRUE(names.ok()) << names.error().message;
  EXPECT_TRUE(names->empty()) << names->front();
}

TEST_P(GpuAttach, TheExporterSeesExactlyTheCommittedBits) {
  Exporter exporter(directory());
  auto connection = attach_to(exporter);
  ASSERT_TRUE(connection.ok()) << connection.error().message;
  const std::string before = exporter.bytes();
  ASSERT_TRUE(connection->session.begin(std::chrono::seconds(60), true).ok());
  ASSERT_TRUE(connection->session.write().ok());
  step(connection->imported.loaded);
  ASSERT_TRUE(connection->session.end(1).ok());
  const std::string after = exporter.bytes();
  EXPECT_NE(after, before);
  EXPECT_EQ(after, bytes_of(*connection->imported.loaded.store));
  // And they are those of the same step on weights of one's own, as far as two such steps agree.
  const std::string own = own_step();
  if (own == own_step()) {
    EXPECT_EQ(after, own);
  } else {
    std::printf("two steps on this GPU differ in bits; not compared\n");
  }
}

TEST_P(GpuAttach, AHundredTimesLeaksNothing) {
  Exporter exporter(directory());
  const auto free_bytes = [] {
    return gpu::inventory()->devices.at(static_cast<size_t>(device()->index())).free_bytes;
  };
  const auto descriptors = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const auto once = [&] {
    for (int tries = 0; tries < 100; ++tries) {  // the last session's end takes the exporter a moment
      const auto connection = attach_to(exporter);
      if (connection.ok()) {
        const auto& data = connection->imported.loaded.store->parameters().front().data;
        EXPECT_TRUE(at::isfinite(data.sum()).item<bool>());
        return;
      }
      ASSERT_EQ(connection.error().code, Code::kConflict) << connection.error().message;
      ::usleep(20'000);
    }
    FAIL() << "the exporter stays busy";
  };
  once();  // what is allocated at first use stays
  const auto free = free_bytes();
  const auto open = descriptors();
  for (int i = 0; i < 100; ++i) once();
  EXPECT_EQ(free_bytes(), free);
  EXPECT_EQ(descriptors(), open);
}

TEST_P(GpuAttach, ExpandableSegmentsAreRefused) {
  Exporter exporter(directory(), "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True");
  const auto connection = attach_to(exporter);
  ASSERT_FALSE(connection.ok());
  EXPECT_NE(connection.error().message.find("expandable_segments:True"), std::string::npos)
      << connection.error().message;
}

TEST_P(GpuAttach, TheExportersEndIsSurvived) {
  auto first = std::make_unique<Exporter>(directory());
  {
    auto connection = attach_to(*first);
    ASSERT_TRUE(connection.ok()) << connection.error().message;
    first->kill();
    EXPECT_TRUE(connection->session.wait_closed(std::chrono::seconds(10)));
    const Status begun = connection->session.begin(std::chrono::seconds(1), true);
    ASSERT_FALSE(begun.ok());
    EXPECT_EQ(begun.error().code, Code::kUnavailable);
  }
  // The next one finds everything in order.
  Exporter second(directory());
  const auto connection = attach_to(second);
  ASSERT_TRUE(connection.ok()) << connection.error().message;
  const auto names = differing(io::posix_env(), connection->imported);
  ASSERT_TRUE(names.ok()) << names.error().message;
  EXPECT_TRUE(names->empty());
}

INSTANTIATE_TEST_SUITE_P(All, GpuAttach, ::testing::Values("qwen3", "qwen3_5"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace lathe::daemon
