// Pointers in the saved data of an autograd node, as integers: parameters and sinks outlive the backward pass by
// contract.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>

namespace lathe::model {

template <class T>
int64_t as_int(T* pointer) {
  return reinterpret_cast<int64_t>(pointer);
}

template <class T>
T* as_pointer(const torch::autograd::AutogradContext* context, const char* name) {
  return reinterpret_cast<T*>(context->saved_data.at(name).toInt());
}

}  // namespace lathe::model
