// Tensors at the CUDA entry points: memory formats, checks, allocation.
#pragma once

#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "launch.cuh"
#include "vec.cuh"

namespace torchext::cuda {

inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::new_empty(like, shape, dtype);
}

// True for channels last, false for contiguous; anything else is an error. Where both fit the
// tensor counts as contiguous, as everywhere in the package.
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

inline void expects_plain(const Tensor& tensor, ScalarType dtype, int64_t elements,
                          const char* message) {
  expects(tensor.scalar_type() == dtype && tensor.numel() == elements && tensor.is_contiguous(),
          message);
}
inline void expects_plain(const std::optional<Tensor>& tensor, ScalarType dtype, int64_t elements,
                          const char* message) {
  if (tensor.has_value()) expects_plain(*tensor, dtype, elements, message);
}

// The one dimension of a grid; more blocks than a launch can have are an error.
inline dim3 grid_of(int64_t blocks) {
  expects(blocks < (int64_t{1} << 31), "tensor too large for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

// Calls f(width tag, channels-last tag) with accesses of 128 bits, or of one element.
template <typename T, typename F>
void dispatch_access(bool wide, bool channels_last, F&& f) {
  constexpr int kWidest = kMaxAccessBytes / sizeof(T);
  auto with_format = [&](auto width) {
    if (channels_last) {
      f(width, std::true_type{});
    } else {
      f(width, std::false_type{});
    }
  };
  if (wide) {
    with_format(std::integral_constant<int, kWidest>{});
  } else {
    with_format(std::integral_constant<int, 1>{});
  }
}

}  // namespace torchext::cuda
