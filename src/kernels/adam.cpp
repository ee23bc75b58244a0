#include "kernels/adam.h"

#include <cmath>

#include "base/clones.h"

namespace lathe::kernels {

LATHE_CLONES void adam_direction(float* __restrict g, float* __restrict m, float* __restrict v, int64_t n,
                                 const AdamCoefficients& c) {
  // By value, so that the loop need not fear that the stores change them.
  const AdamCoefficients k = c;
  for (int64_t i = 0; i < n; ++i) {
    m[i] = k.beta1 * m[i] + (1 - k.beta1) * g[i];
    v[i] = k.beta2 * v[i] + (1 - k.beta2) * g[i] * g[i];
    g[i] = k.first * m[i] / (std::sqrt(k.second * v[i]) + k.epsilon);
  }
}

}  // namespace lathe::kernels
