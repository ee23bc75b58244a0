// Causal attention on a GPU, aligned bottom-right, by the fastest of LibTorch's kernels for the case: no mask is formed
// and no key or value head repeated.
//
// flash  FlashAttention 2: any n <= m; its causal mask is aligned bottom-right by itself.
// cuDNN  about twice as fast on Hopper where there is much to do, but its mask is aligned top-left and it builds a
//        plan for every new shape. Queries that follow a past are therefore done in two parts, past and own, joined by
//        their soft-max sums; and only shapes come here that recur (docs/decisions/0006-attention-on-gpus.md).
// plain  matrix products with a mask: fp32, and head sizes that the others refuse.
//
// Only in a build with CUDA. Threads: any. Asynchronous: on the calling thread's stream.
#pragma once

#include <ATen/core/Tensor.h>

namespace lathe::model::cuda {

enum class AttentionKernel { kFlash, kCudnn, kPlain };

// What attention() takes for q [n, H, K] over m keys.
AttentionKernel choose_attention(const at::Tensor& q, int64_t keys);

// q [n, H, K] over k, v [G, m, K], m >= n, as model::attention(). Returns [n, H * K]; differentiable in q, k and v.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                     AttentionKernel kernel);

}  // namespace lathe::model::cuda
