#include "data/sampling.h"

namespace lathe::data {
namespace {

Status in_range(bool holds, const char* what) {
  return holds ? Status() : Status(invalid_argument(what));
}

}  // namespace

Status Sampling::validate() const {
  LATHE_TRY(in_range(temperature >= 0 && temperature <= 100, "temperature must be in [0, 100]"));
  LATHE_TRY(in_range(top_p > 0 && top_p <= 1, "top_p must be in (0, 1]"));
  LATHE_TRY(in_range(top_k >= 0, "top_k must be 0 (all) or more"));
  LATHE_TRY(in_range(min_p >= 0 && min_p <= 1, "min_p must be in [0, 1]"));
  LATHE_TRY(in_range(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty must be in (0, 100]"));
  LATHE_TRY(in_range(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty must be in [-2, 2]"));
  return in_range(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty must be in [-2, 2]");
}

}  // namespace lathe::data
