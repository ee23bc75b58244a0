// The last step of every update: W <- round(W - step * U - decay * W), one rounding for update and decay together.
//
// bf16 weights have no fp32 master. Rounding to nearest would lose every change under half a unit in the last place,
// which at usual learning rates is ~98 % of them; stochastic rounding keeps the expectation exact: 16 random bits are
// added below the kept ones and the sum is truncated. For studies there is the master after all: an fp32 shadow takes
// the updates, and the weights are its roundings to nearest.
//
// Random bits: Philox4x32-10 with key (seed, stream) and counter (block, update_index, a tag). Elements come in groups
// of 512; group g owns blocks 64 g .. 64 g + 63. Element e of the group takes 16 bits: the low half of word k / 64 of
// block k % 64 for k = e < 256, the high half of that of k = e - 256 for the others.
// Memory: in place; nothing is allocated.
// Threads: pure on their ranges; ranges of one tensor may be updated concurrently.
#pragma once

#include <cstdint>

namespace lathe::kernels {

enum class Rounding { kStochastic, kNearest, kShadow };

struct Update {
  float step = 0;   // multiplies U
  float decay = 0;  // multiplies W
  Rounding rounding = Rounding::kStochastic;
  uint32_t seed = 0;
  uint32_t stream = 0;        // which tensor
  uint32_t update_index = 0;  // which update of it
};

// What became of an update of n elements: d is the intended change, Δ the realised one.
struct UpdateStats {
  int64_t elements = 0;
  int64_t changed = 0;
  double intended_squared = 0;  // Σ d²
  double realised_dot = 0;      // Σ d Δ
  double changed_fraction() const {
    return elements > 0 ? static_cast<double>(changed) / static_cast<double>(elements) : 0;
  }
  // 1 where nothing is lost.
  double realised_share() const { return intended_squared > 0 ? realised_dot / intended_squared : 1; }
  void operator+=(const UpdateStats& other) {
    elements += other.elements;
    changed += other.changed;
    intended_squared += other.intended_squared;
    realised_dot += other.realised_dot;
  }
};

// Elements first .. first + n - 1 of a tensor, kStochastic or kNearest; w and u point to element `first`. NaN and
// infinite results are kept as they are, and a finite result never becomes infinite.
UpdateStats update_bf16(uint16_t* w, const float* u, int64_t first, int64_t n, const Update& update);
UpdateStats update_bf16(uint16_t* w, const uint16_t* u_bf16, int64_t first, int64_t n, const Update& update);
// The update goes to the shadow, fp32, and w becomes its nearest bf16. Where w is not what the shadow rounds to,
// somebody else has changed it (a rollback): then w wins, and the shadow starts again from it. Δ is that of w.
UpdateStats update_shadow(uint16_t* w, float* shadow, const float* u, int64_t n, const Update& update);
UpdateStats update_shadow(uint16_t* w, float* shadow, const uint16_t* u_bf16, int64_t n, const Update& update);
// fp32 weights: no rounding beyond fp32's own.
UpdateStats update_fp32(float* w, const float* u, int64_t n, const Update& update);

// Standard normal numbers: element i of stream `stream` is a pure function of (seed, stream, i). Box-Muller on the two
// 32-bit halves of a Philox block: words 0, 1 give elements 4b, 4b + 1, words 2, 3 give 4b + 2, 4b + 3.
void normal_numbers(float* out, int64_t n, uint32_t seed, uint32_t stream, uint32_t epoch);

}  // namespace lathe::kernels
