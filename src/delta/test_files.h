// Files in memory, for tests, fuzz targets and benchmarks.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "codec/test_weights.h"
#include "delta/delta_reader.h"
#include "io/env.h"

namespace lathe::delta {

using codec::Bytes;

class MemorySink final : public io::WritableFile {
 public:
  Status append(std::span<const std::byte> bytes) override {
    data.insert(data.end(), bytes.begin(), bytes.end());
    return {};
  }
  Status sync() override { return {}; }
  Status close() override { return {}; }

  Bytes data;
};

class MemorySource final : public io::RandomAccessFile {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  Status read_at(uint64_t offset, std::span<std::byte> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset) return corruption("truncated");
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }

 private:
  Bytes bytes_;
};

inline Result<DeltaReader> open_bytes(const Bytes& bytes) {
  return DeltaReader::open(std::make_unique<MemorySource>(bytes));
}

}  // namespace lathe::delta
