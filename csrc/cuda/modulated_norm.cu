// Modulated normalisation: SPADE, SPDNorm, AdaIN, pixel norm (torchext.modulated_norm).
//
//   y = leaky((x - mean) * rstd * scale + shift),  scale and shift from gamma, beta and weight
//
// Passes over memory (T = one tensor; gamma and beta count as tensors where they are full) and
// launches.
//   Statistics per channel: forward 5T in 2: moments of slices (region_statistics.cuh, with one
//     region) read T; apply reads x, gamma, beta, writes y, each block first merging its channels'
//     partial results. Backward 9T in 2: partial sums with the maps' gradients read 3T and write
//     2T; apply reads 3T and writes T. Both are the floor unless a channel stays in the cache.
//   Statistics per pixel: forward 4T in 1, backward 6T in 1, the floors: a block takes some pixels
//     with all their channels; what it reads twice is in shared memory or the cache.
// A gradient summed across the walk (of a map per pixel with statistics per channel, or per channel
// with statistics per pixel) is first written for every element, then summed by a kernel of its
// own.
//
// Launch: statistics per channel 256 threads per slice of pixels of a tile of channels (one if
// contiguous, 64 bytes in channels last); statistics per pixel 256 threads, across pixels first if
// contiguous, across channels first in channels last.
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "region_statistics.cuh"

namespace torchext::cuda {
namespace {

using MaybeTensor = std::optional<Tensor>;

constexpr int kThreads = 256;

// ---- maps ---------------------------------------------------------------------------------------

// Which elements one value of a map belongs to.
enum class Extent { kAbsent, kElement, kPixel, kChannel, kTable };

// Where V neighbouring elements are: the first one's channel, its pixel within the batch, and the
// offset in memory.
struct At {
  int64_t image, channel, index, offset;
};

// kTables: whether it may be rows of a table, whose code costs registers.
template <typename T, bool kTables>
struct Map {
  Extent extent = Extent::kAbsent;
  const T* elements = nullptr;
  const accumulate_t<T>* values = nullptr;
  // Of a table: each pixel's row, and the distances of rows and of columns.
  const int32_t* index = nullptr;
  int64_t row_stride = 0, column_stride = 0;

  Map<T, false> without_tables() const { return {extent, elements, values}; }

  template <int V, bool kChannelsLast>
  __device__ __forceinline__ Vec<accumulate_t<T>, V> read(const At& at, int64_t channels,
                                                          accumulate_t<T> absent) const {
    using A = accumulate_t<T>;
    Vec<A, V> result;
    if (extent == Extent::kElement) {
      const Vec<T, V> narrow = load<V>(elements + at.offset);
#pragma unroll
      for (int j = 0; j < V; ++j) result[j] = to_accumulate(narrow[j]);
    } else if (extent == (kChannelsLast ? Extent::kChannel : Extent::kPixel)) {
      result = load<V>(values + (kChannelsLast ? at.image * channels + at.channel : at.index));
    } else if (kTables && extent == Extent::kTable) {
      if (kChannelsLast) {
        result = load<V>(values + load(index + at.index) * row_stride + at.channel);
      } else {
        const A* column = values + at.channel * column_stride;
        constexpr int kRows = V > 4 ? 2 : V;  // more at a time spill
#pragma unroll
        for (int j = 0; j < V; j += kRows) {
          const Vec<int32_t, kRows> rows = load<kRows>(index + at.index + j);
#pragma unroll
          for (int i = 0; i < kRows; ++i) result[j + i] = load(column + rows[i] * row_stride);
        }
      }
    } else {
      A value = absent;
      if (extent == Extent::kPixel) value = load(values + at.index);
      if (extent == Extent::kChannel) value = load(values + at.image * channels + at.channel);
#pragma unroll
      for (int j = 0; j < V; ++j) result[j] = value;
    }
    return result;
  }
};

enum class Gain { kOnePlus, kPlain, kSigmoid };

template <typename T, bool kTables = true>
struct Modulation {
  using A = accumulate_t<T>;
  Map<T, kTables> gamma, beta;
  Map<T, false> weight;
  Gain gain;
  A slope;

  Modulation<T, false> without_tables() const {
    return {gamma.without_tables(), beta.without_tables(), weight, gain, slope};
  }

  __device__ __forceinline__ A base() const {
    return gain == Gain::kPlain && gamma.extent != Extent::kAbsent ? A(0) : A(1);
  }
  // What gamma stands for in the scale.
  template <int V, bool kChannelsLast>
  __device__ __forceinline__ Vec<A, V> gammas(const At& at, int64_t channels) const {
    Vec<A, V> result = gamma.template read<V, kChannelsLast>(at, channels, A(0));
    if (gain == Gain::kSigmoid && gamma.extent != Extent::kAbsent) {
#pragma unroll
      for (int j = 0; j < V; ++j) result[j] = A(1) / (A(1) + exp(-result[j]));
    }
    return result;
  }
};

// A map's gradient: stored per element, narrow or (to be summed afterwards) in the accumulate type.
template <typename T>
struct MapGradient {
  T* elements = nullptr;
  accumulate_t<T>* wide = nullptr;
  accumulate_t<T>* pixels = nullptr;  // sums over channels, where the walk forms them

  __device__ bool per_element() const { return elements != nullptr || wide != nullptr; }
  __device__ bool wanted() const { return per_element() || pixels != nullptr; }
  template <int V>
  __device__ __forceinline__ void put(const At& at, const Vec<accumulate_t<T>, V>& values) const {
    if (elements != nullptr) {
      Vec<T, V> narrow;
#pragma unroll
      for (int j = 0; j < V; ++j) narrow[j] = from_accumulate<T>(values[j]);
      store<V>(elements + at.offset, narrow);
    } else if (wide != nullptr) {
      store<V>(wide + at.offset, values);
    }
  }
};

// V elements of a gradient: gn, the gradient of xn, and what the maps get.
template <typename A, int V>
struct Elements {
  Vec<A, V> gn, xn, gamma, beta, weight;
};

template <typename T, int V, bool kChannelsLast, bool kTables>
__device__ __forceinline__ Elements<accumulate_t<T>, V> gradient_elements(
    const T* grad, const T* y, const T* x, const Modulation<T, kTables>& modulation, const At& at,
    int64_t channels, const Vec<accumulate_t<T>, V>& mean, const Vec<accumulate_t<T>, V>& rstd,
    bool weight_gradient) {
  using A = accumulate_t<T>;
  Elements<A, V> result;
  const Vec<T, V> g = load<V>(grad + at.offset);
  const Vec<T, V> value = load<V>(x + at.offset);
  Vec<A, V> incoming;
#pragma unroll
  for (int j = 0; j < V; ++j) incoming[j] = to_accumulate(g[j]);
  if (y != nullptr) {  // y has the sign of what was activated
    const Vec<T, V> sign = load<V>(y + at.offset);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (!(to_accumulate(sign[j]) > A(0))) incoming[j] *= modulation.slope;
    }
  }
  const Vec<A, V> t = modulation.template gammas<V, kChannelsLast>(at, channels);
  const Vec<A, V> w = modulation.weight.template read<V, kChannelsLast>(at, channels, A(1));
  const A base = modulation.base();
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A xn = (to_accumulate(value[j]) - mean[j]) * rstd[j];
    const A weighted = incoming[j] * w[j];
    result.xn[j] = xn;
    result.gn[j] = incoming[j] * (base + t[j] * w[j]);
    result.beta[j] = weighted;
    result.gamma[j] = weighted * xn;
    if (modulation.gain == Gain::kSigmoid) result.gamma[j] *= t[j] * (A(1) - t[j]);
  }
  if (weight_gradient) {
    const Vec<A, V> b = modulation.beta.template read<V, kChannelsLast>(at, channels, A(0));
#pragma unroll
    for (int j = 0; j < V; ++j) result.weight[j] = incoming[j] * (result.xn[j] * t[j] + b[j]);
  }
  return result;
}

