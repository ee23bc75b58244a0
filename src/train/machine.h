// What a machine can do at most, measured: the limits that speeds are shown as shares of.
//
// Threads: one at a time; while others compute, limits come out too low.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <functional>

namespace lathe::train {

// Seconds of the fastest of `repeats` runs, after one that is not counted.
double best_seconds(int repeats, c10::Device device, const std::function<void()>& work);

double product_operations_per_second(c10::Device device, c10::ScalarType dtype);  // of a large matrix product
double bytes_read_per_second(c10::Device device);

}  // namespace lathe::train
