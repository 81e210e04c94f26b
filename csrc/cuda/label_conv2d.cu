// The convolution of a one-hot label map as table look-ups (torchext.label_conv2d).
//
//   y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap]
//
// Passes over memory and launches: forward writes y once (the floor) in 1; labels and the weights,
// of which a channel takes classes * k^2 numbers, come from the cache. Backward reads the gradient
// once (as often as taps and classes need several blocks' shared memory: 9 taps of up to 160
// classes fit on a device with 227 KiB) in 2: sums per slice of pixels, then the slices added up in
// order.
//
// Launch: forward 256 threads across the pixels of an image, each for a tile of channels. Backward
// a warp for each tap, a block for 32 channels and a slice: a lane adds its channel's gradients,
// which the block's warps bring to shared memory by 32 pixels each, to the table of its warp, row
// by label.
#include "../label_conv2d.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 32;  // of a forward block's tile, or fewer for more blocks
constexpr int kLeastChannels = 4;
constexpr int kMaxWarps = 9;         // of a backward block
constexpr int64_t kBlocks = 256;     // of the backward, for each group of taps
constexpr int64_t kLeastChunks = 8;  // of a slice

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
                        int64_t channel_tiles, int tile) {
  using A = accumulate_t<T>;
  constexpr int kTaps = kKernel * kKernel;
  const int64_t pixel_block = blockIdx.x % pixel_blocks;
  const int64_t rest = blockIdx.x / pixel_blocks;
  const int64_t image = rest / channel_tiles;
  const int64_t first = rest % channel_tiles * tile;
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
  const int64_t last = min(first + tile, maps.channels);
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

// How the backward is cut: blocks of `warps` taps, `tile` classes and 32 channels, over a slice of
// an image's chunks of 32 pixels.
struct BackwardTiling {
  int warps, tap_groups, taps, tile, class_tiles;
  int64_t channel_tiles, slices;  // of each image
  int chunks, slice_chunks;       // of an image, of a slice
};

// Numbers of a channel's row in shared memory: one access more than a chunk, so that the rows of
// several lanes lie in different banks.
template <typename A>
constexpr int kPitch = kWarpSize + kMaxAccessBytes / sizeof(A);

// A warp's numbers in shared memory: its chunk of the gradient, and its tap's sums.
template <typename A>
int64_t backward_shared(int64_t classes) {
  return kWarpSize * (kPitch<A> + classes);
}

// partials (images * slices, taps, classes, O). Each warp has a tap, and for it a table of sums by
// class, a lane for each channel: no two threads add to the same number, and pixels come in order.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    label_conv2d_backward_kernel(LabelMaps maps, BackwardTiling tiling, const T* grad,
                                 const int32_t* labels, accumulate_t<T>* partials) {
  using A = accumulate_t<T>;
  constexpr int kAccess = kMaxAccessBytes / sizeof(A);
  using Access = Vec<A, kAccess>;
  constexpr int kLoads = kWarpSize / V;  // of a channel's chunk, and of a lane for all channels
  constexpr int kChunk = kWarpSize * kPitch<A>;
  DYNAMIC_SHARED(A, shared);
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int tap = static_cast<int>(blockIdx.x % tiling.tap_groups) * tiling.warps + warp;
  int64_t rest = blockIdx.x / tiling.tap_groups;
  const int first_class = static_cast<int>(rest % tiling.class_tiles) * tiling.tile;
  rest /= tiling.class_tiles;
  const int64_t first_channel = rest % tiling.channel_tiles * kWarpSize;
  const int64_t slice = rest / tiling.channel_tiles;
  const int64_t image = slice / tiling.slices;
  const int kernel = static_cast<int>(maps.kernel);
  const int dy = tap / kernel - kernel / 2, dx = tap % kernel - kernel / 2;
  const int pixels = static_cast<int>(maps.pixels()), width = static_cast<int>(maps.width);
  const int classes = min(tiling.tile, static_cast<int>(maps.classes) - first_class);
  A* const table = shared + tiling.warps * kChunk + warp * tiling.tile * kWarpSize + lane;
  for (int label = 0; label < classes; ++label) table[label * kWarpSize] = A(0);

  const T* const planes = grad + (image * maps.channels + first_channel) * maps.pixels();
  const int32_t* const plane = labels + image * maps.pixels();
  const int channels = static_cast<int>(min(maps.channels - first_channel, int64_t{kWarpSize}));
  const int begin = static_cast<int>(slice % tiling.slices) * tiling.slice_chunks;
  const int end = min(begin + tiling.slice_chunks, tiling.chunks);
  Vec<T, V> next[kLoads];
  const auto fetch = [&](int chunk) {
    const int pixel = chunk * kWarpSize + lane % kLoads * V;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int c = i * V + lane / kLoads;
      next[i] = Vec<T, V>{};
      if (c < channels && pixel < pixels && chunk < end)
        next[i] = load<V>(planes + c * maps.pixels() + pixel);
    }
  };

  // Several loads ahead only where they are few registers.
  constexpr bool kAhead = V > 1;
  if (kAhead) fetch(begin + warp);
  for (int first = begin; first < end; first += tiling.warps) {
    if (!kAhead) fetch(first + warp);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      A* const to =
          shared + warp * kChunk + (i * V + lane / kLoads) * kPitch<A> + lane % kLoads * V;
      Vec<A, V> values;
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] = to_accumulate(next[i][j]);
      *reinterpret_cast<Vec<A, V>*>(to) = values;
    }
    __syncthreads();
    if (kAhead) fetch(first + tiling.warps + warp);  // while this one is added up
    if (tap >= tiling.taps) continue;
    const int count = min(tiling.warps, end - first);
    for (int chunk = 0; chunk < count; ++chunk) {
      const int pixel = (first + chunk) * kWarpSize + lane;
      int label = -1;
      if (pixel < pixels) {
        const int y = static_cast<int>(static_cast<unsigned>(pixel) / static_cast<unsigned>(width));
        label = label_at(maps, plane, y + dy, pixel - y * width + dx) - first_class;
        if (label < 0 || label >= classes) label = -1;
      }
      // Where labels change; neighbours of one label are added up in a register.
      const int before = __shfl_up_sync(kFullMask, label, 1);
      const unsigned changes = __ballot_sync(kFullMask, lane > 0 && label != before);
      int current = __shfl_sync(kFullMask, label, 0);
      if (changes == 0 && current < 0) continue;
      const A* const row = shared + chunk * kChunk + lane * kPitch<A>;
      A sum = 0;
#pragma unroll
      for (int p = 0; p < kWarpSize; p += kAccess) {
        const Access values = *reinterpret_cast<const Access*>(row + p);
#pragma unroll
        for (int j = 0; j < kAccess; ++j) {
          if (changes >> (p + j) & 1) {
            if (current >= 0) table[current * kWarpSize] += sum;
            current = __shfl_sync(kFullMask, label, p + j);
            sum = A(0);
          }
          sum += values[j];
        }
      }
      if (current >= 0) table[current * kWarpSize] += sum;
    }
  }
  if (tap >= tiling.taps || lane >= channels) return;
  A* const out = partials +
                 ((slice * tiling.taps + tap) * maps.classes + first_class) * maps.channels +
                 first_channel + lane;
  for (int label = 0; label < classes; ++label) {
    store(out + label * maps.channels, table[label * kWarpSize]);
  }
}

