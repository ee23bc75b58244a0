// The last step of every update on a GPU: kernels/rounding.h, to the same bits.
//
// A warp takes a group of 512 elements: its lanes make the group's 64 Philox blocks, pass the random halves through
// shared memory, and round 16 elements each. Weights move in accesses of 16 bytes wherever their addresses allow it.
// Memory: in place; the caller gives room for the statistics.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError().
#pragma once

#include <cstdint>

#include "kernels/adam.h"
#include "kernels/rounding.h"

struct CUstream_st;

namespace lathe::kernels::cuda {

using Stream = CUstream_st*;

// Rows per launch whose sums stay apart: the statistics of one launch.
constexpr int64_t kStatisticsRows = 1024;
constexpr int64_t kStatisticsColumns = 3;  // changed, Σ d², Σ d Δ

// A factor for each row (by_row) or each column of U, which has `columns` columns; none where `scale` is null.
struct ChannelScale {
  const float* scale = nullptr;
  int64_t columns = 1;
  bool by_row = false;
};

// Elements first .. first + n - 1 of a tensor; w and u point to element `first`, `channels` counts rows and columns
// from there. U is multiplied by its channel's factor before anything else. `statistics` [kStatisticsRows,
// kStatisticsColumns] fp64, zeroed by the caller: the sums over its rows are those of UpdateStats.
void update_bf16(uint16_t* w, const float* u, int64_t first, int64_t n, const Update& update,
                 const ChannelScale& channels, double* statistics, Stream stream);
void update_bf16(uint16_t* w, const uint16_t* u_bf16, int64_t first, int64_t n, const Update& update,
                 const ChannelScale& channels, double* statistics, Stream stream);
void update_fp32(float* w, const float* u, int64_t first, int64_t n, const Update& update, const ChannelScale& channels,
                 double* statistics, Stream stream);

// kernels/adam.h: moments m and v move on, g becomes the direction.
void adam_direction(float* g, float* m, float* v, int64_t n, const AdamCoefficients& coefficients, Stream stream);

// What APOLLO asks of a projected gradient r [n]: the next moments m and v from the last (null: zero), and the squared
// norms of Adam's direction R̃ = first m / (sqrt(second v) + ε) and of r, in rows of `sums` [kNormRows, 2] fp64 that add
// up to them.
constexpr int64_t kNormRows = 32;
void apollo_moments(const float* r, const float* last_m, const float* last_v, float* m, float* v, int64_t n,
                    const AdamCoefficients& coefficients, double* sums, Stream stream);

}  // namespace lathe::kernels::cuda
