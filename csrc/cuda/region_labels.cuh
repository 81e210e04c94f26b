// Masks to labels of one byte.
#pragma once

#undef NDEBUG  // values are checked by a device assertion, in release builds too
#include <cassert>

#include "reduce.cuh"
#include "vec.cuh"

namespace torchext {
namespace {

template <typename M>
__device__ __forceinline__ uint8_t label_of(M value, int regions, bool check_values) {
  if constexpr (std::is_same_v<M, bool>) {
    return value && regions > 1;
  } else if constexpr (std::is_integral_v<M>) {
    const int64_t label = static_cast<int64_t>(value);
    if (check_values) assert(label >= 0 && label < regions);
    return static_cast<uint8_t>(label < 0 ? 0 : (label < regions ? label : regions - 1));
  } else {
    const auto number = to_accumulate(value);
    if (check_values) assert(number == 0 || number == 1);
    return number != 0 && regions > 1;
  }
}

// One warp per row of the labels, V of its pixels per lane.
template <typename M, int V>
__global__ void __launch_bounds__(256)
    region_labels_kernel(const M* mask, uint8_t* labels, int64_t rows, int64_t height,
                         int64_t width, int64_t mask_height, int64_t mask_width, int regions,
                         bool check_values) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t image = row / height;
  const int64_t source = (row - image * height) * mask_height / height;
  const M* mask_row = mask + (image * mask_height + source) * mask_width;
  for (int64_t x = threadIdx.x * V; x < width; x += kWarpSize * V) {
    Vec<uint8_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int64_t column = mask_width == width ? x + j : (x + j) * mask_width / width;
      result[j] = label_of(load(mask_row + column), regions, check_values);
    }
    store<V>(labels + row * width + x, result);
  }
}

}  // namespace
}  // namespace torchext