template <typename T, int V, bool kChannelsLast, bool kTables>
__device__ __forceinline__ void modulate(const Vec<T, V>& x,
                                         const Modulation<T, kTables>& modulation, const At& at,
                                         int64_t channels, const Vec<accumulate_t<T>, V>& mean,
                                         const Vec<accumulate_t<T>, V>& rstd, T* y) {
  using A = accumulate_t<T>;
  const Vec<A, V> t = modulation.template gammas<V, kChannelsLast>(at, channels);
  const Vec<A, V> b = modulation.beta.template read<V, kChannelsLast>(at, channels, A(0));
  const Vec<A, V> w = modulation.weight.template read<V, kChannelsLast>(at, channels, A(1));
  const A base = modulation.base();
  Vec<T, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A z = (to_accumulate(x[j]) - mean[j]) * rstd[j] * (base + t[j] * w[j]) + b[j] * w[j];
    result[j] = from_accumulate<T>(z > A(0) ? z : z * modulation.slope);
  }
  store<V>(y + at.offset, result);
}

template <typename A>
__device__ __forceinline__ A rstd_of(A squares, int64_t count, bool unbiased, double eps) {
  const int64_t values = count - unbiased;
  return A(1) / sqrt(squares / static_cast<A>(values > 0 ? values : 1) + static_cast<A>(eps));
}

// ---- statistics per channel ---------------------------------------------------------------------

// Where mean and rstd (groups, channels) come from, and go to.
template <typename A>
struct ChannelStatistics {
  Partials<A> partials;  // planes null: mean and rstd are given, or there are none
  A* mean;
  A* rstd;
  bool unbiased;
  double eps;
};

// A place of the walk; the image is found by division only where a map per channel needs it.
template <bool kChannelsLast>
__device__ __forceinline__ At place(const RegionView& view, const BlockWork& work,
                                    const Cursor<kChannelsLast>& cursor, int64_t channel) {
  const int64_t image =
      view.images_per_group == 1 ? work.group : (cursor.index() - cursor.pixel()) / view.pixels;
  return {image, channel, cursor.index(), cursor.offset()};
}

// A thread's channels' values out of a block's table in shared memory.
template <int V, bool kChannelsLast, typename A>
__device__ __forceinline__ Vec<A, V> of_channels(const A* table, int channel) {
  Vec<A, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) result[j] = table[kChannelsLast ? channel + j : 0];
  return result;
}

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 3)
    modulated_norm_apply_kernel(RegionView view, Slicing slicing, const T* x, T* y,
                                ChannelStatistics<accumulate_t<T>> statistics,
                                Modulation<T> modulation) {
  using A = accumulate_t<T>;
  using Shape = Threading<T, V, kChannelsLast>;
  __shared__ A means[Shape::kChannels], rstds[Shape::kChannels];
  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * Shape::kChannels;
  const int channels =
      static_cast<int>(min(static_cast<int64_t>(Shape::kChannels), view.channels - first_channel));
  const int64_t table = work.group * view.channels + first_channel;
  if (statistics.partials.planes != nullptr) {
    combine_slices<Moments<A>>(view, statistics.partials, work.group, first_channel, channels,
                               [&](int, int channel, const Moments<A>& moments) {
                                 means[channel] = moments.mean;
                                 rstds[channel] = rstd_of(moments.m2, view.group_pixels(),
                                                          statistics.unbiased, statistics.eps);
                                 if (work.slice == 0) {
                                   store(statistics.mean + table + channel, moments.mean);
                                   store(statistics.rstd + table + channel, rstds[channel]);
                                 }
                               });
  } else {
    for (int i = threadIdx.x; i < channels; i += kThreads) {
      means[i] = statistics.mean != nullptr ? load(statistics.mean + table + i) : A(0);
      rstds[i] = statistics.rstd != nullptr ? load(statistics.rstd + table + i) : A(1);
    }
  }
  __syncthreads();

  const int channel = kChannelsLast ? threadIdx.x % Shape::kLanes * V : 0;
  Cursor<kChannelsLast> cursor(view, slicing, work, threadIdx.x / Shape::kLanes * Shape::kPixels,
                               first_channel + channel);
  if (channel >= channels) return;
  const Vec<A, V> mean = of_channels<V, kChannelsLast>(means, channel);
  const Vec<A, V> rstd = of_channels<V, kChannelsLast>(rstds, channel);
  for (; cursor.inside(); cursor.advance()) {
    const At at = place(view, work, cursor, first_channel + channel);
    modulate<T, V, kChannelsLast>(load<V>(x + at.offset), modulation, at, view.channels, mean, rstd,
                                  y);
  }
}

// What the gradients are formed from, besides the maps.
template <typename T>
struct GradientInputs {
  const T* grad;
  const T* y;  // null where nothing is activated
  const T* x;
  const accumulate_t<T>* mean;
  const accumulate_t<T>* rstd;
};

template <typename T>
struct MapGradients {
  MapGradient<T> gamma, beta, weight;
};

