// A walk over a feature map that forms sums per channel and values per pixel at once: the average
// of each channel, mean and maximum over channels, gradients of gates. What is done with an
// element, and what is gathered for its pixel, is a visitor's.
//
// Launch: 256 threads. Contiguous, 2 to 32 of them across pixels and the rest across channels;
// channels last, up to a warp across the channels of a pixel. Fewer pixels for a block, or (where
// nothing is gathered for a pixel) fewer channels, where there would be few blocks. A block's sums
// per channel are added up by a second kernel, in a fixed order.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>

#include "launch.cuh"
#include "reduce.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// ---- what is done with an element, and what is gathered for its pixel ---------------------------

template <typename A>
struct Nothing {
  __device__ __forceinline__ Nothing(int64_t, int64_t) {}
  Nothing() = default;
  __device__ __forceinline__ void add(A, int) {}
  __device__ __forceinline__ void merge(const Nothing&) {}
};

template <typename A>
struct Sum {
  A sum;

  Sum() = default;
  __device__ __forceinline__ Sum(int64_t, int64_t) : sum(0) {}
  __device__ __forceinline__ void add(A value, int) { sum += value; }
  __device__ __forceinline__ void merge(const Sum& other) { sum += other.sum; }
};

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

template <typename A>
struct MeanMax : Pooled<A> {
  MeanMax() = default;
  __device__ __forceinline__ MeanMax(int64_t first_channel, int64_t channels)
      : Pooled<A>(nothing_pooled<A>(first_channel, channels)) {}
};

// Where V elements lie: along pixels, or along channels.
struct Place {
  int64_t offset;  // in a feature map
  int64_t row;     // image * C + channel
  int64_t pixel;   // image * P + pixel
};

// What V elements share with those that the walk meets next, or nothing.
struct NothingAlong {};

// Reads x, for its channels' sums.
template <typename T, int V, bool kChannelsLast>
struct Average {
  using A = accumulate_t<T>;
  using Gathered = Nothing<A>;
  static constexpr bool kSums = true;
  static constexpr int kUnroll = 4;  // loads in flight
  using Loaded = Vec<T, V>;
  using Along = NothingAlong;
  const T* x;

  __device__ __forceinline__ Along along(const Place&) const { return {}; }
  __device__ __forceinline__ Loaded load(const Place& at) const {
    return torchext::load<V>(x + at.offset);
  }
  __device__ __forceinline__ void use(const Loaded& loaded, const Along&, const Place&,
                                      A (&values)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = to_accumulate(loaded[j]);
  }
  __device__ __forceinline__ void finish(const Gathered&, int64_t, int64_t, int64_t) const {}
};

// The same, with each pixel's mean and maximum over its channels.
template <typename T, int V, bool kChannelsLast>
struct AverageAndPool : Average<T, V, kChannelsLast> {
  using A = accumulate_t<T>;
  using Gathered = MeanMax<A>;
  A* pooled;
  int32_t* argmax;
  int64_t pixels;

  __device__ __forceinline__ void finish(const Gathered& gathered, int64_t image, int64_t pixel,
                                         int64_t channels) const {
    store(pooled + 2 * image * pixels + pixel, gathered.sum / static_cast<A>(channels));
    store(pooled + (2 * image + 1) * pixels + pixel, gathered.maximum);
    store(argmax + image * pixels + pixel, gathered.channel);
  }
};

// Each pixel's mean and maximum alone.
template <typename T, int V, bool kChannelsLast>
struct Pool : AverageAndPool<T, V, kChannelsLast> {
  static constexpr bool kSums = false;
};

// ---- the walk -----------------------------------------------------------------------------------

// How the work is cut: `image_blocks` blocks for an image's pixels, `lanes` threads of each along
// the extent of an access, and blockIdx.y's `channels_each` of the channels. A thread takes `each`
// pixels at a time in channels last.
struct Cut {
  int64_t image_blocks, channels_each;
  int lanes, each;
};

