// The convolution of a one-hot label map as table look-ups (torchext.label_conv2d).
//
//   y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap]
//
// Passes over memory and launches: forward writes y once (the floor) in 1; labels and the weights,
// of which a channel takes classes * k^2 numbers, come from the cache. Backward reads the gradient
// once per tap and tile of classes (from the cache, while a slice fits) in 2: partial sums per
// slice of pixels, then the slices added up in order.
//
// Launch: forward 256 threads across the pixels of an image, each for a tile of channels. Backward
// 256 threads per tap, tile of 32 channels by 32 classes and slice: a thread sums 4 of the tile's
// numbers over the slice's pixels, 32 of which lie in shared memory at a time.
#include "../label_conv2d.h"
#include "launch.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 32;  // of a forward block's tile, and of a backward block's
constexpr int kClasses = 32;
constexpr int kPixels = 32;
constexpr int kOwn = kChannels * kClasses / kThreads;  // sums of a backward thread
constexpr int64_t kMaxSlices = 32;

// The label under a tap, or -1 outside the image and for a label that is no class.
__device__ __forceinline__ int label_at(const LabelMaps& maps, const int32_t* plane, int64_t y,
                                        int64_t x) {
  if (y < 0 || y >= maps.height || x < 0 || x >= maps.width) return -1;
  const int label = load(plane + y * maps.width + x);
  return label >= 0 && label < maps.classes ? label : -1;
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(kThreads, kKernel > 3 ? 2 : 4)
    label_conv2d_kernel(LabelMaps maps, const int32_t* labels, const accumulate_t<T>* weight,
                        const accumulate_t<T>* bias, T* out, int64_t pixel_blocks,
                        int64_t channel_tiles) {
  using A = accumulate_t<T>;
  constexpr int kTaps = kKernel * kKernel;
  const int64_t pixel_block = blockIdx.x % pixel_blocks;
  const int64_t rest = blockIdx.x / pixel_blocks;
  const int64_t image = rest / channel_tiles;
  const int64_t first = rest % channel_tiles * kChannels;
  const int64_t pixel = pixel_block * kThreads + threadIdx.x;
  if (pixel >= maps.pixels()) return;
  const int64_t y = pixel / maps.width;
  const int64_t x = pixel - y * maps.width;

  const int32_t* plane = labels + image * maps.pixels();
  int taps[kTaps];  // where each tap's number lies within a channel's, or -1
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    const int label =
        label_at(maps, plane, y + tap / kKernel - kKernel / 2, x + tap % kKernel - kKernel / 2);
    taps[tap] = label < 0 ? -1 : label * kTaps + tap;
  }
  const int64_t last = min(first + kChannels, maps.channels);
#pragma unroll 1  // else the taps' loads of several channels spill
  for (int64_t o = first; o < last; ++o) {
    const A* table = weight + o * maps.classes * kTaps;
    A sum = bias != nullptr ? load(bias + o) : A(0);
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if (taps[tap] >= 0) sum += load(table + taps[tap]);
    }
    store(out + (image * maps.channels + o) * maps.pixels() + pixel, from_accumulate<T>(sum));
  }
}

struct BackwardTiling {
  int64_t channel_tiles, class_tiles, slices, slice_pixels;
  int kernel;
};

