// hash_tile on a GPU, of tiles whose bytes lie in several places of its memory, to the same bits.
//
// The server's weights can so be compared with the last durable version without crossing the bus. Four threads hash a
// block of 4 KiB; blocks that lie whole and aligned in one place, which nearly all do, are read 16 bytes at a time.
// Memory: nothing is copied; the caller gives room for the blocks' hashes.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError().
#pragma once

#include <cstdint>

#include "kernels/cuda_update.h"
#include "kernels/tile_hash.h"

namespace lathe::kernels::cuda {

// Bytes of a tile that lie together: its bytes [begin, begin + size).
struct TilePiece {
  const uint8_t* data = nullptr;
  uint32_t begin = 0, size = 0;
};

// Pieces [first_piece, first_piece + pieces) give bytes 0 .. size - 1 of the tile, in order.
struct HashTile {
  uint32_t first_piece = 0, pieces = 0, size = 0;
};

constexpr int64_t kTileHashBlocks = 512;  // of 4 KiB, in a tile of 2 MiB

// `tiles`, `pieces`, `blocks` [count, 512] and `hashes` [count] are in the GPU's memory; a hash is low word, high word.
void hash_tiles(const HashTile* tiles, const TilePiece* pieces, int64_t count, const xxh3::Keys& keys,
                xxh3::Pair* blocks, xxh3::Pair* hashes, Stream stream);

}  // namespace lathe::kernels::cuda
