// What kernels on tensor cores share: tiles of bf16 in shared memory, their fragments, and the product of fragments.
//
// A panel is `rows` rows of 64 numbers (128 bytes), its 16-byte pieces exchanged by row (piece c of row r lies at c ^
// (r % 8)), so that reading eight rows of one piece, or one row, meets every bank once. A tile of 128 columns is two
// panels, one after the other. Fragments are those of mma.m16n8k16: lane 4 g + t holds of a 16 x 8 result (g, 2t), (g,
// 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). A result of 16 x 16, rounded, is the first operand of the next product as it
// is: products chain in registers.
//
// Device code only. Compute capability 8.0 and later.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace lathe::kernels::cuda {

constexpr int kPanelColumns = 64;
constexpr int kRowBytes = 2 * kPanelColumns;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Where the 16 bytes of (row, 8 * piece) of a panel lie.
__device__ __forceinline__ uint32_t piece_offset(int row, int piece) {
  return static_cast<uint32_t>(row * kRowBytes + ((piece ^ (row & 7)) << 4));
}

// 16 bytes from global to shared memory without waiting; zeros unless `real`. Then nothing is read.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool real = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Until all but the last kLeft groups of this thread are there.
template <int kLeft>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

struct Fragment {
  uint32_t x[4];
};

__device__ __forceinline__ Fragment load_matrices(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address)
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment load_matrices_transposed(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address)
               : "memory");
  return f;
}

// A tile in shared memory of kRows rows and any number of panels; reads 16 x 16 blocks of it. Row and column are
// multiples of 16.
template <int kRows>
struct Tile {
  uint32_t base;

  // Lanes of ldmatrix: eight name the rows of each 8 x 8 matrix, in the order of the four registers.
  __device__ __forceinline__ uint32_t at(int row, int column, int lane_row, int lane_piece) const {
    const int piece = (column % kPanelColumns) / 8 + lane_piece;
    return base + (column / kPanelColumns) * (kRows * kRowBytes) + piece_offset(row + lane_row, piece);
  }
  // First operand: rows m, columns k.
  __device__ __forceinline__ Fragment first(int m, int k, int lane) const {
    return load_matrices(at(m, k, lane % 16, lane / 16));
  }
  // First operand of the transposed tile, whose rows are k.
  __device__ __forceinline__ Fragment first_transposed(int k, int m, int lane) const {
    return load_matrices_transposed(at(k, m, (lane / 16) * 8 + lane % 8, (lane / 8) % 2));
  }
  // Second operand, 16 columns n of it: x[0], x[1] for the first eight, x[2], x[3] for the others. The tile has rows n
  // and columns k.
  __device__ __forceinline__ Fragment second(int n, int k, int lane) const {
    return load_matrices(at(n, k, (lane / 16) * 8 + lane % 8, (lane / 8) % 2));
  }
  // The same of a tile with rows k and columns n.
  __device__ __forceinline__ Fragment second_transposed(int k, int n, int lane) const {
    return load_matrices_transposed(at(k, n, lane % 16, lane / 16));
  }
  // The address of two neighbours (row, column), (row, column + 1); column is even.
  __device__ __forceinline__ uint32_t pair(int row, int column) const {
    return base + (column / kPanelColumns) * (kRows * kRowBytes) + piece_offset(row, (column % kPanelColumns) / 8) +
           (column % 8) * 2;
  }
};

// c += a b, 16 x 8 with a depth of 16.
__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}
// 16 x 16.
__device__ __forceinline__ void multiply_add(float (&c0)[4], float (&c1)[4], const Fragment& a, const Fragment& b) {
  multiply_add(c0, a, b.x[0], b.x[1]);
  multiply_add(c1, a, b.x[2], b.x[3]);
}

// Two numbers, rounded, in one register; `low` is the first in memory.
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
// Two results side by side as a first operand.
__device__ __forceinline__ Fragment as_first(const float (&c0)[4], const float (&c1)[4]) {
  return {{pack_pair(c0[0], c0[1]), pack_pair(c0[2], c0[3]), pack_pair(c1[0], c1[1]), pack_pair(c1[2], c1[3])}};
}

// An 8 x 8 matrix, one register in each lane, transposed.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
  return y;
}

// Of one row, lanes t = 0..3 hold the pairs (2t, 2t + 1) of eight numbers in `a` and of the next eight in `b`.
// Afterwards each lane holds four neighbours, those from piece_start(lane) on, so that a row's 32 bytes are written at
// once.
__device__ __forceinline__ uint2 gather_four(uint32_t a, uint32_t b, int lane) {
  const bool odd = lane & 1;
  const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? a : b, 1);
  return odd ? make_uint2(other, b) : make_uint2(a, other);
}
__device__ __forceinline__ int four_start(int lane) {
  const int t = lane & 3;
  return (t & 1) ? 8 + 2 * (t - 1) : 2 * t;
}
// The reverse: from four neighbours to the pairs of two eights.
__device__ __forceinline__ uint2 spread_four(uint2 four, int lane) {
  const bool odd = lane & 1;
  const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? four.x : four.y, 1);
  return odd ? make_uint2(other, four.y) : make_uint2(four.x, other);
}

// Products of a group of four warps, 64 rows, warp w owning rows [16 w, + 16): on Hopper's own instructions (wgmma)
// where they exist, else each warp for itself. Fragments are the same. Between begin_products() and wait_products()
// results and first operands in registers are not touched; what ordinary stores put into shared memory needs
// show_to_products() and a barrier before.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kGroups = true;
#else
constexpr bool kGroups = false;
#endif

