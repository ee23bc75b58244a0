#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "kernels/philox.h"

namespace lathe::engine {
namespace {

constexpr uint32_t kSampleTag = 0x5EED0003U;

struct Entry {
  int32_t id;
  float logit;
};

// Largest logit first; of equals the smallest id, so that ties are decided.
bool before(const Entry& a, const Entry& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

double log_sum_exp(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - largest);
  return static_cast<double>(largest) + std::log(sum);
}

// Sorts as many candidates as it takes until their share of the whole reaches `top_p`; cuts the rest.
void keep_nucleus(std::vector<Entry>& entries, float largest, double temperature, double top_p) {
  double total = 0;
  for (const Entry& e : entries) total += std::exp((e.logit - largest) / temperature);
  size_t sorted = 0;
  double sum = 0;
  for (size_t count = 64; sorted < entries.size(); count *= 4) {
    const size_t end = std::min(count, entries.size());
    std::partial_sort(entries.begin() + static_cast<std::ptrdiff_t>(sorted),
                      entries.begin() + static_cast<std::ptrdiff_t>(end), entries.end(), before);
    for (; sorted < end; ++sorted) {
      sum += std::exp((entries[sorted].logit - largest) / temperature);
      if (sum < top_p * total) continue;
      entries.resize(sorted + 1);
      return;
    }
  }
}

}  // namespace

Sampler::Sampler(const Sampling& sampling, std::span<const int32_t> prompt, uint64_t seed)
    : sampling_(sampling), seed_(sampling.seed.value_or(seed)) {
  if (sampling_.repetition_penalty == 1) return;
  for (const int32_t id : prompt) ++seen_[id];
}

void Sampler::penalise(std::span<float> logits) const {
  for (const auto& [id, bias] : sampling_.logit_bias) logits[id] += bias;
  if (sampling_.repetition_penalty != 1) {
    const auto penalty = static_cast<float>(sampling_.repetition_penalty);
    for (const auto& [id, count] : seen_) logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  }
  if (sampling_.presence_penalty == 0 && sampling_.frequency_penalty == 0) return;
  for (const auto& [id, count] : generated_) {
    logits[id] -=
        static_cast<float>(sampling_.presence_penalty + sampling_.frequency_penalty * static_cast<double>(count));
  }
}

int32_t Sampler::draw(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  const double temperature = sampling_.temperature;
  // p >= min_p * max(p) in terms of logits.
  const double threshold = sampling_.min_p > 0 ? largest + temperature * std::log(sampling_.min_p) : -INFINITY;
  std::vector<Entry> entries;
  entries.reserve(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= threshold) entries.push_back({static_cast<int32_t>(id), logits[id]});
  }
  if (sampling_.top_k > 0 && static_cast<size_t>(sampling_.top_k) < entries.size()) {
    std::nth_element(entries.begin(), entries.begin() + sampling_.top_k, entries.end(), before);
    entries.resize(sampling_.top_k);
  }
  if (sampling_.top_p < 1) keep_nucleus(entries, largest, temperature, sampling_.top_p);
  // A fixed order, so that the same number always means the same token.
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });

  double total = 0;
  for (const Entry& e : entries) total += std::exp((e.logit - largest) / temperature);
  const auto bits =
      kernels::philox({static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)},
                      {static_cast<uint32_t>(drawn_), static_cast<uint32_t>(drawn_ >> 32), 0, kSampleTag});
  const double uniform = (static_cast<double>(bits[0]) + static_cast<double>(bits[1]) * 0x1p-32) * 0x1p-32;
  double left = uniform * total;
  for (const Entry& e : entries) {
    left -= std::exp((e.logit - largest) / temperature);
    if (left < 0) return e.id;
  }
  return entries.back().id;
}

Result<int32_t> Sampler::next(std::span<float> logits) {
  penalise(logits);
  float sum = 0;  // NaN and infinities survive a sum of zeros times them
  for (const float x : logits) sum += x * 0;
  if (sum != 0 || std::isnan(sum)) return internal("the model's logits are not finite; were its weights damaged?");
  const int32_t id = sampling_.temperature == 0
                         ? static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())
                         : draw(logits);
  ++drawn_;
  ++generated_[id];
  if (sampling_.repetition_penalty != 1) ++seen_[id];
  return id;
}

Token log_probability(std::span<const float> logits, int32_t id, int top) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  const double normaliser = log_sum_exp(logits, largest);
  Token token{.id = id, .logprob = static_cast<float>(logits[id] - normaliser)};
  if (top <= 0) return token;
  std::vector<Entry> entries(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) entries[i] = {static_cast<int32_t>(i), logits[i]};
  const auto end = entries.begin() + std::min<std::ptrdiff_t>(top, std::ssize(entries));
  std::partial_sort(entries.begin(), end, entries.end(), before);
  for (auto it = entries.begin(); it != end; ++it)
    token.top.push_back({it->id, static_cast<float>(it->logit - normaliser)});
  return token;
}

}  // namespace lathe::engine
