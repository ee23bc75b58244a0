// LiveTensors: the weights of a WeightStore as the checkpoint reads them, by tensor name and bytes.
//
// Weights on a GPU are hashed there, so that of a sync only the tiles that changed cross the bus.
// Threads: any, while nobody changes the weights: under the Gate, shared, or on the thread that is their only writer,
// with what it queued on a GPU done.
// Memory: none; bytes are copied into the caller's memory, from whatever device they are on.
#pragma once

#include "delta/source.h"
#include "weights/weight_store.h"

namespace lathe::weights {

class LiveTensors final : public delta::TensorReader {
 public:
  explicit LiveTensors(const WeightStore& store) : store_(store) {}  // outlives the reader

  std::optional<uint64_t> size(std::string_view tensor) const override;
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override;
  bool hashes_in_place() const override;
  Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<delta::TensorRange>> tiles) const override;

 private:
  const at::Tensor* find(const delta::TensorRange& range) const;  // null, if it is not all there

  const WeightStore& store_;
};

}  // namespace lathe::weights