// Gradients of the maps, and partial sums per channel: planes (2, ...) of gn and gn * xn, and of
// the gradients of gamma and beta where these are per channel.
template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && kChannelsLast ? 1 : 2)
    modulated_norm_backward_sums_kernel(RegionView view, Slicing slicing, GradientInputs<T> in,
                                        Modulation<T> modulation, MapGradients<T> out,
                                        Partials<accumulate_t<T>> sums,
                                        Partials<accumulate_t<T>> map_sums) {
  using A = accumulate_t<T>;
  using Shape = Threading<T, V, kChannelsLast>;
  constexpr int kSums = Shape::kSums;
  DYNAMIC_SHARED(A, shared);  // [4][kSums][thread]
  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * Shape::kChannels;
  const int channel = kChannelsLast ? threadIdx.x % Shape::kLanes * V : 0;
  Cursor<kChannelsLast> cursor(view, slicing, work, threadIdx.x / Shape::kLanes * Shape::kPixels,
                               first_channel + channel);
  const bool active = first_channel + channel < view.channels;
  if (!active) cursor.stop();
  Vec<A, V> mean, rstd;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int64_t c =
        work.group * view.channels + first_channel + channel + (kChannelsLast ? j : 0);
    mean[j] = active && in.mean != nullptr ? load(in.mean + c) : A(0);
    rstd[j] = active && in.rstd != nullptr ? load(in.rstd + c) : A(1);
  }

  A totals[4][kSums] = {};
  for (; cursor.inside(); cursor.advance()) {
    const At at = place(view, work, cursor, first_channel + channel);
    const Elements<A, V> e = gradient_elements<T, V, kChannelsLast>(
        in.grad, in.y, in.x, modulation, at, view.channels, mean, rstd, out.weight.wanted());
    out.gamma.put(at, e.gamma);
    out.beta.put(at, e.beta);
    out.weight.put(at, e.weight);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int i = kChannelsLast ? j : 0;
      totals[0][i] += e.gn[j];
      totals[1][i] += e.gn[j] * e.xn[j];
      totals[2][i] += e.gamma[j];
      totals[3][i] += e.beta[j];
    }
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) shared[(s * kSums + i) * kThreads + threadIdx.x] = totals[s][i];
  }
  __syncthreads();

  auto reduce = [&](const Partials<A>& to, int64_t group, int first) {
    if (to.planes == nullptr) return;
    const int64_t plane = to.plane(view);
    reduce_rows<SumPair<A>>(
        Shape::kChannels, kThreads / Shape::kLanes,
        [&](int row, int member) -> SumPair<A> {
          const int thread = member * Shape::kLanes + row / kSums;
          const int slot = (first * kSums + row % kSums) * kThreads + thread;
          return {shared[slot], shared[slot + kSums * kThreads]};
        },
        [&](int row, const SumPair<A>& value) {
          const int64_t c = first_channel + row;
          if (c >= view.channels) return;
          const int64_t index = to.index(view, group, 0, c) + work.slice;
          store(to.planes + index, value.first);
          store(to.planes + plane + index, value.second);
        });
  };
  reduce(sums, work.group, 0);
  reduce(map_sums, work.group, 2);
}

// The gradient of x. sums: partial results to merge (and, if `totals` is not null, to write), or
// with one slice and `divided` means that are given; no planes where statistics are constants.
template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    modulated_norm_backward_apply_kernel(RegionView view, Slicing slicing, GradientInputs<T> in,
                                         Modulation<T> modulation, Partials<accumulate_t<T>> sums,
                                         bool divided, bool unbiased, T* grad_x) {
  using A = accumulate_t<T>;
  using Shape = Threading<T, V, kChannelsLast>;
  __shared__ A tables[4][Shape::kChannels];  // mean, rstd, mean of gn, mean of gn * xn
  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * Shape::kChannels;
  const int channels =
      static_cast<int>(min(static_cast<int64_t>(Shape::kChannels), view.channels - first_channel));
  const int64_t table = work.group * view.channels + first_channel;
  for (int i = threadIdx.x; i < channels; i += kThreads) {
    tables[0][i] = in.mean != nullptr ? load(in.mean + table + i) : A(0);
    tables[1][i] = in.rstd != nullptr ? load(in.rstd + table + i) : A(1);
    if (sums.planes == nullptr) tables[2][i] = tables[3][i] = A(0);
  }
  if (sums.planes != nullptr) {
    const int64_t count = view.group_pixels();
    const A size = divided ? A(1) : static_cast<A>(count);
    const A product_size = divided ? A(1) : static_cast<A>(count > unbiased ? count - unbiased : 1);
    combine_slices<SumPair<A>>(view, sums, work.group, first_channel, channels,
                               [&](int, int channel, const SumPair<A>& value) {
                                 tables[2][channel] = value.first / size;
                                 tables[3][channel] = value.second / product_size;
                               });
  }
  __syncthreads();

  const int channel = kChannelsLast ? threadIdx.x % Shape::kLanes * V : 0;
  Cursor<kChannelsLast> cursor(view, slicing, work, threadIdx.x / Shape::kLanes * Shape::kPixels,
                               first_channel + channel);
  if (channel >= channels) return;
  const Vec<A, V> mean = of_channels<V, kChannelsLast>(tables[0], channel);
  const Vec<A, V> rstd = of_channels<V, kChannelsLast>(tables[1], channel);
  const Vec<A, V> sum = of_channels<V, kChannelsLast>(tables[2], channel);
  const Vec<A, V> product = of_channels<V, kChannelsLast>(tables[3], channel);
  for (; cursor.inside(); cursor.advance()) {
    const At at = place(view, work, cursor, first_channel + channel);
    const Elements<A, V> e = gradient_elements<T, V, kChannelsLast>(
        in.grad, in.y, in.x, modulation, at, view.channels, mean, rstd, false);
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result[j] = from_accumulate<T>(rstd[j] * (e.gn[j] - sum[j] - e.xn[j] * product[j]));
    }
    store<V>(grad_x + at.offset, result);
  }
}

// ---- statistics per pixel -----------------------------------------------------------------------

// How a block's threads lie on its pixels and the channels: `slots` across pixels (V pixels each if
// contiguous), the others across channels (V channels each in channels last).
struct PixelTiling {
  int64_t images, channels, pixels;
  int64_t tiles;  // of an image if contiguous, of the batch in channels last
  int slots;
  bool centred, unbiased;
  double eps;

  __device__ int splits() const { return kThreads / slots; }
};

template <int V, bool kChannelsLast>
struct PixelPlace {
  int slot, split;
  int64_t image, index, offset;  // of the first pixel, at channel 0
  bool inside;

