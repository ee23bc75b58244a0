// Causal attention on a CPU in bf16: matrix products over all heads at a time, with softmax rows in between.
//
// Why not ATen's: its flash kernels multiply head by head in blocks so small that most of the time goes into calling
// the products; a backward pass of 512 rows takes four times as long. Rounding is that of transformers' eager
// attention: scores and probabilities in bf16, exponents and sums in fp32.
// Memory: scores of a block of queries, 16 MiB at most or 16 queries, twice in a backward pass; none of them is kept.
// Threads: any.
#pragma once

#include <ATen/core/Tensor.h>

namespace lathe::model::cpu {

// bf16 on the CPU, and more queries than the kernels for few rows take.
bool can_attend(const at::Tensor& q);

// ops.h's attention. Differentiable.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale);

}  // namespace lathe::model::cpu
