// Whole runs in a file system that crashes: whatever happens, the directory is the old one or the result, and a resumed
// run ends in the same bits.
#include "train/run.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "io/fault_env.h"

namespace lathe::train {
namespace {

constexpr const char* kGolden = LATHE_SOURCE_DIR "/tests/golden/qwen3/";
const std::string kDir = "/model";
const std::string kWeights = kDir + "/model.safetensors";

const auto kNever = [] { return false; };

std::vector<data::Example> random_examples(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<data::Example> examples(count);
  for (data::Example& example : examples) {
    for (size_t t = 0, n = 6 + random() % 6; t < n; ++t) {
      example.tokens.push_back(static_cast<int32_t>(random() % 32));
      example.weights.push_back(t < 3 ? 0.0F : 1.0F);
    }
  }
  return examples;
}

std::unique_ptr<io::FaultEnv> new_disk() {
  auto disk = std::make_unique<io::FaultEnv>();
  EXPECT_TRUE(disk->create_directories(kDir + "/.lathe").ok());
  for (const char* name : {"config.json", "model.safetensors"}) {
    const std::string bytes = io::read_text(io::posix_env(), std::string(kGolden) + name).value();
    EXPECT_TRUE(io::write_text_atomically(*disk, kDir + "/" + name, bytes).ok());
  }
  disk->make_durable();
  return disk;
}

std::string weights_on(io::Env& disk) {
  return io::read_text(disk, kWeights).value();
}

RunSettings small_settings() {
  RunSettings settings;
  settings.plan = {.epochs = 3, .batch = 2, .max_steps = 3};
  settings.schedule = {.decay = optim::Decay::kCosine, .peak = 1e-2, .warmup_steps = 1};
  settings.evaluate_every = 2;
  settings.save_steps = 1;
  return settings;
}

// One process: loads the directory, prepares, runs.
struct Process {
  explicit Process(io::Env& disk, RunSettings s = small_settings(), uint32_t data_seed = 1)
      : settings(std::move(s)),
        loaded(model::load_model(disk, kDir).value()),
        trainer(*loaded.model, *loaded.store, gate, settings.optimizer),
        training(random_examples(settings.objective.preferences ? 12 : 6, data_seed), settings.objective),
        evaluation(random_examples(4, 99), settings.objective),
        run(disk, kDir, *loaded.store, trainer, settings, training, &evaluation, {{"data file", training.hash()}}) {}

