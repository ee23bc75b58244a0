// Numbers as the bytes of tensors hold them: whether they are finite, and as another type.
//
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "base/result.h"
#include "delta/model_dir.h"
#include "delta/safetensors.h"

namespace lathe::delta {

// BF16, F16, F32 or F64.
bool is_floating(Dtype dtype);

// No NaN and no infinity. `bytes`: whole elements. Types that are not floating are finite.
bool all_finite(Dtype dtype, std::span<const std::byte> bytes);

// kCorruption, naming the tensor, unless all its numbers are finite. Reads it whole, a piece at a time.
Status check_finite(const ModelDir& dir, const TensorInfo& info);

// Whether two tensors hold the same bytes. kNotFound if there is no such tensor.
Result<bool> same_numbers(const ModelDir& dir, std::string_view a, std::string_view b);

// Whether every number of `from` is one of `to`.
bool widens(Dtype from, Dtype to);

// Whether convert() knows the pair: from a floating type to BF16 or F32.
bool can_convert(Dtype from, Dtype to);

// As many elements of `to` as there are in `in`, each rounded to the nearest (ties to even); what is out of range
// becomes infinite. can_convert(from, to).
void convert(Dtype from, std::span<const std::byte> in, Dtype to, std::span<std::byte> out);

}  // namespace lathe::delta
