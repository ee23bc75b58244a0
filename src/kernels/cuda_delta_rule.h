// The gated delta rule (model/delta_rule.h has its mathematics) on tensor cores: heads of 128 x 128, bf16 in and out,
// sums and the state in fp32.
//
// A pass is two kernels. What chunks of 64 tokens need of themselves alone (decays, scores, the inverse of the
// triangle) is computed for all chunks at once; then one block for each value head and slice of the values' columns
// walks over the chunks with its slice of the state in registers. The gradient mirrors it: a walk from the last chunk
// to the first, then everything else for all chunks at once. Any number of tokens and any ratio of value heads to key
// heads.
//
// Rounding: operands of products are bf16 (queries, keys, values, and what the products hand on: the state, δ, inverse
// and scores), everything else is fp32. No atomics: the same bits on every run.
// Memory: in and out are the caller's, nothing is allocated. Pointers are aligned to 16 bytes, strides are multiples of
// 8 numbers.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError().
#pragma once

#include <cstdint>

struct CUstream_st;

namespace lathe::kernels::cuda {

constexpr int64_t kDeltaSize = 128;  // of a key and of a value
constexpr int64_t kDeltaChunk = 64;

struct DeltaShape {
  int64_t tokens = 0, key_heads = 0, value_heads = 0;  // value_heads is a multiple of key_heads
  int64_t chunks() const { return (tokens + kDeltaChunk - 1) / kDeltaChunk; }
};

// bf16; one head's numbers lie together, heads one after the other, tokens `stride` numbers apart.
struct DeltaRows {
  const void* data = nullptr;
  int64_t stride = 0;
};

struct DeltaArguments {
  DeltaRows q, k, v;             // [tokens, key or value heads, 128]
  const float* g = nullptr;      // [tokens, value heads], the logarithm of the decay, <= 0
  const float* beta = nullptr;   // [tokens, value heads]
  const float* start = nullptr;  // [value heads, K, V], or null for zeros
};

// What the forward pass computes on its way. All of it is needed for the gradient.
struct DeltaChunks {
  void* inverse = nullptr;  // bf16 [value heads, chunks, 64, 64]: (I + strict lower triangle of β_i L_ij k_i k_j)^-1
  void* scores = nullptr;   // bf16 [value heads, chunks, 64, 64]: lower triangle of L_ij q_i k_j
  float* decays = nullptr;  // [value heads, chunks, 4, 64]: G, e^G, e^{Γ - G}, β
  void* states = nullptr;   // bf16 [value heads, chunks, V, K]: the state before each chunk; null: not kept
  void* deltas = nullptr;   // bf16 [value heads, chunks, V, 64]: δ; null where `states` is
};

// o [tokens, value heads, 128] bf16; `last` [value heads, K, V] fp32 or null.
void delta_rule(const DeltaArguments& in, const DeltaShape& shape, const DeltaChunks& chunks, void* o, float* last,
                CUstream_st* stream);

// The same token by token, for at most so many of them: one kernel, all of it in fp32, which is faster there and exact.
constexpr int64_t kDeltaStepTokens = 4;
void delta_rule_steps(const DeltaArguments& in, const DeltaShape& shape, void* o, float* last, CUstream_st* stream);

struct DeltaGradients {
  void* d_states = nullptr;  // bf16 [value heads, chunks, V, K]: scratch, the gradient of the state after each chunk
  void* d_deltas = nullptr;  // bf16 [value heads, chunks, V, 64]: scratch
  void *q = nullptr, *k = nullptr, *v = nullptr;  // bf16, without gaps
  float *g = nullptr, *beta = nullptr;            // [tokens, value heads]
  float* start = nullptr;                         // [value heads, K, V], or null
};

// d_o [tokens, value heads, 128] bf16 without gaps; d_last as `last`, or null for zeros. `chunks` as delta_rule() left
// them.
void delta_rule_gradient(const DeltaArguments& in, const DeltaShape& shape, const DeltaChunks& chunks, const void* d_o,
                         const float* d_last, const DeltaGradients& out, CUstream_st* stream);

}  // namespace lathe::kernels::cuda