// Contiguous: `lanes` threads across pixels, V each, and the others across channels. parts
// (blocks, C) receives each block's sums over its pixels.
template <typename T, int V, typename Visit>
__global__ void __launch_bounds__(kThreads, 2)
    channel_walk_plane_kernel(Visit visit, accumulate_t<T>* parts, int64_t channels, int64_t pixels,
                              Cut cut) {
  using A = accumulate_t<T>;
  using Gathered = typename Visit::Gathered;
  constexpr int kUnroll = Visit::kUnroll;
  __shared__ __align__(16) unsigned char shared[V * kThreads * sizeof(Gathered)];
  Gathered* const gathered_by_all = reinterpret_cast<Gathered*>(shared);

  const int lanes = cut.lanes;
  const int64_t image = blockIdx.x / cut.image_blocks;
  const int64_t pixel = ((blockIdx.x % cut.image_blocks) * lanes + threadIdx.x % lanes) * V;
  const int64_t begin = blockIdx.y * cut.channels_each;
  const int64_t end = min(begin + cut.channels_each, channels);
  const int splits = kThreads / lanes;
  const int split = threadIdx.x / lanes;
  const bool inside = pixel < pixels;
  const auto place = [&](int64_t c) -> Place {
    const int64_t row = image * channels + c;
    return {row * pixels + pixel, row, image * pixels + pixel};
  };

  Gathered gathered[V];
#pragma unroll
  for (int j = 0; j < V; ++j) gathered[j] = Gathered(begin + split, end);
  typename Visit::Along along{};
  if (inside) along = visit.along(place(begin));
  for (int64_t base = begin + split; base - split < end; base += kUnroll * splits) {
    typename Visit::Loaded loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t c = base + u * splits;
      if (inside && c < end) loaded[u] = visit.load(place(c));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t c = base + u * splits;
      A values[V] = {};
      if (inside && c < end) {
        visit.use(loaded[u], along, place(c), values);
#pragma unroll
        for (int j = 0; j < V; ++j) gathered[j].add(values[j], static_cast<int>(c));
      }
      if constexpr (Visit::kSums) {
        A sum = values[0];
#pragma unroll
        for (int j = 1; j < V; ++j) sum += values[j];
        for (int offset = 1; offset < lanes; offset *= 2) {
          sum += __shfl_xor_sync(kFullMask, sum, offset);
        }
        if (threadIdx.x % lanes == 0 && c < end) {
          store(parts + blockIdx.x * channels + c, sum);
        }
      }
    }
  }

  if constexpr (!std::is_same_v<Gathered, Nothing<A>>) {
#pragma unroll
    for (int j = 0; j < V; ++j) gathered_by_all[j * kThreads + threadIdx.x] = gathered[j];
    for (int half = splits / 2; half > 0; half /= 2) {
      __syncthreads();
      if (split >= half) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int at = j * kThreads + threadIdx.x;
        gathered[j].merge(gathered_by_all[at + half * lanes]);
        gathered_by_all[at] = gathered[j];
      }
    }
    // a thread per pixel now, so that neighbours are written together
    __syncthreads();
    const int64_t first = (blockIdx.x % cut.image_blocks) * lanes * V;
    for (int i = threadIdx.x; i < lanes * V && first + i < pixels; i += kThreads) {
      visit.finish(gathered_by_all[i % V * kThreads + i / V], image, first + i, channels);
    }
  }
}

