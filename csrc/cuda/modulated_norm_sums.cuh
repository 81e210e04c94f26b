// Sums of what a modulated norm's backward has written: of a gradient per element over the elements
// of a map's value, of partial sums, of the pixels of a table's rows.
#pragma once

#include "modulated_norm_maps.cuh"

namespace torchext {
namespace {

template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_channel_sum_kernel(const A* values, A* sums, int64_t channels, int64_t pixels,
                                      int64_t all_pixels, bool channels_last) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all_pixels) return;
  const int64_t image = index / pixels;
  const A* from = channels_last ? values + index * channels
                                : values + image * channels * pixels + (index - image * pixels);
  const int64_t stride = channels_last ? 1 : pixels;
  A sum = 0;
  for (int64_t c = 0; c < channels; ++c) sum += load(from + c * stride);
  store(sums + index, sum);
}

// One block per image and channel.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_plane_sum_kernel(const A* values, A* sums, int64_t channels, int64_t pixels,
                                    bool channels_last) {
  __shared__ A scratch[kThreads / kWarpSize];
  const int64_t image = blockIdx.x / channels;
  const int64_t channel = blockIdx.x % channels;
  const A* from = values + image * channels * pixels + (channels_last ? channel : channel * pixels);
  const int64_t stride = channels_last ? channels : 1;
  A sum = 0;
  for (int64_t p = threadIdx.x; p < pixels; p += kThreads) sum += load(from + p * stride);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store(sums + blockIdx.x, sum);
}

// Adds up partial sums of one region: totals (2, groups, C). One block per group and tile of
// channels would do; the results are few, so each thread takes one.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    modulated_norm_total_kernel(const A* partials, int64_t slices, int64_t results, A* totals) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= results) return;
  A sum = 0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += load(partials + i * slices + slice);
  store(totals + i, sum);
}

constexpr int kSegmentWarps = kThreads / kWarpSize;

// Sums of the values of each row's pixels, which stand in `order` from offsets[row] on. Contiguous:
// a warp takes a row of one channel, its lanes the pixels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    segmented_sum_kernel(const T* values, const int32_t* order, const int32_t* offsets,
                         int64_t results, int64_t channels, int64_t pixels, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  const int64_t result = static_cast<int64_t>(blockIdx.x) * kSegmentWarps + threadIdx.x / kWarpSize;
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
    for (int32_t i = load(offsets + row) + threadIdx.x / kWarpSize; i < end; i += kSegmentWarps)
      sum += to_accumulate(load(values + load(order + i) * channels + channel));
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarpSize || channel >= channels) return;
  for (int warp = 1; warp < kSegmentWarps; ++warp) sum += parts[warp * kWarpSize + threadIdx.x];
  store(sums + row * channels + channel, sum);
}

}  // namespace
}  // namespace torchext