  RunSettings settings;
  model::LoadedModel loaded;
  weights::Gate gate;
  Trainer trainer;
  Dataset training, evaluation;
  Run run;
  RunObserver quiet;
};

// The model is so small that a second thread costs more than it gains, and much more next to other programs.
class OneThread final : public ::testing::Environment {
 public:
  void SetUp() override { at::set_num_threads(1); }
};
const auto* const kOneThread = ::testing::AddGlobalTestEnvironment(new OneThread);

using Begin = Run::Begin;
using End = RunOutcome::End;

// What a person would do after a crash: recover, and resume if there is something to resume.
void finish(io::Env& disk, const RunSettings& settings, const std::string& result) {
  {
    const auto lock = delta::lock_history(disk, kDir);
    ASSERT_TRUE(lock.ok() && history::recover(disk, kDir).ok());
  }
  const auto unfinished = RunDirectory(disk, kDir).read();
  ASSERT_TRUE(unfinished.ok()) << unfinished.error().message;
  if (!unfinished->has_value() && weights_on(disk) == result) return;
  Process process(disk, settings);
  const Status prepared = process.run.prepare(unfinished->has_value() ? Begin::kResume : Begin::kNew);
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  const auto outcome = process.run.execute(process.quiet, kNever);
  ASSERT_TRUE(outcome.ok()) << outcome.error().message;
}

class AnyObjective : public ::testing::TestWithParam<const char*> {
 protected:
  AnyObjective() : settings_(small_settings()) {
    const std::string name = GetParam();
    settings_.objective.preferences = name == "dpo";
    if (name == "kl") settings_.objective = {.kl = 0.5, .kl_tokens = 4};
    if (name == "patience") {
      settings_.patience = 3;
      settings_.plan.max_steps = 4;
      settings_.evaluate_every = 1;
      settings_.schedule = {.peak = 2e-3};
    }
    if (name == "adamw") settings_.optimizer.method = optim::Method::kAdamW;
    if (name == "kl") settings_.plan.accumulate = 2;
    if (name == "sft") settings_.step.gradients = GradientPath::kStreaming;
  }
  RunSettings settings_;
};

TEST_P(AnyObjective, ACrashAtAnyOperationIsResumedToTheSameBits) {
  const auto straight = new_disk();
  const std::string before = weights_on(*straight);
  straight->set_fault({});
  // All operations but appends, of which there is one per tensor: of those a few.
  std::vector<int64_t> operations;
  straight->set_observer([&](int64_t number, const std::string& what) {
    if (!what.starts_with("append") || number % 40 == 0) operations.push_back(number);
  });
  Process process(*straight, settings_);
  ASSERT_TRUE(process.run.prepare(Begin::kNew).ok());
  const auto outcome = process.run.execute(process.quiet, kNever);
  ASSERT_EQ(outcome->end, End::kDone);
  ASSERT_EQ(outcome->installed, settings_.patience > 0 ? 1 : 3) << "with patience, the best is not the last";
  const std::string result = weights_on(*straight);
  ASSERT_NE(result, before);
  ASSERT_GT(operations.size(), 50U);

  // Each of them over the five instances of this test.
  const std::string names = "sft  dpo  kl   patience adamw";
  for (size_t i = names.find(GetParam()) / 5 % 5; i < operations.size(); i += 5) {
    const int64_t at = operations[i];
    SCOPED_TRACE("operation " + std::to_string(at));
    const auto disk = new_disk();
    disk->set_fault({.kind = io::Fault::Kind::kCrash, .at = at, .part = 0.5});
    Process killed(*disk, settings_);
    const Status prepared = killed.run.prepare(Begin::kNew);
    ASSERT_TRUE(prepared.ok()) << prepared.error().message;
    EXPECT_FALSE(killed.run.execute(killed.quiet, kNever).ok());
    io::RandomChoices choices(at);
    const auto after = at % 2 == 0 ? disk->after_kill() : disk->after_power_loss(choices);
    ASSERT_NO_FATAL_FAILURE(finish(*after, settings_, result));
    EXPECT_TRUE(weights_on(*after) == result);
    EXPECT_FALSE(*after->exists(kDir + "/.lathe/train/run.json"));
  }
}

INSTANTIATE_TEST_SUITE_P(Objectives, AnyObjective, ::testing::Values("sft", "dpo", "kl", "patience", "adamw"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Run, AStopSavesAndLeavesTheDirectoryAlone) {
  const auto straight = new_disk(), disk = new_disk();
  const std::string before = weights_on(*disk);
  RunSettings settings = small_settings();
  settings.save_steps = 0;
  Process whole(*straight, settings), stopped(*disk, settings);
  ASSERT_TRUE(whole.run.prepare(Begin::kNew).ok());
  ASSERT_TRUE(whole.run.execute(whole.quiet, kNever).ok());
  ASSERT_TRUE(stopped.run.prepare(Begin::kNew).ok());
  const auto outcome = stopped.run.execute(stopped.quiet, [&] { return stopped.run.done_steps() == 2; });
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->end, End::kInterrupted);
  EXPECT_TRUE(weights_on(*disk) == before);

  Process resumed(*disk, settings);
  ASSERT_TRUE(resumed.run.prepare(Begin::kResume).ok());
  EXPECT_EQ(resumed.run.done_steps(), 2);
  ASSERT_TRUE(resumed.run.execute(resumed.quiet, kNever).ok());
  EXPECT_TRUE(weights_on(*disk) == weights_on(*straight));
  ASSERT_EQ(resumed.run.state().steps.size(), 3U);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(resumed.run.state().steps[i].loss, whole.run.state().steps[i].loss) << i;
  EXPECT_EQ(resumed.run.state().evaluations.size(), whole.run.state().evaluations.size());
}

// A disk with a run that stopped after 2 steps.
std::unique_ptr<io::FaultEnv> unfinished_run() {
  auto disk = new_disk();
  Process process(*disk);
  EXPECT_TRUE(process.run.prepare(Begin::kNew).ok());
  EXPECT_TRUE(process.run.execute(process.quiet, [&] { return process.run.done_steps() == 2; }).ok());
  return disk;
}

std::string refusal(Process& process, Begin begin) {
  const Status status = process.run.prepare(begin);
  return status.ok() ? "accepted" : status.error().message;
}

TEST(Run, ResumingRefusesByNameWhatDiffers) {
  const auto disk = unfinished_run();
  const auto refused = [&](void (*change)(RunSettings&)) {
    RunSettings settings = small_settings();
    change(settings);
    Process process(*disk, settings);
    return refusal(process, Begin::kResume);
  };
  EXPECT_EQ(refused([](RunSettings&) {}), "accepted");
  EXPECT_NE(refused([](RunSettings& s) { s.schedule.peak = 2e-2; }).find("learning rate: 0.01, not 0.02"),
            std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.plan.seed = 5; }).find("another seed: 1, not 5"), std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.optimizer.method = optim::Method::kSgd; }).find("optimizer: apollo_mini"),
            std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.objective.kl = 1; }).find("another kl"), std::string::npos);

  Process other_data(*disk, small_settings(), 2);
  EXPECT_NE(refusal(other_data, Begin::kResume).find("another data file;"), std::string::npos);
  std::string weights = weights_on(*disk);
  weights.back() ^= 1;
  ASSERT_TRUE(io::write_text_atomically(*disk, kWeights, weights).ok());
  Process other_model(*disk);
  EXPECT_NE(refusal(other_model, Begin::kResume).find("another model;"), std::string::npos);
}

