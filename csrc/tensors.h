// Tensors at an op's entry points, on either device: checks, memory formats, allocation, pointers.
//
// The Python layer raises the user's errors; what is checked here is what memory safety needs when
// an op is called directly.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "definitions.h"

// Of what kernels call, too; g++ compiles the emulated kernels as plain functions.
#ifdef __CUDACC__
#define TORCHEXT_HOST_DEVICE __host__ __device__
#else
#define TORCHEXT_HOST_DEVICE
#endif

// In the body of an op's `implement(m)`: the function of the op's name is its implementation.
#define TORCHEXT_IMPLEMENT(m, op) m.impl(#op, TORCH_BOX(&op))

namespace torchext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// std::invalid_argument reaches Python as ValueError, without file and line in front.
inline void expects(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  return torch::stable::new_empty(like, Sizes(sizes), type);
}

// A new tensor of like's dtype, in channels-last order if wanted.
inline Tensor new_image(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W,
                        bool channels_last) {
  if (!channels_last) return new_tensor(like, {N, C, H, W}, like.scalar_type());
  const Tensor image = new_tensor(like, {N, H, W, C}, like.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(image, 1, 3), 2, 3);
}

// const T for inputs, T for outputs; an absent tensor is a null pointer. The element type is the
// kernel's, not PyTorch's, so the typed data_ptr<T>() does not serve.
template <typename T>
T* data(const Tensor& tensor) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(tensor.const_data_ptr());
  } else {
    return static_cast<T*>(tensor.mutable_data_ptr());
  }
}
template <typename T>
T* data(const MaybeTensor& tensor) {
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
inline void expects_plain(const MaybeTensor& tensor, ScalarType type, int64_t elements,
                          const char* message) {
  if (tensor.has_value()) expects_plain(*tensor, type, elements, message);
}

// That `tensor` has x's dtype, shape and memory format.
inline void expects_like(const Tensor& tensor, const Tensor& x, const char* message) {
  bool same = tensor.scalar_type() == x.scalar_type() && tensor.dim() == x.dim();
  for (int64_t dim = 0; same && dim < x.dim(); ++dim) same = tensor.size(dim) == x.size(dim);
  expects(same && is_channels_last(tensor) == is_channels_last(x), message);
}

}  // namespace torchext
