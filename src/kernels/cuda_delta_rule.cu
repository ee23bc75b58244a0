// The gated delta rule's two passes, as sequences of kernels.
#include "kernels/cuda_delta_rule.cuh"

namespace lathe::kernels::cuda {
namespace {

Kernel kernel_of(const DeltaArguments& in, const DeltaShape& shape, const DeltaChunks& chunks) {
  return {in, shape, chunks, shape.chunks(), static_cast<int>(shape.value_heads / shape.key_heads)};
}

}  // namespace

void delta_rule(const DeltaArguments& in, const DeltaShape& shape, const DeltaChunks& chunks, void* o, float* last,
                CUstream_st* stream) {
  const Kernel kernel = kernel_of(in, shape, chunks);
  prepare_delta_chunks(kernel, stream);
  scan_delta_forward(kernel, o, last, stream);
}

void delta_rule_steps(const DeltaArguments& in, const DeltaShape& shape, void* o, float* last, CUstream_st* stream) {
  step_delta(kernel_of(in, shape, {}), o, last, stream);
}

void delta_rule_gradient(const DeltaArguments& in, const DeltaShape& shape, const DeltaChunks& chunks, const void* d_o,
                         const float* d_last, const DeltaGradients& out, CUstream_st* stream) {
  const Kernel kernel = kernel_of(in, shape, chunks);
  scan_delta_backward(kernel, d_o, d_last, out, stream);
  gather_delta_gradients(kernel, d_o, out, stream);
}

}  // namespace lathe::kernels::cuda