constexpr int kTotalPlaces = kThreads / kWarpSize;  // classes and taps of a block

// grad_weight (O, classes, taps) from partials (slices, taps, classes, O), slices in order. A block
// takes 32 channels of 8 places, reads across channels and writes across places.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    label_conv2d_backward_total_kernel(const A* partials, int64_t slices, int64_t classes,
                                       int64_t channels, int taps, int64_t channel_tiles,
                                       A* grad_weight) {
  __shared__ A sums[kTotalPlaces][kWarpSize + 1];
  const int64_t places = classes * taps;
  const int64_t first_channel = blockIdx.x % channel_tiles * kWarpSize;
  const int64_t first_place = blockIdx.x / channel_tiles * kTotalPlaces;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  if (first_channel + lane < channels && first_place + warp < places) {
    const int64_t label = (first_place + warp) / taps, tap = first_place + warp - label * taps;
    const A* const from = partials + (tap * classes + label) * channels + first_channel + lane;
    A sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += load(from + slice * places * channels);
    sums[warp][lane] = sum;
  }
  __syncthreads();
  const int64_t o = first_channel + threadIdx.x / kTotalPlaces;
  const int64_t place = first_place + threadIdx.x % kTotalPlaces;
  if (o < channels && place < places) {
    store(grad_weight + o * places + place,
          sums[threadIdx.x % kTotalPlaces][threadIdx.x / kTotalPlaces]);
  }
}

