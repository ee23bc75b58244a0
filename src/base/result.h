// Error and Result<T>: how expected failures travel.
//
// Why: an I/O, protocol or input failure must be visible at the call and must never end a process that shares a
// server's memory. Compute modules (torch) may throw; three borders turn that into an Error: the HTTP handler, the
// training step, and each thread's entry (docs/architecture.md).
// Threads: values, no shared state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace lathe {

enum class Code {
  kInvalidArgument,  // the caller's input; HTTP 400
  kNotFound,         // 404
  kConflict,         // the thing moved on or is busy; 409
  kExhausted,        // a queue or a budget is full; 429
  kUnavailable,      // shutting down, peer absent; 503
  kUnsupported,      // well-formed, but not something Lathe can do; 400
  kIo,               // the operating system said no; 500, or 507 when the disk is full
  kCorruption,       // data that contradicts itself; 500
  kCancelled,        // the asker went away
  kInternal,         // a bug; 500
};

std::string_view code_name(Code code);

// What went wrong and, where there is one, the remedy. `native` is an errno or 0.
struct Error {
  Code code = Code::kInternal;
  std::string message;
  int native = 0;

  // The same error with "where: " prepended to its message.
  Error at(std::string_view where) const;
};

Error invalid_argument(std::string message);
Error not_found(std::string message);
Error unsupported(std::string message);
Error corruption(std::string message);
Error io_error(std::string message, int native);  // appends strerror(native)
Error internal(std::string message);

// A T or the Error that prevented it. Reading the wrong side is a broken invariant and aborts.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const { return std::get<1>(state_); }
  // Result of the same failure with a place prepended to its message; a success is passed through.
  Result at(std::string_view where) && { return ok() ? std::move(*this) : Result(error().at(where)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  void value() const {}
  const Error& error() const { return error_; }
  Result at(std::string_view where) && { return ok_ ? Result() : Result(error_.at(where)); }

 private:
  Error error_;
  bool ok_ = true;
};

using Status = Result<void>;

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace lathe

// `auto file = LATHE_TRY(env.open(path));` leaves the enclosing function with the error, or yields the value.
// The one macro of this kind; it uses GCC's and Clang's statement expressions.
#define LATHE_TRY(expression)                                    \
  (__extension__({                                               \
    auto lathe_try_result = (expression);                        \
    if (!lathe_try_result.ok()) return lathe_try_result.error(); \
    std::move(lathe_try_result).value();                         \
  }))

// For broken invariants of our own, never for input.
#define LATHE_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::lathe::check_failed(#condition, __FILE__, __LINE__))
