// Division by 32 bits where they do: by 64 it is a long routine on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace torchext {

__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (a < (int64_t{1} << 32) && b < (int64_t{1} << 32)) {
    return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  }
  return a / b;
}

}  // namespace torchext