TEST(Run, AnUnfinishedRunIsNeitherIgnoredNorInvented) {
  const auto disk = unfinished_run();
  Process again(*disk);
  const std::string message = refusal(again, Begin::kNew);
  EXPECT_NE(message.find("stopped after 2 steps"), std::string::npos) << message;
  EXPECT_NE(message.find("--resume"), std::string::npos);

  const auto straight = new_disk();
  Process whole(*straight), restarted(*disk);
  ASSERT_TRUE(whole.run.prepare(Begin::kNew).ok());
  ASSERT_TRUE(whole.run.execute(whole.quiet, kNever).ok());
  EXPECT_EQ(refusal(restarted, Begin::kRestart), "accepted");
  EXPECT_TRUE(*disk->exists(kDir + "/.lathe/train/run.json")) << "prepare() changes nothing";
  ASSERT_TRUE(restarted.run.execute(restarted.quiet, kNever).ok());
  EXPECT_TRUE(weights_on(*disk) == weights_on(*straight));

  const auto fresh = new_disk();
  Process none(*fresh);
  EXPECT_NE(refusal(none, Begin::kResume).find("no unfinished run"), std::string::npos);
}

TEST(Run, ADamagedRecordIsNamed) {
  for (const char* text :
       {"", "[]", "{}", R"({"format":"lathe training state 2"})", R"({"format":"lathe training state 1","step":3})"}) {
    const auto disk = unfinished_run();
    ASSERT_TRUE(io::write_text_atomically(*disk, kDir + "/.lathe/train/run.json", text).ok());
    Process process(*disk);
    EXPECT_NE(refusal(process, Begin::kResume).find("run.json"), std::string::npos) << text;
  }
}

