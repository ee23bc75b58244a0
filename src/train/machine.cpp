#include "train/machine.h"

#include <ATen/ATen.h>

#include <chrono>

#include "gpu/device.h"

namespace lathe::train {

double best_seconds(int repeats, c10::Device device, const std::function<void()>& work) {
  double best = 0;
  for (int i = 0; i <= repeats; ++i) {
    gpu::synchronize(device);
    const auto begin = std::chrono::steady_clock::now();
    work();
    gpu::synchronize(device);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (i == 1 || (i > 1 && seconds < best)) best = seconds;
  }
  return best;
}

double product_operations_per_second(c10::Device device, c10::ScalarType dtype) {
  const int64_t side = device.is_cpu() ? 2048 : 8192, rows = device.is_cpu() ? 512 : 8192;
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  const at::Tensor a = at::randn({rows, side}, options), b = at::randn({side, side}, options);
  return 2.0 * static_cast<double>(rows * side * side) / best_seconds(5, device, [&] { at::linear(a, b); });
}

double bytes_read_per_second(c10::Device device) {
  const at::Tensor block = at::ones({device.is_cpu() ? int64_t{64} << 20 : int64_t{1} << 30},
                                    at::TensorOptions().device(device).dtype(at::kFloat));
  return static_cast<double>(block.nbytes()) / best_seconds(5, device, [&] { block.sum(); });
}

}  // namespace lathe::train
