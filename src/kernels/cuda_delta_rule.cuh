// What the kernels of the gated delta rule share: the sizes, and the way tiles reach shared memory.
//
// Letters as in model/delta_rule.cpp: i, j are rows of a chunk, G the sum of log decays up to a row, Γ up to the last.
#pragma once

#include "kernels/cuda_delta_rule.h"
#include "kernels/cuda_tensor_core.cuh"

namespace lathe::kernels::cuda {

constexpr int kC = 64;   // rows of a chunk
constexpr int kD = 128;  // columns of a key, of a value
constexpr int kLanes = 32;
constexpr uint32_t kTileBytes = kC * kD * 2;  // keys, queries, values of a chunk
constexpr uint32_t kSquareBytes = kC * kC * 2;
constexpr uint32_t kStateBytes = kD * kD * 2;
enum DecayRow { kSumRow, kDecayRow, kTailRow, kBetaRow, kDecayRows };

struct Kernel {
  DeltaArguments in;
  DeltaShape shape;
  DeltaChunks chunks;
  int64_t chunk_count;
  int ratio;  // value heads per key head
};

// One sequence's pointers for (head, chunk): heads are outer.
template <class T>
__device__ __forceinline__ T* of_chunk(void* base, const Kernel& p, int64_t head, int64_t chunk, int64_t size) {
  return static_cast<T*>(base) + (head * p.chunk_count + chunk) * size;
}

// kRows rows of kPieces * 8 columns, `stride` numbers apart, into panels; rows from `real` on become zeros. By kThreads
// threads, of which this is number `thread`.
template <int kThreads, int kRows, int kPieces>
__device__ __forceinline__ void load_tile(int thread, uint32_t to, const __nv_bfloat16* from, int64_t stride,
                                          int real = kRows) {
#pragma unroll
  for (int i = thread; i < kRows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const uint32_t panel = (piece / 8) * (kRows * kRowBytes);
    const bool inside = row < real;
    copy_async(to + panel + piece_offset(row, piece % 8), from + (inside ? row * stride : 0) + piece * 8, inside);
  }
}

// What a block of the current device may have.
inline int shared_bytes_of_device() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

void step_delta(const Kernel& p, void* o, float* last, CUstream_st* stream);
void prepare_delta_chunks(const Kernel& p, CUstream_st* stream);
void scan_delta_forward(const Kernel& p, void* o, float* last, CUstream_st* stream);
void scan_delta_backward(const Kernel& p, const void* d_o, const float* d_last, const DeltaGradients& out,
                         CUstream_st* stream);
void gather_delta_gradients(const Kernel& p, const void* d_o, const DeltaGradients& out, CUstream_st* stream);

}  // namespace lathe::kernels::cuda
