// nearest: which known word was probably meant by an unknown one.
//
// Threads: pure functions.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lathe {

// The known word with the fewest letters added, left out, replaced or swapped with their neighbours; empty if none is
// so near that it could have been meant.
std::string nearest(std::string_view word, std::span<const std::string> known);

// "; did you mean 'port'?", or nothing.
std::string did_you_mean(std::string_view word, std::span<const std::string> known);

}  // namespace lathe
