// Fuzz target: a safetensors file's header. What is accepted describes every byte of the file exactly once, and says
// the same when it is written out again.
#include <algorithm>
#include <set>

#include "delta/safetensors.h"
#include "delta/tile.h"

namespace {

using namespace lathe;
using namespace lathe::delta;

void check_tensors(const Header& header, uint64_t file_size) {
  uint64_t end = 0;
  std::set<std::string> names;
  for (const TensorInfo& tensor : header.tensors) {
    LATHE_CHECK(tensor.begin == end && tensor.end >= tensor.begin);
    LATHE_CHECK(names.insert(tensor.name).second);
    uint64_t bytes = static_cast<uint64_t>(dtype_size(tensor.dtype));
    for (const int64_t n : tensor.shape) bytes *= static_cast<uint64_t>(n);
    LATHE_CHECK(bytes == tensor.size());
    end = tensor.end;
  }
  LATHE_CHECK(header.data_offset + end == file_size);
}

void check_layout(const Header& header, uint64_t file_size) {
  const FileLayout layout = layout_of("model.safetensors", file_size, header);
  LATHE_CHECK(check(layout).ok());
  const uint64_t tiles = tile_count(layout);
  for (const uint64_t tile : std::set<uint64_t>{0, tiles / 2, tiles - 1}) {
    uint64_t covered = 0;
    for (const codec::TilePart& part : tile_parts(layout, tile)) covered += part.size;
    LATHE_CHECK(covered == tile_range(layout, tile).size);
  }
}

void check_written_again(const Header& header) {
  std::vector<TensorInfo> tensors = header.tensors;
  const std::string text = format_header(tensors, header.metadata);
  const uint64_t data = tensors.empty() ? 0 : tensors.back().end;
  const auto again = parse_header(std::as_bytes(std::span(text)), text.size() + data);
  LATHE_CHECK(again.ok() && again->data_offset == text.size());
  LATHE_CHECK(again->metadata == header.metadata && again->tensors.size() == header.tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo &a = header.tensors[i], &b = again->tensors[i];
    LATHE_CHECK(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end);
  }
}

}  // namespace

// The file continues after the input for a given number of arbitrary bytes, so that a short input can describe much.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto file = std::as_bytes(std::span(bytes, size));
  for (const uint64_t more : {uint64_t{0}, uint64_t{6}, uint64_t{16384}, uint64_t{5} << 20}) {
    const uint64_t file_size = size + more;
    const auto header = parse_header(file, file_size);
    if (!header.ok()) {
      LATHE_CHECK(!header.error().message.empty());
      continue;
    }
    LATHE_CHECK(header->data_offset <= size);
    check_tensors(*header, file_size);
    check_layout(*header, file_size);
    check_written_again(*header);
  }
  return 0;
}
