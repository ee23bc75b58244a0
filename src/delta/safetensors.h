// The safetensors container: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
// Format page: docs/formats/safetensors.md.
//
// Threads: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/env.h"

namespace lathe::delta {

enum class Dtype { kBool, kU8, kI8, kF8E5M2, kF8E4M3, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kF64, kI64, kU64 };

std::string_view dtype_name(Dtype dtype);  // as the format spells it
int64_t dtype_size(Dtype dtype);           // bytes

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data
  uint64_t size() const { return end - begin; }
};

struct Header {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // of the first tensor byte in the file
};

// Bytes a reader must have to parse the header: 8 + N. Refuses a length beyond the file or the format's 100 MB.
Result<uint64_t> header_bytes(std::span<const std::byte> first_eight, uint64_t file_size);

// Parses the header at the start of a file of `file_size` bytes; `file` holds at least header_bytes() of it. Refuses by
// name: not JSON, an unknown dtype, a duplicate name, a size that is not that of dtype and shape, offsets that overlap,
// leave gaps, or do not end with the file. Never reads outside `file`, whatever it holds.
Result<Header> parse_header(std::span<const std::byte> file, uint64_t file_size);

// The header of a whole file. Reads nothing after it.
Result<Header> read_header(const io::RandomAccessFile& file);

// The bytes before the data of a file that holds `tensors` one after another, in this order; sets their begin and end.
// Their number is a multiple of 8, so that the data are aligned.
std::string format_header(std::span<TensorInfo> tensors, const std::map<std::string, std::string>& metadata);

}  // namespace lathe::delta