TEST(Run, PatienceStopsAndKeepsTheBestWeights) {
  const auto disk = new_disk();
  RunSettings settings = small_settings();
  settings.plan.epochs = 100;
  settings.plan.max_steps = 60;
  settings.evaluate_every = 1;
  settings.patience = 3;
  settings.schedule = {.peak = 2e-3};
  Process process(*disk, settings);
  ASSERT_TRUE(process.run.prepare(Begin::kNew).ok());
  const auto outcome = process.run.execute(process.quiet, kNever);
  ASSERT_TRUE(outcome.ok());
  const auto& evaluations = process.run.state().evaluations;
  ASSERT_LT(outcome->steps, 60) << "random sequences are soon learned by heart";
  size_t best = 0;
  for (size_t i = 0; i < evaluations.size(); ++i) {
    if (evaluations[i].loss < evaluations[best].loss) best = i;
  }
  EXPECT_EQ(evaluations.size() - 1 - best, 3U);
  EXPECT_EQ(outcome->installed, evaluations[best].step);
  ASSERT_GT(outcome->installed, 0);

  // The directory holds what that evaluation judged.
  Process judge(*disk, settings);
  const auto loss = judge.trainer.evaluate(judge.evaluation.examples(), {});
  EXPECT_NEAR(loss->loss, evaluations[best].loss, 1e-6);
}

TEST(Run, NothingBetterLeavesTheDirectoryAlone) {
  const auto disk = new_disk();
  const std::string before = weights_on(*disk);
  RunSettings settings = small_settings();
  settings.evaluate_every = settings.patience = 1;
  settings.schedule = {.peak = 0.3};
  Process process(*disk, settings);
  ASSERT_TRUE(process.run.prepare(Begin::kNew).ok());
  const auto outcome = process.run.execute(process.quiet, kNever);
  ASSERT_TRUE(outcome.ok()) << outcome.error().message;
  EXPECT_EQ(outcome->end, End::kNoBetter);
  EXPECT_TRUE(weights_on(*disk) == before);
  EXPECT_FALSE(*disk->exists(kDir + "/.lathe/train"));
}

TEST(Run, AFullDiskCostsNeitherTheDirectoryNorTheRun) {
  const auto disk = new_disk();
  const std::string before = weights_on(*disk);
  Process process(*disk);
  ASSERT_TRUE(process.run.prepare(Begin::kNew).ok());
  disk->set_capacity(before.size() * 5 / 2);  // room for a saved state, not for new shards next to the old ones
  struct : RunObserver {
    int warnings = 0;
    void warned(const std::string&) override { ++warnings; }
  } observer;
  const auto outcome = process.run.execute(observer, kNever);
  ASSERT_FALSE(outcome.ok());
  EXPECT_NE(outcome.error().message.find("--resume"), std::string::npos) << outcome.error().message;
  EXPECT_GT(observer.warnings, 0);
  EXPECT_TRUE(weights_on(*disk) == before);
  disk->set_capacity(UINT64_MAX);

  const auto straight = new_disk();
  Process whole(*straight), resumed(*disk);
  ASSERT_TRUE(whole.run.prepare(Begin::kNew).ok());
  ASSERT_TRUE(whole.run.execute(whole.quiet, kNever).ok());
  ASSERT_TRUE(resumed.run.prepare(Begin::kResume).ok());
  ASSERT_TRUE(resumed.run.execute(resumed.quiet, kNever).ok());
  EXPECT_TRUE(weights_on(*disk) == weights_on(*straight));
}

TEST(Run, RefusesSettingsThatCannotWork) {
  const auto disk = new_disk();
  const auto refused = [&](void (*change)(RunSettings&)) {
    RunSettings settings = small_settings();
    change(settings);
    Process process(*disk, settings);
    return refusal(process, Begin::kNew);
  };
  EXPECT_NE(refused([](RunSettings& s) { s.patience = 1, s.evaluate_every = 0; }).find("patience"), std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.schedule.warmup_steps = 3; }).find("warm-up"), std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.plan.max_tokens = 3; }).find("tokens"), std::string::npos);
  EXPECT_NE(refused([](RunSettings& s) { s.objective = {.preferences = true, .kl = 1}; }).find("kl"),
            std::string::npos);
}

}  // namespace
}  // namespace lathe::train