// Keeps the compiler from moving what it does with these registers over this point.
template <int kColumns>
__device__ __forceinline__ void hold(float (&c)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c[n][e])::"memory");
}
template <int kSteps>
__device__ __forceinline__ void hold(Fragment (&a)[kSteps]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k].x[i])::"memory");
}

// Takes the results and first operands in registers that follow until the wait.
template <class... Registers>
__device__ __forceinline__ void begin_products(Registers&... registers) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  (hold(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}
// Until all but the last kLeft committed ones are done, which `registers` are part of.
template <int kLeft, class... Registers>
__device__ __forceinline__ void wait_products(Registers&... registers) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
  (hold(registers), ...);
#endif
}
__device__ __forceinline__ void show_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

// An operand in shared memory: from (row, column) on; kTurned: rows run along the depth of the product. The column of a
// turned one is a multiple of 64, or the product is no wider than what is left of the panel.
template <int kRows, bool kTurnedRows>
struct Operand {
  static constexpr bool kTurned = kTurnedRows;
  Tile<kRows> tile;
  int row, column;

  // What wgmma reads it by: panels swizzled over 128 bytes, groups of eight rows 1024 bytes apart.
  __device__ __forceinline__ uint64_t descriptor(int depth) const {
    const int r = row + (kTurned ? depth : 0), c = column + (kTurned ? 0 : depth);
    const uint32_t from =
        tile.base + (c / kPanelColumns) * (kRows * kRowBytes) + r * kRowBytes + (c % kPanelColumns) * 2;
    constexpr uint64_t kPanels = static_cast<uint64_t>(kRows * kRowBytes / 16) << 16;
    constexpr uint64_t kGroupsOfRows = static_cast<uint64_t>(8 * kRowBytes / 16) << 32, kSwizzled = 1ULL << 62;
    return kSwizzled | kGroupsOfRows | kPanels | ((from & 0x3FFFF) >> 4);
  }
  __device__ __forceinline__ Fragment first(int m, int depth, int lane) const {
    return kTurned ? tile.first_transposed(row + depth, column + m, lane) : tile.first(row + m, column + depth, lane);
  }
  __device__ __forceinline__ Fragment second(int n, int depth, int lane) const {
    return kTurned ? tile.second_transposed(row + depth, column + n, lane) : tile.second(row + n, column + depth, lane);
  }
};
template <int kRows>
__device__ __forceinline__ Operand<kRows, false> plain(Tile<kRows> tile, int row = 0, int column = 0) {
  return {tile, row, column};
}
template <int kRows>
__device__ __forceinline__ Operand<kRows, true> turned(Tile<kRows> tile, int row = 0, int column = 0) {
  return {tile, row, column};
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int kTurnedB>
__device__ __forceinline__ void multiply_group(float (&c)[8][4], const Fragment& a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred more; setp.ne.b32 more, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, more, 1, 1, %37;}\n"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "n"(kTurnedB), "r"(add ? 1 : 0));
}
template <int kTurnedB>
__device__ __forceinline__ void multiply_group(float (&c)[16][4], const Fragment& a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred more; setp.ne.b32 more, %70, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, more, 1, 1, %69;}\n"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]),
        "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
        "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]),
        "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]),
        "+f"(c[15][3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "n"(kTurnedB), "r"(add ? 1 : 0));
}
template <int kTurnedA, int kTurnedB>
__device__ __forceinline__ void multiply_group(float (&c)[4][4], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred more; setp.ne.b32 more, %20, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, more, 1, 1, %18, %19;}\n"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3])
      : "l"(a), "l"(b), "n"(kTurnedA), "n"(kTurnedB), "r"(add ? 1 : 0));
}
template <int kTurnedA, int kTurnedB>
__device__ __forceinline__ void multiply_group(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred more; setp.ne.b32 more, %36, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, more, 1, 1, %34, %35;}\n"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "l"(a), "l"(b), "n"(kTurnedA), "n"(kTurnedB), "r"(add ? 1 : 0));
}
#endif

template <int kColumns>
__device__ __forceinline__ void clear(float (&c)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[n][e] = 0;
}

// c += a b, or c = a b unless kAdd, with a in registers; kSteps times 16 deep.
template <bool kAdd, int kColumns, int kSteps, class B>
__device__ __forceinline__ void multiply_tiles(float (&c)[kColumns][4], const Fragment (&a)[kSteps], const B& b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma unroll
  for (int k = 0; k < kSteps; ++k) multiply_group<B::kTurned>(c, a[k], b.descriptor(16 * k), kAdd || k > 0);
#else
  const int lane = threadIdx.x % 32;
  if (!kAdd) clear(c);
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int n = 0; n < kColumns / 2; ++n) multiply_add(c[2 * n], c[2 * n + 1], a[k], b.second(16 * n, 16 * k, lane));
#endif
}
// The same with a in shared memory.
template <bool kAdd, int kSteps, int kColumns, class A, class B>
__device__ __forceinline__ void multiply_shared(float (&c)[kColumns][4], const A& a, const B& b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
    multiply_group<A::kTurned, B::kTurned>(c, a.descriptor(16 * k), b.descriptor(16 * k), kAdd || k > 0);
#else
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  if (!kAdd) clear(c);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const Fragment first = a.first(16 * warp, 16 * k, lane);
#pragma unroll
    for (int n = 0; n < kColumns / 2; ++n) multiply_add(c[2 * n], c[2 * n + 1], first, b.second(16 * n, 16 * k, lane));
  }
#endif
}

}  // namespace lathe::kernels::cuda
