// Buffers of the Rust library, owned. Private to src/text.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "text_shim.h"

namespace lathe::text {

class ShimBuffer {
 public:
  ShimBuffer() = default;
  ~ShimBuffer() { lathe_text_release(raw_); }
  ShimBuffer(const ShimBuffer&) = delete;
  ShimBuffer& operator=(const ShimBuffer&) = delete;

  lathe_text_buffer* out() { return &raw_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(raw_.data), raw_.size}; }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(raw_.data);
  }
  template <class T>
  size_t count() const {
    return raw_.size / sizeof(T);
  }

 private:
  lathe_text_buffer raw_{};
};

inline const uint8_t* bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// The library's failures are about what it was given: a file, a template, a text.
inline Status shim_status(int32_t code, const ShimBuffer& error) {
  if (code == 0) return {};
  return invalid_argument(std::string(error.view()));
}

}  // namespace lathe::text