// Channels last: `lanes` threads of a warp across the channels of a pixel, V each.
template <typename T, int V, typename Visit>
__global__ void __launch_bounds__(kThreads, 2)
    channel_walk_pixel_kernel(Visit visit, accumulate_t<T>* parts, int64_t channels, int64_t pixels,
                              Cut cut) {
  using A = accumulate_t<T>;
  using Gathered = typename Visit::Gathered;
  constexpr int kUnroll = Visit::kUnroll;
  __shared__ A sums[kWarps * kWarpSize * V];

  const int lanes = cut.lanes;
  const int lane = threadIdx.x % lanes;
  const int groups = kThreads / lanes;
  const int64_t image = blockIdx.x / cut.image_blocks;
  const int64_t block = blockIdx.x % cut.image_blocks;
  const int64_t first = block * groups * cut.each + threadIdx.x / lanes;
  const int64_t last = min((block + 1) * groups * cut.each, pixels);  // behind the block's pixels
  const int64_t begin = blockIdx.y * cut.channels_each;
  const int64_t end = min(begin + cut.channels_each, channels);
  const auto place = [&](int64_t pixel, int64_t c) -> Place {
    const int64_t of_all = image * pixels + pixel;
    return {of_all * channels + c, image * channels + c, of_all};
  };

  Gathered gathered[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) gathered[u] = Gathered(begin + lane * V, end);
  for (int64_t base = begin; base < end; base += lanes * V) {
    const int64_t c = base + lane * V;
    typename Visit::Loaded loaded[kUnroll];
    typename Visit::Along along{};
    if (c < end) along = visit.along(place(0, c));
    A by_channel[V] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t pixel = first + u * groups;
      if (pixel < last && c < end) loaded[u] = visit.load(place(pixel, c));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t pixel = first + u * groups;
      if (pixel >= last || c >= end) continue;
      A values[V] = {};
      visit.use(loaded[u], along, place(pixel, c), values);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        gathered[u].add(values[j], static_cast<int>(c) + j);
        by_channel[j] += values[j];
      }
    }
    if constexpr (Visit::kSums) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        for (int offset = lanes; offset < kWarpSize; offset *= 2) {
          by_channel[j] += __shfl_xor_sync(kFullMask, by_channel[j], offset);
        }
      }
      const int width = lanes * V;
      const int thread = threadIdx.x;
      if (static_cast<int>(threadIdx.x) % kWarpSize < lanes) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          sums[threadIdx.x / kWarpSize * width + lane * V + j] = by_channel[j];
        }
      }
      __syncthreads();
      if (thread < width && base + thread < end) {
        A sum = 0;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * width + thread];
        store(parts + blockIdx.x * channels + base + thread, sum);
      }
      __syncthreads();
    }
  }

  if constexpr (!std::is_same_v<Gathered, Nothing<A>>) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      for (int offset = 1; offset < lanes; offset *= 2) {
        Gathered other;
        if constexpr (std::is_same_v<Gathered, Sum<A>>) {
          other.sum = __shfl_xor_sync(kFullMask, gathered[u].sum, offset);
        } else {
          other.sum = __shfl_xor_sync(kFullMask, gathered[u].sum, offset);
          other.maximum = __shfl_xor_sync(kFullMask, gathered[u].maximum, offset);
          other.channel = __shfl_xor_sync(kFullMask, gathered[u].channel, offset);
        }
        gathered[u].merge(other);
      }
      const int64_t pixel = first + u * groups;
      if (lane == 0 && pixel < last) visit.finish(gathered[u], image, pixel, channels);
    }
  }
}

// out[image * stride + c] = factor * the sum over an image's blocks, in a fixed order. Launch: a
// block for 32 channels of an image, whose warps share the parts.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    combine_channel_sums_kernel(const A* parts, int64_t channels, int64_t image_blocks, A factor,
                                A* out, int64_t stride) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t c0 = static_cast<int64_t>(blockIdx.x) * kWarpSize;
  const int64_t tiles = (channels + kWarpSize - 1) / kWarpSize;
  __shared__ A sums[kWarps][kWarpSize];
  const int64_t image = blockIdx.x / tiles;
  const int64_t c = c0 - image * tiles * kWarpSize + lane;
  const int warp = threadIdx.x / kWarpSize;
  A sum = 0;
  if (c < channels) {
    for (int64_t block = warp; block < image_blocks; block += kWarps) {
      sum += load(parts + (image * image_blocks + block) * channels + c);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= channels) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) sum += sums[other][lane];
  store(out + image * stride + c, factor * sum);
}

// ---- the launch ---------------------------------------------------------------------------------

struct Walk {
  bool channels_last;
  int64_t images, channels, pixels;

