#include "base/result.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lathe {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "invalid argument";
    case Code::kNotFound:
      return "not found";
    case Code::kConflict:
      return "conflict";
    case Code::kExhausted:
      return "exhausted";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kIo:
      return "input/output";
    case Code::kCorruption:
      return "corruption";
    case Code::kCancelled:
      return "cancelled";
    case Code::kInternal:
      return "internal";
  }
  return "unknown";
}

Error Error::at(std::string_view where) const {
  Error out = *this;
  out.message = std::string(where) + ": " + message;
  return out;
}

Error invalid_argument(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}
Error not_found(std::string message) {
  return {Code::kNotFound, std::move(message)};
}
Error unsupported(std::string message) {
  return {Code::kUnsupported, std::move(message)};
}
Error corruption(std::string message) {
  return {Code::kCorruption, std::move(message)};
}
Error internal(std::string message) {
  return {Code::kInternal, std::move(message)};
}

Error io_error(std::string message, int native) {
  return {Code::kIo, std::move(message) + ": " + std::strerror(native), native};
}

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
  std::abort();
}

}  // namespace lathe
