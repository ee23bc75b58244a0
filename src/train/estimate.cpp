#include "train/estimate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "base/memory.h"
#include "gpu/device.h"
#include "train/backward.h"
#include "train/loss.h"

namespace lathe::train {
namespace {

// Pages of libraries that are touched only while a model runs, and what their threads set aside.
constexpr int64_t kLibraries = int64_t{70} << 20;

int64_t element_bytes(const weights::WeightStore& store) {
  return static_cast<int64_t>(store.parameters().front().data.element_size());
}

bool is_matrix(const weights::Parameter& parameter) {
  return parameter.data.dim() == 2;
}

// Numbers of X and dY per live row, all matrices but embedding and head.
int64_t factor_numbers(const weights::WeightStore& store) {
  int64_t numbers = 0;
  for (const weights::Parameter& parameter : store.parameters()) {
    if (is_matrix(parameter) && !parameter.vocabulary) numbers += parameter.data.size(0) + parameter.data.size(1);
  }
  return numbers;
}

int64_t matrix_elements(const weights::WeightStore& store) {
  int64_t elements = 0;
  for (const weights::Parameter& parameter : store.parameters())
    elements += is_matrix(parameter) ? parameter.data.numel() : 0;
  return elements;
}

int64_t largest_parameter(const weights::WeightStore& store) {
  int64_t largest = 0;
  for (const weights::Parameter& parameter : store.parameters()) largest = std::max(largest, parameter.data.numel());
  return largest;
}

// Log-probabilities and their gradient in fp32, and logits twice, of one slice of rows.
int64_t slice_bytes(const model::ModelConfig& config, int64_t graded, int64_t element) {
  return std::min(graded, slice_rows(config)) *
         (2 * model::Cost(config, 4).logits() + 2 * model::Cost(config, element).logits());
}

// oneDNN multiplies bf16 from a copy of the weight in its own order.
int64_t product_bytes(const weights::WeightStore& store, int64_t element) {
  return element == 2 ? largest_parameter(store) * element : 0;
}

struct Gradients {
  int64_t kept = 0;    // from the backward pass to the commit
  int64_t commit = 0;  // beside them, while the update is written
};

Gradients gradient_bytes(const model::ModelConfig& config, const weights::WeightStore& store,
                         const RunSettings& settings, const PassSize& step, int64_t element) {
  const model::Cost cost(config, element);
  const int64_t head = step.graded * cost.head_factors();
  const int64_t layers = step.live_rows * factor_numbers(store) * element;
  const int64_t embedding = step.live_rows * cost.embedding_factors();
  const bool adam = settings.optimizer.method == optim::Method::kAdamW;
  const int64_t tiles = at::get_num_threads() * settings.optimizer.tile_elements * 4;
  switch (settings.step.gradients) {
    case GradientPath::kDense:
      return {matrix_elements(store) * 4, tiles};
    case GradientPath::kStreaming:
      // Head and embedding wait for each other, as factors or as one dense matrix; a layer and its largest part.
      return {std::min(head + embedding, cost.dense_table()),
              layers / config.layers + largest_parameter(store) * element + tiles};
    case GradientPath::kFactored:
      break;
  }
  // AdamW widens factors to fp32; APOLLO's norms and projections look at one parameter's at a time.
  const int64_t kept = head + layers + embedding;
  return {kept, tiles + (adam ? 2 * kept : head)};
}

int64_t reference_bytes(const RunSettings& settings, const Dataset& training) {
  if (settings.objective.kl <= 0) return 0;
  int64_t graded = 0;
  for (const data::Example& example : training.examples())
    graded += std::count_if(example.weights.begin(), example.weights.end(), [](float weight) { return weight > 0; });
  return graded * (8 * settings.objective.kl_tokens + 4);
}

}  // namespace

void PassSize::operator+=(const PassSize& other) {
  sequences += other.sequences;
  rows += other.rows;
  live_rows += other.live_rows;
  live_runs += other.live_runs;
  graded += other.graded;
  longest = std::max(longest, other.longest);
  pairs += other.pairs;
  live_pairs += other.live_pairs;
}

PassSize pass_size(std::span<const data::Example> examples, data::ContextMode mode) {
  PassSize size;
  for (const data::Example& example : examples) {
    const std::vector<data::Segment> live = data::live_segments(example, mode);
    const int64_t rows = live.back().end;
    PassSize one{.sequences = 1, .rows = rows, .live_runs = std::ssize(live), .longest = rows};
    one.pairs = static_cast<double>(rows) * static_cast<double>(rows + 1) / 2;
    for (const data::Segment& segment : live) {
      one.live_rows += segment.size();
      one.live_pairs += static_cast<double>(segment.size()) * static_cast<double>(segment.begin + segment.end + 1) / 2;
    }
    one.graded = std::count_if(example.weights.begin(), example.weights.end(), [](float w) { return w > 0; });
    size += one;
  }
  return size;
}

double operations(const model::ModelConfig& config, const weights::WeightStore& store, const PassSize& pass) {
  double layers = 0;
  for (const weights::Parameter& parameter : store.parameters()) {
    if (is_matrix(parameter) && !parameter.vocabulary) layers += static_cast<double>(parameter.data.numel());
  }
  const model::Cost cost(config, element_bytes(store));
  const auto rows = static_cast<double>(pass.rows), live = static_cast<double>(pass.live_rows),
             graded = static_cast<double>(pass.graded);
  // Attention: queries times keys and weights times values, each two per pair forward; 2.5 times that backward.
  return 2 * layers * (rows + 2 * live) + cost.head_operations() * graded +
         cost.attention_operations() * (pass.pairs + 2.5 * pass.live_pairs);
}

MemoryEstimate estimate_memory(const model::ModelConfig& config, const weights::WeightStore& store,
                               const RunSettings& settings, const Dataset& training, const RunPlan& plan,
                               int64_t program) {
  const int64_t element = element_bytes(store);
  const model::Cost cost(config, element);
  const MemoryEstimate standing{.program = program + kLibraries,
                                .weights = store.byte_count(),
                                .optimizer = optim::Optimizer(store, settings.optimizer).full_bytes(),
                                .references = reference_bytes(settings, training)};
  MemoryEstimate peak = standing;
  const auto consider = [&](int64_t context, int64_t activations, int64_t gradients) {
    MemoryEstimate now = standing;
    now.context = context, now.activations = activations, now.gradients = gradients;
    if (now.total() > peak.total()) peak = now;
  };
  const int64_t product = product_bytes(store, element);
  const PassLimits limits = pass_limits(settings.step, store.parameters().front().data.device());
  for (const data::StepBatches& batches : plan.steps) {
    PassSize step;  // of the micro-batches so far
    for (const data::ItemBatch& items : batches) {
      const PassSize pass = pass_size(training.examples_of(items), settings.step.context);
      const int64_t before = gradient_bytes(config, store, settings, step, element).kept;
      step += pass;
      const Gradients gradients = gradient_bytes(config, store, settings, step, element);
      const int64_t context = cost.context(pass.rows, pass.sequences);
      const int64_t kept = pass.live_rows * cost.activations();
      const bool keep = pass.live_runs <= pass.sequences && kept <= limits.kept_bytes;
      const int64_t inputs = keep ? kept : pass.live_rows * cost.layer_inputs();
      const int64_t chunk = std::min(keep ? pass.rows - pass.live_rows : pass.rows, limits.chunk_rows);
      const int64_t head = pass.graded * cost.head_factors();
      // Forward; the loss; the first layer's backward pass, when all gradients of layers are there.
      consider(context, inputs + cost.layer(chunk, pass.longest, /*graph=*/false) + product, before);
      consider(context, inputs + slice_bytes(config, pass.graded, element) + product, before + head);
      const bool streaming = settings.step.gradients == GradientPath::kStreaming;
      consider(context,
               (streaming ? inputs : inputs / config.layers) +
                   cost.layer(pass.live_rows, pass.longest, /*graph=*/true) + product,
               gradients.kept + (streaming ? gradients.commit : 0));
    }
    const Gradients gradients = gradient_bytes(config, store, settings, step, element);
    consider(0, 0, gradients.kept + gradients.commit);
  }
  return peak;
}

int64_t estimate_lesson(const model::ModelConfig& config, const weights::WeightStore& store,
                        const optim::OptimizerConfig& optimizer, const StepOptions& step,
                        std::span<const data::Example> examples) {
  RunSettings settings;
  settings.optimizer = optimizer;
  settings.step = step;
  const Dataset lesson({examples.begin(), examples.end()}, settings.objective);
  data::ItemBatch all(examples.size());
  std::iota(all.begin(), all.end(), 0);
  const MemoryEstimate peak = estimate_memory(config, store, settings, lesson, {.steps = {{all}}}, 0);
  return peak.total() - peak.program - peak.weights;
}

int64_t free_for_lessons(const weights::WeightStore& store) {
  const c10::Device device = store.parameters().front().data.device();
  if (device.is_cpu()) return available_bytes();
  const auto found = gpu::inventory();
  if (!found.ok()) return 0;
  for (const gpu::DeviceInfo& info : found->devices) {
    if (info.index == device.index()) return info.total_bytes - store.byte_count();
  }
  return 0;
}

}  // namespace lathe::train