  __device__ explicit PixelPlace(const PixelTiling& tiling) {
    if (kChannelsLast) {
      const int splits = tiling.splits();
      split = threadIdx.x % splits;
      slot = threadIdx.x / splits;
      index = static_cast<int64_t>(blockIdx.x) * tiling.slots + slot;
      inside = index < tiling.images * tiling.pixels;
      image = inside ? index / tiling.pixels : 0;
      offset = index * tiling.channels;
    } else {
      slot = threadIdx.x % tiling.slots;
      split = threadIdx.x / tiling.slots;
      image = blockIdx.x / tiling.tiles;
      const int64_t pixel = (blockIdx.x % tiling.tiles * tiling.slots + slot) * V;
      inside = pixel < tiling.pixels;
      index = image * tiling.pixels + pixel;
      offset = image * tiling.channels * tiling.pixels + pixel;
    }
  }
  __device__ At at(const PixelTiling& tiling, int64_t channel) const {
    return {image, channel, index, offset + (kChannelsLast ? channel : channel * tiling.pixels)};
  }
  // Calls body(channel) for this thread's channels, the first of V in channels last.
  template <typename Body>
  __device__ __forceinline__ void for_each_channel(const PixelTiling& tiling, Body body) const {
    if (!inside) return;
    const int step = tiling.splits() * (kChannelsLast ? V : 1);
    for (int64_t c = split * (kChannelsLast ? V : 1); c < tiling.channels; c += step) body(c);
  }
};

// Sums of every pixel over the splits of its channels, N kinds of kOwn pixels at once; each thread
// gets those of its pixels. scratch: N * kOwn * kThreads values, free for reuse on return.
template <int N, int kOwn, typename A>
__device__ __forceinline__ void sum_over_splits(A (&values)[N][kOwn], int slot, int split,
                                                int slots, A* scratch) {
  const int own = split * slots + slot;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) scratch[(n * kOwn + j) * kThreads + own] = values[n][j];
  }
  for (int half = kThreads / slots / 2; half > 0; half /= 2) {
    __syncthreads();
    if (split >= half) continue;
#pragma unroll
    for (int i = 0; i < N * kOwn; ++i) {
      scratch[i * kThreads + own] += scratch[i * kThreads + own + half * slots];
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) values[n][j] = scratch[(n * kOwn + j) * kThreads + slot];
  }
  __syncthreads();
}

// The values that belong to V elements of a row: of their own pixels, or of the one that they
// share.
template <int V, bool kChannelsLast, int kOwn, typename A>
__device__ __forceinline__ Vec<A, V> of_pixels(const A (&values)[kOwn]) {
  Vec<A, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) result[j] = values[kChannelsLast ? 0 : j];
  return result;
}

template <int V, bool kChannelsLast, int kOwn, typename A>
__device__ __forceinline__ void store_pixels(A* map, const PixelPlace<V, kChannelsLast>& where,
                                             const A (&values)[kOwn]) {
  Vec<A, kOwn> result;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) result[j] = values[j];
  store<kOwn>(map + where.index, result);
}

// kKeep: the pixels stay in shared memory between the sweeps over their channels.
template <typename T, int V, bool kChannelsLast, bool kKeep>
__global__ void __launch_bounds__(kThreads, 3)
    modulated_norm_pixel_kernel(PixelTiling tiling, const T* x, accumulate_t<T>* mean,
                                accumulate_t<T>* rstd, Modulation<T, false> modulation, T* y) {
  using A = accumulate_t<T>;
  constexpr int kOwn = kChannelsLast ? 1 : V;
  DYNAMIC_SHARED(A, shared);  // 2 * kOwn * kThreads of scratch, then V per thread and channel
  T* const kept = reinterpret_cast<T*>(shared + 2 * kOwn * kThreads);
  const PixelPlace<V, kChannelsLast> where(tiling);
  const int per_sweep = tiling.splits() * (kChannelsLast ? V : 1);
  auto slot_of = [&](int64_t channel) {
    return (channel / per_sweep * kThreads + threadIdx.x) * V;
  };
  auto value_at = [&](int64_t channel) -> Vec<T, V> {
    if constexpr (kKeep) {
      return *reinterpret_cast<const Vec<T, V>*>(kept + slot_of(channel));
    } else {
      return load<V>(x + where.at(tiling, channel).offset);
    }
  };

  const A inverse = A(1) / static_cast<A>(tiling.channels);
  A sums[1][kOwn] = {};
  if (tiling.centred || kKeep) {
    where.for_each_channel(tiling, [&](int64_t c) {
      const Vec<T, V> value = load<V>(x + where.at(tiling, c).offset);
      if constexpr (kKeep) *reinterpret_cast<Vec<T, V>*>(kept + slot_of(c)) = value;
#pragma unroll
      for (int j = 0; j < V; ++j) sums[0][kChannelsLast ? 0 : j] += to_accumulate(value[j]);
    });
  }
  A centre[kOwn] = {};
  if (tiling.centred) {
    sum_over_splits(sums, where.slot, where.split, tiling.slots, shared);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) centre[j] = sums[0][j] * inverse;
  }
  A moments[2][kOwn] = {};  // deviations, which rounding leaves in the mean, and their squares
  where.for_each_channel(tiling, [&](int64_t c) {
    const Vec<T, V> value = value_at(c);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int i = kChannelsLast ? 0 : j;
      const A deviation = to_accumulate(value[j]) - centre[i];
      moments[0][i] += deviation;
      moments[1][i] += deviation * deviation;
    }
  });
  sum_over_splits(moments, where.slot, where.split, tiling.slots, shared);
  A scale[kOwn];
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    if (tiling.centred) {
      const A correction = moments[0][j] * inverse;
      moments[1][j] -= correction * moments[0][j];
      centre[j] += correction;
    }
    const A squares = moments[1][j] < A(0) ? A(0) : moments[1][j];  // keeps a NaN
    scale[j] = rstd_of(squares, tiling.channels, tiling.unbiased, tiling.eps);
  }
  if (where.split == 0 && where.inside) {
    if (tiling.centred) store_pixels(mean, where, centre);
    store_pixels(rstd, where, scale);
  }
  const Vec<A, V> means = of_pixels<V, kChannelsLast>(centre);
  const Vec<A, V> rstds = of_pixels<V, kChannelsLast>(scale);
  where.for_each_channel(tiling, [&](int64_t c) {
    modulate<T, V, kChannelsLast>(value_at(c), modulation, where.at(tiling, c), tiling.channels,
                                  means, rstds, y);
  });
}

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 1 : 2)
    modulated_norm_pixel_backward_kernel(PixelTiling tiling, GradientInputs<T> in,
                                         Modulation<T, false> modulation, MapGradients<T> out,
                                         T* grad_x) {
  using A = accumulate_t<T>;
  constexpr int kOwn = kChannelsLast ? 1 : V;
  DYNAMIC_SHARED(A, shared);  // 5 * kOwn * kThreads
  const PixelPlace<V, kChannelsLast> where(tiling);
  A centre[kOwn] = {}, scale[kOwn] = {};
  if (where.inside) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      if (tiling.centred) centre[j] = load(in.mean + where.index + j);
      scale[j] = load(in.rstd + where.index + j);
    }
  }
  const Vec<A, V> means = of_pixels<V, kChannelsLast>(centre);
  const Vec<A, V> rstds = of_pixels<V, kChannelsLast>(scale);

  A sums[5][kOwn] = {};  // of gn, gn * xn and the gradients of gamma, beta and weight
  const bool weight_gradient = out.weight.wanted();
  where.for_each_channel(tiling, [&](int64_t c) {
    const At at = where.at(tiling, c);
    const Elements<A, V> e = gradient_elements<T, V, kChannelsLast>(
        in.grad, in.y, in.x, modulation, at, tiling.channels, means, rstds, weight_gradient);
    out.gamma.put(at, e.gamma);
    out.beta.put(at, e.beta);
    out.weight.put(at, e.weight);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int i = kChannelsLast ? 0 : j;
      sums[0][i] += e.gn[j];
      sums[1][i] += e.gn[j] * e.xn[j];
      sums[2][i] += e.gamma[j];
      sums[3][i] += e.beta[j];
      if (weight_gradient) sums[4][i] += e.weight[j];
    }
  });
  sum_over_splits(sums, where.slot, where.split, tiling.slots, shared);
  if (where.split == 0 && where.inside) {
    if (out.gamma.pixels != nullptr) store_pixels(out.gamma.pixels, where, sums[2]);
    if (out.beta.pixels != nullptr) store_pixels(out.beta.pixels, where, sums[3]);
    if (out.weight.pixels != nullptr) store_pixels(out.weight.pixels, where, sums[4]);
  }
  const A size = static_cast<A>(tiling.channels);
  const A product_size =
      tiling.channels > 1 ? static_cast<A>(tiling.channels - tiling.unbiased) : A(1);
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    sums[0][j] = tiling.centred ? sums[0][j] / size : A(0);
    sums[1][j] /= product_size;
  }
  const Vec<A, V> sum = of_pixels<V, kChannelsLast>(sums[0]);
  const Vec<A, V> product = of_pixels<V, kChannelsLast>(sums[1]);
  where.for_each_channel(tiling, [&](int64_t c) {
    const At at = where.at(tiling, c);
    const Elements<A, V> e = gradient_elements<T, V, kChannelsLast>(
        in.grad, in.y, in.x, modulation, at, tiling.channels, means, rstds, false);
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result[j] = from_accumulate<T>(rstds[j] * (e.gn[j] - sum[j] - e.xn[j] * product[j]));
    }
    store<V>(grad_x + at.offset, result);
  });
}

