// Adam's direction of a run of elements, and its moments moved on.
//
// Memory: in place; nothing is allocated.
// Threads: pure on their ranges.
#pragma once

#include <cstdint>

namespace lathe::kernels {

struct AdamCoefficients {
  float beta1, beta2;
  float first, second;  // bias corrections: multiply m and v
  float epsilon;        // added to the root of the corrected v
};

// m <- β1 m + (1 - β1) g;  v <- β2 v + (1 - β2) g²;  g <- first m / (sqrt(second v) + ε). All fp32.
void adam_direction(float* g, float* m, float* v, int64_t n, const AdamCoefficients& c);

}  // namespace lathe::kernels
