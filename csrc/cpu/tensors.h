// What every CPU op file needs beside its kernels: the shared entry points, SIMD levels, dtypes.
#pragma once

#include "../tensors.h"
#include "simd.h"
#include "simd_level.h"

namespace torchext {

using torch::stable::parallel_for;

// Calls body(T{}) with the kernels' element type of a floating-point tensor.
template <class Body>
auto dispatch_floating(ScalarType type, Body body) {
  switch (type) {
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      expects(type == ScalarType::Float, "expected a float32, float64, float16 or bfloat16 tensor");
      return body(float{});
  }
}

// Calls body(A{}) with the element type of a float32 or float64 tensor.
template <class Body>
auto dispatch_accumulate(ScalarType type, Body body) {
  if (type == ScalarType::Double) return body(double{});
  expects(type == ScalarType::Float, "expected a float32 or float64 tensor");
  return body(float{});
}

}  // namespace torchext