// ---- sums of a gradient that was written for every element --------------------------------------

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

// ---- host ---------------------------------------------------------------------------------------

enum class Statistics { kNone, kInstance, kBatch, kPosition, kRms };

Statistics statistics_of(const std::string& name) {
  if (name == "none") return Statistics::kNone;
  if (name == "instance") return Statistics::kInstance;
  if (name == "batch") return Statistics::kBatch;
  if (name == "position") return Statistics::kPosition;
  expects(name == "rms", "statistics: expected none, instance, batch, position or rms");
  return Statistics::kRms;
}

Gain gain_of(const std::string& name) {
  if (name == "one_plus") return Gain::kOnePlus;
  if (name == "plain") return Gain::kPlain;
  expects(name == "sigmoid", "gain: expected one_plus, plain or sigmoid");
  return Gain::kSigmoid;
}

struct Problem {
  RegionView view;
  int64_t height, width;
  bool channels_last;
  Statistics statistics;
  bool given;

  bool per_pixel() const {
    return statistics == Statistics::kPosition || statistics == Statistics::kRms;
  }
  bool per_channel() const { return !given && !per_pixel() && statistics != Statistics::kNone; }
};

Problem describe(const Tensor& x, const std::string& statistics, bool given) {
  Problem problem{};
  problem.channels_last = is_channels_last(x);
  problem.statistics = statistics_of(statistics);
  problem.given = given;
  problem.height = x.size(2);
  problem.width = x.size(3);
  RegionView& view = problem.view;
  view.images = x.size(0);
  view.channels = x.size(1);
  view.pixels = x.size(2) * x.size(3);
  view.regions = 1;
  expects(view.channels > 0 && view.pixels > 0, "x: expected C, H and W of at least 1");
  expects(!given || problem.statistics == Statistics::kBatch,
          "mean, rstd: expected only for the statistics of the batch");
  const bool per_image = problem.statistics == Statistics::kInstance;
  view.groups = per_image ? view.images : 1;
  view.images_per_group = per_image ? 1 : view.images;
  return problem;
}

template <typename T>
Map<T, true> map_of(const Problem& problem, const Tensor& x, const MaybeTensor& tensor,
                    const MaybeTensor& index, const char* message) {
  Map<T, true> map;
  if (!tensor.has_value()) return map;
  using A = accumulate_t<T>;
  const RegionView& view = problem.view;
  if (index.has_value()) {
    expects(!problem.per_pixel() && tensor->dim() == 2 && tensor->size(0) > 0 &&
                tensor->size(1) == view.channels && tensor->scalar_type() == accumulate_type(x) &&
                (!problem.channels_last || tensor->is_contiguous()),
            message);
    expects_plain(*index, ScalarType::Int, view.images * view.pixels,
                  "index: expected contiguous int32 (N, H, W)");
    map.extent = Extent::kTable;
    map.values = data<const A>(*tensor);
    map.index = data<const int32_t>(*index);
    map.row_stride = tensor->stride(0);
    map.column_stride = tensor->stride(1);
    return map;
  }
  if (tensor->dim() == 2) {
    expects_plain(*tensor, accumulate_type(x), view.images * view.channels, message);
    map.extent = Extent::kChannel;
    map.values = data<const A>(*tensor);
  } else if (tensor->size(1) == x.size(1)) {
    expects(tensor->scalar_type() == x.scalar_type() && tensor->numel() == x.numel() &&
                is_channels_last(*tensor) == problem.channels_last,
            message);
    map.extent = Extent::kElement;
    map.elements = data<const T>(*tensor);
  } else {
    expects_plain(*tensor, accumulate_type(x), view.images * view.pixels, message);
    map.extent = Extent::kPixel;
    map.values = data<const A>(*tensor);
  }
  return map;
}

template <typename T>
Modulation<T> modulation_of(const Problem& problem, const Tensor& x, const MaybeTensor& gamma,
                            const MaybeTensor& beta, const MaybeTensor& weight,
                            const MaybeTensor& index, const std::string& gain, double slope) {
  return {
      map_of<T>(problem, x, gamma, index, "gamma: expected (N, C), (N, 1, H, W), x's form or rows"),
      map_of<T>(problem, x, beta, index, "beta: expected (N, C), (N, 1, H, W), x's form or rows"),
      map_of<T>(problem, x, weight, std::nullopt, "weight: expected (N, 1, H, W) or x's form")
          .without_tables(),
      gain_of(gain), static_cast<accumulate_t<T>>(slope)};
}

