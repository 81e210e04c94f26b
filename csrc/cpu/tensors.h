// Tensors at the CPU entry points: element types, memory formats, allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "../checks.h"
#include "simd.h"
#include "simd_level.h"

namespace torchext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::new_empty(like, shape, type);
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

// True for channels last, false for contiguous; anything else is an error. The Python layer
// (memory_format in torchext/ops/checks.py) makes the same choice: contiguous if both fit.
inline bool is_channels_last(const Tensor& x) {
  expects(x.dim() == 4, "expected a tensor of four dimensions");
  if (x.is_contiguous()) return false;
  int64_t stride = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    expects(x.size(dim) == 1 || x.stride(dim) == stride,
            "expected a contiguous or channels_last tensor");
    stride *= x.size(dim);
  }
  return true;
}

inline void expects_plain(const Tensor& tensor, ScalarType type, int64_t elements,
                          const char* message) {
  expects(tensor.scalar_type() == type && tensor.numel() == elements && tensor.is_contiguous(),
          message);
}
inline void expects_plain(const std::optional<Tensor>& tensor, ScalarType type, int64_t elements,
                          const char* message) {
  if (tensor.has_value()) expects_plain(*tensor, type, elements, message);
}

}  // namespace torchext