// partials (slices, O, classes, taps).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    label_conv2d_backward_kernel(LabelMaps maps, BackwardTiling tiling, const T* grad,
                                 const int32_t* labels, accumulate_t<T>* partials) {
  using A = accumulate_t<T>;
  __shared__ A gradients[kChannels][kPixels + 1];
  __shared__ int under[kPixels];
  const int taps = tiling.kernel * tiling.kernel;
  const int tap = blockIdx.x % taps;
  int64_t rest = blockIdx.x / taps;
  const int64_t first_class = rest % tiling.class_tiles * kClasses;
  rest /= tiling.class_tiles;
  const int64_t first_channel = rest % tiling.channel_tiles * kChannels;
  const int64_t slice = rest / tiling.channel_tiles;
  const int dy = tap / tiling.kernel - tiling.kernel / 2;
  const int dx = tap % tiling.kernel - tiling.kernel / 2;

  const int lane = threadIdx.x % kPixels;
  const int row = threadIdx.x / kPixels;
  A sums[kOwn] = {};  // of channel `lane` and classes row, row + 8, ...
  const int64_t all = maps.images * maps.pixels();
  const int64_t end = min((slice + 1) * tiling.slice_pixels, all);
  for (int64_t begin = slice * tiling.slice_pixels; begin < end; begin += kPixels) {
    const int64_t index = begin + lane;
    const int64_t image = index / maps.pixels();
    const int64_t pixel = index - image * maps.pixels();
    for (int c = row; c < kChannels; c += kThreads / kPixels) {
      const int64_t o = first_channel + c;
      gradients[c][lane] =
          index < end && o < maps.channels
              ? to_accumulate(load(grad + (image * maps.channels + o) * maps.pixels() + pixel))
              : A(0);
    }
    if (row == 0) {
      const int64_t y = pixel / maps.width;
      under[lane] = index < end ? label_at(maps, labels + image * maps.pixels(), y + dy,
                                           pixel - y * maps.width + dx)
                                : -1;
    }
    __syncthreads();
    for (int p = 0; p < kPixels; ++p) {
      const A value = gradients[lane][p];
      const int64_t label = under[p] - first_class;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (label == row + i * (kThreads / kPixels)) sums[i] += value;
      }
    }
    __syncthreads();
  }
  const int64_t o = first_channel + lane;
  if (o >= maps.channels) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t label = first_class + row + i * (kThreads / kPixels);
    if (label >= maps.classes) continue;
    store(partials + ((slice * maps.channels + o) * maps.classes + label) * taps + tap, sums[i]);
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    label_conv2d_backward_total_kernel(const A* partials, int64_t slices, int64_t results,
                                       A* grad_weight) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= results) return;
  A sum = 0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += load(partials + slice * results + i);
  store(grad_weight + i, sum);
}

void compute(const LabelConv2d& call) {
  const DeviceGuard guard(call.labels);
  const LabelMaps& maps = call.maps;
  const int64_t pixel_blocks = (maps.pixels() + kThreads - 1) / kThreads;
  const int64_t channel_tiles = (maps.channels + kChannels - 1) / kChannels;
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    auto run = [&](auto kernel) {
      launch(label_conv2d_kernel<T, decltype(kernel)::value>,
             grid_of(maps.images * channel_tiles * pixel_blocks), dim3(kThreads), 0,
             current_stream(call.labels), maps, data<const int32_t>(call.labels),
             data<const A>(call.weight), data<const A>(call.bias), data<T>(call.y), pixel_blocks,
             channel_tiles);
    };
    switch (maps.kernel) {
      case 1:
        return run(std::integral_constant<int, 1>{});
      case 3:
        return run(std::integral_constant<int, 3>{});
      case 5:
        return run(std::integral_constant<int, 5>{});
      default:
        return run(std::integral_constant<int, 7>{});
    }
  });
}

void compute(const LabelConv2dBackward& call) {
  const DeviceGuard guard(call.labels);
  const LabelMaps& maps = call.maps;
  const int64_t taps = maps.taps(), results = call.grad_weight.numel();
  BackwardTiling tiling{};
  tiling.channel_tiles = (maps.channels + kChannels - 1) / kChannels;
  tiling.class_tiles = (maps.classes + kClasses - 1) / kClasses;
  tiling.kernel = static_cast<int>(maps.kernel);
  const int64_t all = maps.images * maps.pixels();
  const int64_t steps = std::max<int64_t>(1, (all + kPixels - 1) / kPixels);
  const int64_t wanted = std::max<int64_t>(1, std::min(kMaxSlices, steps / 16));
  tiling.slice_pixels = (steps + wanted - 1) / wanted * kPixels;
  tiling.slices = std::max<int64_t>(1, (all + tiling.slice_pixels - 1) / tiling.slice_pixels);
  dispatch_floating(call.grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    Tensor partials =
        new_tensor(call.grad, {tiling.slices * results}, call.grad_weight.scalar_type());
    launch(label_conv2d_backward_kernel<T>,
           grid_of(taps * tiling.class_tiles * tiling.channel_tiles * tiling.slices),
           dim3(kThreads), 0, current_stream(call.labels), maps, tiling, data<const T>(call.grad),
           data<const int32_t>(call.labels), data<A>(partials));
    launch(label_conv2d_backward_total_kernel<A>, grid_of((results + kThreads - 1) / kThreads),
           dim3(kThreads), 0, current_stream(call.labels), data<const A>(partials), tiling.slices,
           results, data<A>(call.grad_weight));
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