// Whether every tensor can be read and written in accesses of 128 bits of x's elements.
template <typename T, typename... Others>
bool is_wide(const Problem& problem, const Modulation<T>& m, const T* x, const Others*... others) {
  const int64_t run = problem.channels_last ? problem.view.channels : problem.view.pixels;
  return vector_width(run, x, m.gamma.elements, m.gamma.values, m.beta.elements, m.beta.values,
                      m.weight.elements, m.weight.values, m.gamma.index,
                      others...) == kMaxAccessBytes / static_cast<int>(sizeof(T));
}

// Slices of pixels long enough to pay for merging the partial results, short enough to fill a
// large device.
template <typename Shape>
Slicing slicing_of(const RegionView& view) {
  const int64_t tiles = (view.channels + Shape::kChannels - 1) / Shape::kChannels;
  const int64_t step = static_cast<int64_t>(kThreads / Shape::kLanes) * Shape::kPixels;
  const int64_t by_work = view.group_pixels() / (4 * step);
  const int64_t by_blocks = 4096 / std::max<int64_t>(1, tiles * view.groups);
  return Slicing(view, tiles, step, std::min<int64_t>({by_work, by_blocks, kMaxSlices}));
}

// Threads across pixels: enough for whole 32-byte sectors, and no more than there are pixels.
template <typename T, int V, bool kChannelsLast>
PixelTiling tiling_of(const Problem& problem, bool unbiased, double eps) {
  const RegionView& view = problem.view;
  int slots;
  if (kChannelsLast) {
    int splits = 1;
    while (splits < kWarpSize && splits * V < view.channels) splits *= 2;
    slots = kThreads / splits;
  } else {
    slots = 32 / V > 1 ? 32 / V : 1;
    while (slots > 1 && (slots / 2) * V >= view.pixels) slots /= 2;
  }
  const int64_t tiles = kChannelsLast ? (view.images * view.pixels + slots - 1) / slots
                                      : (view.pixels + slots * V - 1) / (slots * V);
  return {view.images, view.channels,
          view.pixels, tiles,
          slots,       problem.statistics == Statistics::kPosition,
          unbiased,    eps};
}

dim3 grid_of_tiles(const Problem& problem, const PixelTiling& tiling) {
  return grid_of(problem.channels_last ? tiling.tiles : problem.view.images * tiling.tiles);
}

std::tuple<Tensor, Tensor, Tensor> modulated_norm_cuda(
    const Tensor& x, const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& weight,
    const MaybeTensor& mean, const MaybeTensor& rstd, const MaybeTensor& index,
    const std::string& statistics, bool unbiased, double eps, const std::string& gain,
    double slope) {
  const DeviceGuard guard(x);
  const Problem problem = describe(x, statistics, mean.has_value());
  const RegionView& view = problem.view;
  const ScalarType type = accumulate_type(x);
  expects(gamma.has_value() == beta.has_value(), "gamma, beta: expected both or none");
  expects(mean.has_value() == rstd.has_value(), "mean, rstd: expected both or none");
  expects_plain(mean, type, view.channels, "mean: expected contiguous (1, C) of accumulate type");
  expects_plain(rstd, type, view.channels, "rstd: expected contiguous (1, C) of accumulate type");
  Tensor y = torch::stable::empty_like(x);
  const auto new_statistics = [&](bool wanted) {
    if (problem.per_pixel() && wanted)
      return new_tensor(x, {view.images, 1, problem.height, problem.width}, type);
    if (problem.per_channel()) return new_tensor(x, {view.groups, view.channels}, type);
    return new_tensor(x, {0}, type);
  };
  Tensor means = new_statistics(problem.statistics != Statistics::kRms);
  Tensor rstds = new_statistics(true);
  if (x.numel() == 0 && !problem.per_channel()) return {y, means, rstds};
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto modulation = modulation_of<T>(problem, x, gamma, beta, weight, index, gain, slope);
    const T* in = data<const T>(x);
    T* out = data<T>(y);
    const bool wide =
        is_wide(problem, modulation, in, out, problem.per_pixel() ? data<A>(rstds) : nullptr);
    dispatch_access<T>(wide, problem.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      constexpr bool kChannelsLast = decltype(format)::value;
      if (problem.per_pixel()) {
        const auto tiling = tiling_of<T, V, kChannelsLast>(problem, unbiased, eps);
        const int splits = kThreads / tiling.slots;
        const int64_t sweep = splits * (kChannelsLast ? V : 1);
        const size_t scratch = sizeof(A) * 2 * (kChannelsLast ? 1 : V) * kThreads;
        const size_t kept = (view.channels + sweep - 1) / sweep * kThreads * V * sizeof(T);
        auto run = [&](auto keep) {
          constexpr bool kKeep = decltype(keep)::value;
          launch(modulated_norm_pixel_kernel<T, V, kChannelsLast, kKeep>,
                 grid_of_tiles(problem, tiling), dim3(kThreads), scratch + (kKeep ? kept : 0),
                 current_stream(x), tiling, in, data<A>(means), data<A>(rstds),
                 modulation.without_tables(), out);
        };
        if (scratch + kept <= 48 * 1024) {
          run(std::true_type{});
        } else {
          run(std::false_type{});
        }
        return;
      }
      ChannelStatistics<A> from{{}, nullptr, nullptr, unbiased, eps};
      PartialsBuffer<A> buffer;
      if (problem.per_channel()) {
        buffer = region_partials<T>(view, x, kChannelsLast, in, nullptr, nullptr, nullptr, nullptr);
        from.partials = buffer.partials;
        from.mean = data<A>(means);
        from.rstd = data<A>(rstds);
      } else if (problem.given) {
        from.mean = const_cast<A*>(data<const A>(mean));  // read only, as no partials are given
        from.rstd = const_cast<A*>(data<const A>(rstd));
      }
      const Slicing slicing = slicing_of<Threading<T, V, kChannelsLast>>(view);
      launch(modulated_norm_apply_kernel<T, V, kChannelsLast>, slicing.grid(view), dim3(kThreads),
             0, current_stream(x), view, slicing, in, out, from, modulation);
    });
  });
  return {y, means, rstds};
}

// The tensors of a backward pass; those that a half of it does not use stay undefined.
struct BackwardTensors {
  Tensor grad;
  MaybeTensor y;
  Tensor x;
  MaybeTensor gamma, beta, weight, mean, rstd, index, mean_sums;
};

struct BackwardOptions {
  std::string statistics;
  bool given, unbiased;
  std::string gain;
  double slope;
  bool weight_gradient, wants_maps, wants_grad_x;
};

