// Sums of what a modulated norm's backward has written: of a gradient per element over the elements
// of a map's value, of partial sums, of the pixels of a table's rows.
#pragma once

#include "modulated_norm_maps.cuh"

namespace torchext {
namespace {

constexpr int kSumWarps = kThreads / kWarpSize;

// Sums over the channels of each pixel. Contiguous: a block takes 32 pixels, its warps the
// channels. Channels last: a warp takes a pixel.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_channel_sum_kernel(const A* values, A* sums, int64_t channels, int64_t pixels,
                                      int64_t all_pixels, bool channels_last) {
  __shared__ A parts[kThreads];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  A sum = 0;
  if (channels_last) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kSumWarps + warp;
    if (index >= all_pixels) return;
    for (int64_t c = lane; c < channels; c += kWarpSize) sum += load(values + index * channels + c);
    sum = warp_sum(sum);
    if (lane == 0) store(sums + index, sum);
    return;
  }
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  if (index < all_pixels) {
    const int64_t image = index / pixels;
    const A* const from = values + image * (channels - 1) * pixels + index;
    for (int64_t c = warp; c < channels; c += kSumWarps) sum += load(from + c * pixels);
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || index >= all_pixels) return;
#pragma unroll
  for (int other = 1; other < kSumWarps; ++other) sum += parts[other * kWarpSize + lane];
  store(sums + index, sum);
}

// Sums over the pixels of each image and channel: one block each.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_plane_sum_kernel(const A* values, A* sums, int64_t pixels) {
  __shared__ A scratch[kSumWarps];
  const A* const from = values + blockIdx.x * pixels;
  A sum = 0;
  for (int64_t p = threadIdx.x; p < pixels; p += kThreads) sum += load(from + p);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store(sums + blockIdx.x, sum);
}

// Channels last: one block for a slice of an image's pixels and 32 channels, its lanes the
// channels, its warps the pixels. partials (images, C, slices).
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_plane_sum_channels_last_kernel(const A* values, A* partials, int64_t channels,
                                                  int64_t pixels, int64_t tiles, int64_t slices) {
  __shared__ A parts[kThreads];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t channel = blockIdx.x % tiles * kWarpSize + lane;
  const int64_t slice = blockIdx.x / tiles % slices;
  const int64_t image = blockIdx.x / tiles / slices;
  const int64_t length = (pixels + slices - 1) / slices;
  const int64_t end = min((slice + 1) * length, pixels);
  A sum = 0;
  if (channel < channels) {
    for (int64_t p = slice * length + warp; p < end; p += kSumWarps)
      sum += load(values + (image * pixels + p) * channels + channel);
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || channel >= channels) return;
#pragma unroll
  for (int other = 1; other < kSumWarps; ++other) sum += parts[other * kWarpSize + lane];
  store(partials + (image * channels + channel) * slices + slice, sum);
}

// Adds up partial sums (2, results, slices) into two tensors, a warp for each result.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_total_kernel(const A* partials, int64_t slices, int64_t results, A* first,
                                A* second) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumWarps + threadIdx.x / kWarpSize;
  if (i >= (second != nullptr ? 2 : 1) * results) return;
  const int lane = threadIdx.x % kWarpSize;
  A sum = 0;
  for (int64_t slice = lane; slice < slices; slice += kWarpSize)
    sum += load(partials + i * slices + slice);
  sum = warp_sum(sum);
  if (lane == 0) store(i < results ? first + i : second + i - results, sum);
}

// Sums of the values of each row's pixels, which stand in `order` from offsets[row] on. Contiguous:
// a warp takes a row of one channel, its lanes the pixels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    segmented_sum_kernel(const T* values, const int32_t* order, const int32_t* offsets,
                         int64_t results, int64_t channels, int64_t pixels, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  const int64_t result = static_cast<int64_t>(blockIdx.x) * kSumWarps + threadIdx.x / kWarpSize;
  if (result >= results) return;
  const int64_t row = result / channels, channel = result % channels;
  const int32_t end = load(offsets + row + 1);
  A sum = 0;
  for (int32_t i = load(offsets + row) + threadIdx.x % kWarpSize; i < end; i += kWarpSize) {
    const int64_t place = load(order + i);
    const int64_t image = place / pixels;
    sum += to_accumulate(
        load(values + (image * channels + channel) * pixels + (place - image * pixels)));
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) store(sums + result, sum);
}

// Channels last: a block takes a row of 32 channels, its lanes the channels, its warps the pixels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    segmented_sum_channels_last_kernel(const T* values, const int32_t* order,
                                       const int32_t* offsets, int64_t tiles, int64_t channels,
                                       accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  __shared__ A parts[kThreads];
  const int64_t row = blockIdx.x / tiles;
  const int64_t channel = blockIdx.x % tiles * kWarpSize + threadIdx.x % kWarpSize;
  const int32_t end = load(offsets + row + 1);
  A sum = 0;
  if (channel < channels) {
    for (int32_t i = load(offsets + row) + threadIdx.x / kWarpSize; i < end; i += kSumWarps)
      sum += to_accumulate(load(values + load(order + i) * channels + channel));
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarpSize || channel >= channels) return;
  for (int warp = 1; warp < kSumWarps; ++warp) sum += parts[warp * kWarpSize + threadIdx.x];
  store(sums + row * channels + channel, sum);
}

}  // namespace
}  // namespace torchext