  explicit Walk(const Tensor& x)
      : channels_last(is_channels_last(x)),
        images(x.size(0)),
        channels(x.size(1)),
        pixels(x.size(2) * x.size(3)) {}

  // The extent along which V elements lie.
  int64_t extent() const { return channels_last ? channels : pixels; }

  template <typename T, int V, typename Visit>
  Cut cut_for() const {
    constexpr bool kGathers = !std::is_same_v<typename Visit::Gathered, Nothing<accumulate_t<T>>>;
    Cut cut{0, channels, channels_last ? 1 : kWarpSize, Visit::kUnroll};
    const auto block_pixels = [&] {
      return channels_last ? kThreads / cut.lanes * cut.each : cut.lanes * V;
    };
    const auto image_blocks = [&] { return (pixels + block_pixels() - 1) / block_pixels(); };
    const auto few = [&] { return images * image_blocks() < kEnoughBlocks; };
    if (channels_last) {
      while (cut.lanes < kWarpSize && cut.lanes * V < channels) cut.lanes *= 2;
      while (few() && cut.each > 1) cut.each /= 2;
    } else {
      // Whole sectors at least; of what does not gather, warps that share the maps' values, or
      // long runs for few parts of sums.
      constexpr int kSector = kSectorBytes / static_cast<int>(V * sizeof(T)) > 1
                                  ? kSectorBytes / static_cast<int>(V * sizeof(T))
                                  : 1;
      constexpr int kLeast = kGathers ? kSector : Visit::kSums ? kWarpSize : kWarpSize / 4;
      while (few() && cut.lanes > kLeast && 2 * kThreads / cut.lanes <= channels) cut.lanes /= 2;
      while (cut.lanes > kSector && cut.lanes / 2 * V >= pixels) cut.lanes /= 2;
    }
    cut.image_blocks = image_blocks();
    if (!kGathers && few()) {
      const int64_t unit = channels_last ? cut.lanes * V : kThreads / cut.lanes;
      const int64_t units = (channels + unit - 1) / unit;
      const int64_t wanted = kEnoughBlocks / std::max<int64_t>(1, images * cut.image_blocks);
      cut.channels_each = (units + wanted - 1) / wanted * unit;
    }
    return cut;
  }

  // Runs the walk; the blocks' sums, if there are any, are added up into out[image * stride + c].
  template <typename T, int V, bool kChannelsLast, template <typename, int, bool> class Visitor>
  void run(const Tensor& x, const Visitor<T, V, kChannelsLast>& visit,
           accumulate_t<T>* out = nullptr, int64_t stride = 0, double factor = 1) const {
    using A = accumulate_t<T>;
    using Visit = Visitor<T, V, kChannelsLast>;
    const Cut cut = cut_for<T, V, Visit>();
    const int64_t image_blocks = cut.image_blocks;
    const ScalarType type = accumulate_type(x);
    Tensor parts = new_tensor(x, {Visit::kSums ? images * image_blocks : 0, channels}, type);
    void (*kernel)(Visit, A*, int64_t, int64_t, Cut);
    if constexpr (kChannelsLast) {
      kernel = channel_walk_pixel_kernel<T, V, Visit>;
    } else {
      kernel = channel_walk_plane_kernel<T, V, Visit>;
    }
    dim3 grid = grid_of(images * image_blocks);
    grid.y = static_cast<unsigned>((channels + cut.channels_each - 1) / cut.channels_each);
    launch(kernel, grid, dim3(kThreads), 0, current_stream(x), visit, data<A>(parts), channels,
           pixels, cut);
    if constexpr (Visit::kSums) {
      const int64_t tiles = (channels + kWarpSize - 1) / kWarpSize;
      launch(combine_channel_sums_kernel<A>, grid_of(images * tiles), dim3(kThreads), 0,
             current_stream(x), data<const A>(parts), channels, image_blocks,
             static_cast<A>(factor), out, stride);
    }
  }
};

}  // namespace
}  // namespace torchext