// A map's gradient on its way to the tensor that is returned.
template <typename T>
struct PendingGradient {
  MapGradient<T> to;
  Tensor elements;  // of the accumulate type, to be summed into `sums`
  accumulate_t<T>* sums = nullptr;
  Extent extent = Extent::kAbsent;

  // in_walk: the extent whose sums the walk forms itself.
  template <bool kTables>
  PendingGradient(const Tensor& x, const Map<T, kTables>& map, const Tensor& gradient, bool wanted,
                  Extent in_walk)
      : elements(gradient) {
    using A = accumulate_t<T>;
    if (!wanted || map.extent == Extent::kAbsent) return;
    if (map.extent == Extent::kElement || map.extent == Extent::kTable) {
      to.elements = data<T>(gradient);  // of a table every element's share of its row
    } else if (map.extent != in_walk) {
      extent = map.extent;
      elements = new_tensor(x, {x.numel()}, accumulate_type(x));
      to.wide = data<A>(elements);
      sums = data<A>(gradient);
    } else if (in_walk == Extent::kPixel) {
      to.pixels = data<A>(gradient);
    }
  }

  void sum(const Problem& problem, const Tensor& x) const {
    using A = accumulate_t<T>;
    if (sums == nullptr) return;
    const RegionView& view = problem.view;
    const int64_t all = view.images * view.pixels;
    if (extent == Extent::kPixel) {
      launch(modulated_norm_channel_sum_kernel<A>, grid_of((all + kThreads - 1) / kThreads),
             dim3(kThreads), 0, current_stream(x), to.wide, sums, view.channels, view.pixels, all,
             problem.channels_last);
    } else {
      launch(modulated_norm_plane_sum_kernel<A>, grid_of(view.images * view.channels),
             dim3(kThreads), 0, current_stream(x), to.wide, sums, view.channels, view.pixels,
             problem.channels_last);
    }
  }
};

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

