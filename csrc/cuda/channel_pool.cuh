// A pixel's mean and maximum over its channels, gathered by several threads.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdint>

namespace torchext {

// A sum and the first maximum; NaN counts as largest, as in torch.max.
template <typename A>
struct Pooled {
  A sum, maximum;
  int channel;

  // With the channels in rising order, from maximum = -infinity at the first of them.
  __device__ __forceinline__ void add(A value, int at) {
    sum += value;
    if (!(value <= maximum) && maximum == maximum) {
      maximum = value;
      channel = at;
    }
  }
  __device__ __forceinline__ void merge(const Pooled& other) {
    sum += other.sum;
    const bool nan = maximum != maximum;
    const bool other_nan = other.maximum != other.maximum;
    const bool equal = maximum == other.maximum || (nan && other_nan);
    if (equal ? other.channel < channel : !nan && (other_nan || other.maximum > maximum)) {
      maximum = other.maximum;
      channel = other.channel;
    }
  }
};

template <typename A>
__device__ __forceinline__ Pooled<A> nothing_pooled(int64_t first_channel, int64_t channels) {
  return {A(0), static_cast<A>(-INFINITY),
          first_channel < channels ? static_cast<int>(first_channel) : INT_MAX};
}

}  // namespace torchext
