// Reductions over a warp and over a one-dimensional block of whole warps. The order of additions
// depends only on the launch shape, so results are the same in every run, and every lane (thread)
// receives the same bits.
#pragma once

#include <cuda_runtime.h>

namespace torchext {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Count, mean and sum of squared deviations of a set of values. The count is a T because it only
// weighs means here; an exact count beyond 2^24 is the caller's to keep in an integer. Where values
// lie far from zero, let all sets hold means relative to one common value: a float mean of 1e4
// deviations is itself only good to 1e-3 deviations, and merging compares means.
template <typename T>
struct Moments {
  T count;
  T mean;
  T m2;
};

// Moments from sums of (value - shift) and (value - shift)^2, with a shift near the values: one of
// them will do.
template <typename T>
__device__ __forceinline__ Moments<T> moments_from_sums(T count, T shift, T sum, T sum_of_squares) {
  if (count == T(0)) return {T(0), T(0), T(0)};
  const T offset = sum / count;
  const T m2 = sum_of_squares - sum * offset;
  return {count, shift + offset, m2 < T(0) ? T(0) : m2};  // keeps a NaN
}

// Chan, Golub and LeVeque (1983): the moments of the union of two disjoint sets.
template <typename T>
__device__ __forceinline__ Moments<T> merge(const Moments<T>& a, const Moments<T>& b) {
  const T count = a.count + b.count;
  if (count == T(0)) return {T(0), T(0), T(0)};
  if (a.count == T(0)) return b;  // exact, and an empty side cannot spoil the other
  if (b.count == T(0)) return a;
  const T delta = b.mean - a.mean;
  const T share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

template <typename T>
__device__ __forceinline__ Moments<T> warp_merge(Moments<T> moments) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Moments<T> other{__shfl_xor_sync(kFullMask, moments.count, offset),
                           __shfl_xor_sync(kFullMask, moments.mean, offset),
                           __shfl_xor_sync(kFullMask, moments.m2, offset)};
    // merge is not symmetric in its rounding: both lanes of a pair take the lower lane's set first
    moments = (lane & offset) ? merge(other, moments) : merge(moments, other);
  }
  return moments;
}

// N sums over the block at once, in place. scratch: shared memory of N * (blockDim.x / 32) values,
// free for reuse on return.
template <int N, typename T>
__device__ __forceinline__ void block_sum(T (&values)[N], T* scratch) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = warp_sum(values[i]);
    if (lane == 0) scratch[i * warps + warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = warp_sum(lane < warps ? scratch[i * warps + lane] : T(0));
  }
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  T values[1] = {value};
  block_sum(values, scratch);
  return values[0];
}

// The moments of the whole block. scratch: shared memory of blockDim.x / 32 Moments, free for
// reuse on return.
template <typename T>
__device__ __forceinline__ Moments<T> block_merge(Moments<T> moments, Moments<T>* scratch) {
  const int lane = threadIdx.x % kWarpSize;
  const int warps = blockDim.x / kWarpSize;
  moments = warp_merge(moments);
  if (lane == 0) scratch[threadIdx.x / kWarpSize] = moments;
  __syncthreads();
  moments = warp_merge(lane < warps ? scratch[lane] : Moments<T>{T(0), T(0), T(0)});
  __syncthreads();
  return moments;
}

}  // namespace torchext