// Runs the sums (with the gradients of the maps), the gradient of x, or both.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const BackwardTensors& t,
                                                            const BackwardOptions& options) {
  const DeviceGuard guard(t.x);
  Problem problem = describe(t.x, options.statistics, options.given);
  RegionView& view = problem.view;
  const ScalarType type = accumulate_type(t.x);
  const int64_t C = view.channels, R = view.groups;
  const auto like_x = [&](const Tensor& tensor) {
    return tensor.scalar_type() == t.x.scalar_type() && tensor.numel() == t.x.numel() &&
           is_channels_last(tensor) == problem.channels_last;
  };
  expects(like_x(t.grad), "grad: expected the dtype, shape and memory format of x");
  expects(!t.y.has_value() || like_x(*t.y), "y: expected the dtype, shape and memory format of x");
  const bool normalised = problem.given || problem.statistics != Statistics::kNone;
  const bool centred = normalised && problem.statistics != Statistics::kRms;
  const int64_t size = problem.per_pixel() ? view.images * view.pixels : R * C;
  expects(!centred || t.mean.has_value(), "mean: expected a tensor");
  expects(!normalised || t.rstd.has_value(), "rstd: expected a tensor");
  if (centred) expects_plain(t.mean, type, size, "mean: expected what the forward pass gave");
  if (normalised) expects_plain(t.rstd, type, size, "rstd: expected what the forward pass gave");
  expects_plain(t.mean_sums, type, 2 * R * C, "mean_sums: expected contiguous (2, R, C)");
  expects(options.wants_maps || t.mean_sums.has_value(), "mean_sums: expected a tensor");

  const auto nothing = [&] { return new_tensor(t.x, {0}, type); };  // outputs may not alias
  const auto gradient_of = [&](const MaybeTensor& map, bool wanted) {
    return map.has_value() && options.wants_maps && wanted ? torch::stable::empty_like(*map)
                                                           : nothing();
  };
  const MaybeTensor of_maps = t.index.has_value() && t.gamma.has_value() ? t.x : t.gamma;
  Tensor grad_gamma = gradient_of(of_maps, true);
  Tensor grad_beta = gradient_of(of_maps, true);
  Tensor grad_weight = gradient_of(t.weight, options.weight_gradient);
  Tensor grad_x = options.wants_grad_x ? torch::stable::empty_like(t.x) : nothing();
  const bool wants_sums = problem.per_channel() && options.wants_maps && !options.wants_grad_x;
  Tensor sums = wants_sums ? new_tensor(t.x, {2, R, C}, type) : nothing();
  if (t.x.numel() == 0 && !wants_sums) return {grad_x, grad_gamma, grad_beta, grad_weight, sums};

  // The sums of maps per channel are of each image; a batch's walk goes image by image only if
  // every image is a group of its own.
  dispatch_floating(t.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto modulation = modulation_of<T>(problem, t.x, t.gamma, t.beta, t.weight, t.index,
                                             options.gain, options.slope);
    const GradientInputs<T> in{data<const T>(t.grad), data<const T>(t.y), data<const T>(t.x),
                               centred ? data<const A>(t.mean) : nullptr,
                               normalised ? data<const A>(t.rstd) : nullptr};
    const Extent in_walk = problem.per_pixel()          ? Extent::kPixel
                           : view.images_per_group == 1 ? Extent::kChannel
                                                        : Extent::kAbsent;
    const bool maps = options.wants_maps;
    const PendingGradient<T> gamma(t.x, modulation.gamma, grad_gamma, maps, in_walk);
    const PendingGradient<T> beta(t.x, modulation.gamma, grad_beta, maps, in_walk);
    const PendingGradient<T> weight(t.x, modulation.weight, grad_weight,
                                    maps && options.weight_gradient, in_walk);
    const MapGradients<T> out{gamma.to, beta.to, weight.to};
    T* to = data<T>(grad_x);
    const bool wide =
        is_wide(problem, modulation, in.x, in.grad, in.y, to, out.gamma.elements, out.gamma.wide,
                out.gamma.pixels, out.beta.elements, out.beta.wide, out.beta.pixels,
                out.weight.elements, out.weight.wide, out.weight.pixels);
    dispatch_access<T>(wide, problem.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      constexpr bool kChannelsLast = decltype(format)::value;
      if (problem.per_pixel()) {
        const auto tiling = tiling_of<T, V, kChannelsLast>(problem, options.unbiased, 0.0);
        launch(modulated_norm_pixel_backward_kernel<T, V, kChannelsLast>,
               grid_of_tiles(problem, tiling), dim3(kThreads),
               sizeof(A) * 5 * (kChannelsLast ? 1 : V) * kThreads, current_stream(t.x), tiling, in,
               modulation.without_tables(), out, to);
        return;
      }
      using Shape = Threading<T, V, kChannelsLast>;
      const Slicing slicing = slicing_of<Shape>(view);
      Tensor planes = nothing(), map_planes = nothing();
      Partials<A> partials{nullptr, nullptr, slicing.slices}, map_partials = partials;
      const int64_t results = 2 * R * C;
      const bool channel_map =
          maps && modulation.gamma.extent == Extent::kChannel && in_walk == Extent::kChannel;
      const dim3 total_grid = grid_of((results + kThreads - 1) / kThreads);
      if (maps) {
        if (problem.per_channel()) {
          planes = new_tensor(t.x, {results * slicing.slices}, type);
          partials.planes = data<A>(planes);
        }
        if (channel_map) {
          map_planes = new_tensor(t.x, {results * slicing.slices}, type);
          map_partials.planes = data<A>(map_planes);
        }
        launch(modulated_norm_backward_sums_kernel<T, V, kChannelsLast>, slicing.grid(view),
               dim3(kThreads), sizeof(A) * 4 * Shape::kSums * kThreads, current_stream(t.x), view,
               slicing, in, modulation, out, partials, map_partials);
        if (channel_map) {
          const dim3 half = grid_of((results / 2 + kThreads - 1) / kThreads);
          for (int i = 0; i < 2; ++i)
            launch(modulated_norm_total_kernel<A>, half, dim3(kThreads), 0, current_stream(t.x),
                   map_partials.planes + i * results / 2 * slicing.slices, slicing.slices,
                   results / 2, data<A>(i == 0 ? grad_gamma : grad_beta));
        }
        if (wants_sums)
          launch(modulated_norm_total_kernel<A>, total_grid, dim3(kThreads), 0, current_stream(t.x),
                 partials.planes, slicing.slices, results, data<A>(sums));
      }
      if (!options.wants_grad_x) return;
      const bool divided = t.mean_sums.has_value();
      if (divided) partials = {const_cast<A*>(data<const A>(t.mean_sums)), nullptr, 1};
      launch(modulated_norm_backward_apply_kernel<T, V, kChannelsLast>, slicing.grid(view),
             dim3(kThreads), 0, current_stream(t.x), view, slicing, in, modulation, partials,
             divided, options.unbiased, to);
    });
    for (const auto* pending : {&gamma, &beta, &weight}) pending->sum(problem, t.x);
  });
  return {grad_x, grad_gamma, grad_beta, grad_weight, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_norm_backward_cuda(
    const Tensor& grad, const MaybeTensor& y, const Tensor& x, const MaybeTensor& gamma,
    const MaybeTensor& beta, const MaybeTensor& weight, const MaybeTensor& mean,
    const MaybeTensor& rstd, const MaybeTensor& index, const std::string& statistics, bool given,
    bool unbiased, const std::string& gain, double slope, bool weight_gradient) {
  auto [grad_x, grad_gamma, grad_beta, grad_weight, sums] =
      backward({grad, y, x, gamma, beta, weight, mean, rstd, index, std::nullopt},
               {statistics, given, unbiased, gain, slope, weight_gradient, true, true});
  return {grad_x, grad_gamma, grad_beta, grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_norm_backward_sums_cuda(
    const Tensor& grad, const MaybeTensor& y, const Tensor& x, const MaybeTensor& gamma,
    const MaybeTensor& beta, const MaybeTensor& weight, const Tensor& mean, const Tensor& rstd,
    const MaybeTensor& index, const std::string& gain, double slope, bool weight_gradient) {
  auto [grad_x, grad_gamma, grad_beta, grad_weight, sums] =
      backward({grad, y, x, gamma, beta, weight, mean, rstd, index, std::nullopt},
               {"batch", false, false, gain, slope, weight_gradient, true, false});
  return {sums, grad_gamma, grad_beta, grad_weight};
}

Tensor modulated_norm_backward_apply_cuda(const Tensor& grad, const MaybeTensor& y, const Tensor& x,
                                          const MaybeTensor& gamma, const MaybeTensor& weight,
                                          const Tensor& mean, const Tensor& rstd,
                                          const MaybeTensor& index, const Tensor& mean_sums,
                                          const std::string& gain, double slope) {
  return std::get<0>(
      backward({grad, y, x, gamma, std::nullopt, weight, mean, rstd, index, mean_sums},
               {"batch", false, false, gain, slope, false, false, true}));
}

// ---- rows of a table ----------------------------------------------------------------------------

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

Tensor segmented_sum_cuda(const Tensor& values, const Tensor& index, const MaybeTensor& order,
                          const MaybeTensor& offsets, int64_t rows) {
  const DeviceGuard guard(values);
  const bool channels_last = is_channels_last(values);
  const int64_t C = values.size(1), P = values.size(2) * values.size(3);
  const int64_t all = values.size(0) * P;
  expects_plain(index, ScalarType::Int, all, "index: expected contiguous int32 (N, H, W)");
  expects(rows > 0 && all < (int64_t{1} << 31), "rows: expected at least 1, of 2^31 pixels");
  expects(order.has_value() && offsets.has_value(), "order, offsets: expected the sorted pixels");
  expects_plain(order, ScalarType::Int, all, "order: expected contiguous int32 (N * H * W)");
  expects_plain(offsets, ScalarType::Int, rows + 1,
                "offsets: expected contiguous int32 (rows + 1)");
  Tensor sums = new_tensor(values, {rows, C}, accumulate_type(values));
  dispatch_floating(values.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const int32_t* sorted = data<const int32_t>(*order);
    const int32_t* first = data<const int32_t>(*offsets);
    if (channels_last) {
      const int64_t tiles = (C + kWarpSize - 1) / kWarpSize;
      launch(segmented_sum_channels_last_kernel<T>, grid_of(rows * tiles), dim3(kThreads), 0,
             current_stream(values), data<const T>(values), sorted, first, tiles, C, data<A>(sums));
    } else {
      launch(segmented_sum_kernel<T>, grid_of((rows * C + kSegmentWarps - 1) / kSegmentWarps),
             dim3(kThreads), 0, current_stream(values), data<const T>(values), sorted, first,
             rows * C, C, P, data<A>(sums));
    }
  });
  return sums;
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  m.impl("modulated_norm", TORCH_BOX(&modulated_norm_cuda));
  m.impl("modulated_norm_backward", TORCH_BOX(&modulated_norm_backward_cuda));
  m.impl("modulated_norm_backward_sums", TORCH_BOX(&modulated_norm_backward_sums_cuda));
  m.impl("modulated_norm_backward_apply", TORCH_BOX(&modulated_norm_backward_apply_cuda));
  m.impl("segmented_sum", TORCH_BOX(&segmented_sum_cuda));
}

}  // namespace torchext::cuda