void compute(const LabelConv2d& call) {
  const DeviceGuard guard(call.labels);
  const LabelMaps& maps = call.maps;
  const int64_t pixel_blocks = (maps.pixels() + kThreads - 1) / kThreads;
  int tile = kChannels;
  const auto tiles = [&] { return (maps.channels + tile - 1) / tile; };
  while (tile > kLeastChannels && maps.images * pixel_blocks * tiles() < kEnoughBlocks) tile /= 2;
  const int64_t channel_tiles = tiles();
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    auto run = [&](auto kernel) {
      launch(label_conv2d_kernel<T, decltype(kernel)::value>,
             grid_of(maps.images * channel_tiles * pixel_blocks), dim3(kThreads), 0,
             current_stream(call.labels), maps, data<const int32_t>(call.labels),
             data<const A>(call.weight), data<const A>(call.bias), data<T>(call.y), pixel_blocks,
             channel_tiles, tile);
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
  expects(maps.pixels() < int64_t{1} << 31, "labels: expected fewer than 2^31 pixels an image");
  dispatch_floating(call.grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    // As many classes as a warp's table holds, then as many taps as a block's memory does. Sums are
    // the same whatever these are.
    const int64_t limit = static_cast<int64_t>(shared_memory_limit() / sizeof(A));
    const int64_t most = (limit - backward_shared<A>(0)) / kWarpSize;
    const int64_t class_tiles = (maps.classes + most - 1) / most;
    const int64_t tile = (maps.classes + class_tiles - 1) / class_tiles;
    const int64_t fitting = std::min<int64_t>(kMaxWarps, limit / backward_shared<A>(tile));
    const int64_t tap_groups = (maps.taps() + fitting - 1) / fitting;
    const int64_t warps = (maps.taps() + tap_groups - 1) / tap_groups;
    const int64_t channel_tiles = (maps.channels + kWarpSize - 1) / kWarpSize;
    const int64_t chunks = (maps.pixels() + kWarpSize - 1) / kWarpSize;
    const int64_t images = std::max<int64_t>(1, maps.images);
    // Enough blocks for a large device, each with about as many pixels to add up as sums to leave.
    const int64_t least = std::max(kLeastChunks, maps.taps() * maps.classes / (2 * kWarpSize));
    const int64_t wanted =
        std::max<int64_t>(1, std::min(kBlocks / (channel_tiles * images), chunks / least));
    const int64_t slice_chunks = (chunks + wanted - 1) / wanted;
    const int64_t slices = (chunks + slice_chunks - 1) / slice_chunks;
    const BackwardTiling tiling{static_cast<int>(warps),
                                static_cast<int>(tap_groups),
                                static_cast<int>(maps.taps()),
                                static_cast<int>(tile),
                                static_cast<int>(class_tiles),
                                channel_tiles,
                                slices,
                                static_cast<int>(chunks),
                                static_cast<int>(slice_chunks)};
    Tensor partials =
        new_tensor(call.grad, {maps.images * slices, maps.taps(), maps.classes, maps.channels},
                   call.grad_weight.scalar_type());
    const T* grad = data<const T>(call.grad);
    const auto run = [&](auto width) {
      launch(label_conv2d_backward_kernel<T, decltype(width)::value>,
             grid_of(tap_groups * class_tiles * channel_tiles * maps.images * slices),
             dim3(static_cast<unsigned>(warps * kWarpSize)),
             sizeof(A) * static_cast<size_t>(warps * backward_shared<A>(tile)),
             current_stream(call.labels), maps, tiling, grad, data<const int32_t>(call.labels),
             data<A>(partials));
    };
    if (vector_width(maps.pixels(), grad) == kWidest) {
      run(std::integral_constant<int, kWidest>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
    const int64_t place_tiles = (maps.taps() * maps.classes + kTotalPlaces - 1) / kTotalPlaces;
    launch(label_conv2d_backward_total_kernel<A>, grid_of(place_tiles * channel_tiles),
           dim3(kThreads), 0, current_stream(call.labels), data<const A>(partials),
           maps.images * slices, maps.classes, maps.channels, static_cast<int>(maps.taps()),
           channel_tiles, data<A>(call.grad_weight));
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
