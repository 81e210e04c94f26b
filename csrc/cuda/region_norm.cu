// Region normalisation: "Region Normalization for Image Inpainting" (AAAI 2020).
//
//   y = (x - mean_k) * rstd_k * weight_k + bias_k,   k = the pixel's region
//
// Passes over memory (T = one tensor) and launches, after region_labels:
//   forward     3T in 2: moments of slices (region_statistics.cuh) read T; apply reads T, writes T.
//               Every block of the second first merges its channels' partial results itself.
//   backward    5T in 2: partial sums read 2T; apply reads 2T, writes T. With a spatial affine 5T
//               in 3: its sums also run over channels, so a tile kernel forms both kinds of sums
//               in one pass and a small kernel adds up the partial results.
// The floor is the same unless a whole channel stays in the cache between the passes.
//
// Launch: apply kernels take 128 threads per tile of channels (8 when contiguous, 64 bytes in
// channels last) and slice of pixels; coefficients of every region and channel of the tile lie in
// shared memory.
#undef NDEBUG  // region_labels checks values by a device assertion, in release builds too
#include <cassert>
#include <cmath>
#include <tuple>

#include "region_statistics.cuh"

namespace torchext::cuda {
namespace {

constexpr int kApplyThreads = 128;
constexpr int kApplyChannels = 8;  // of a tile in contiguous tensors

// ---- labels -------------------------------------------------------------------------------------

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

// ---- forward ------------------------------------------------------------------------------------

template <typename A>
struct Affine {
  const A* weight;  // (regions, channels), or null
  const A* bias;
  const A* spatial_weight;  // (images, 1, height, width), or null
  const A* spatial_bias;
};

// Where the statistics come from (partial results, or mean and rstd) and go to.
template <typename A>
struct Statistics {
  Partials<A> partials;  // planes null: mean and rstd are given
  int64_t* count;
  A* mean;
  A* rstd;
  double eps;
  bool scale_eps;
};

// Normalising a pixel: (value - mean) * scale + shift.
enum Coefficient { kMean, kScale, kShift, kForwardCoefficients };
// Its gradient: scale * ((grad - offset) - (value - mean) * slope).
enum BackwardCoefficient { kGradMean, kGradScale, kOffset, kSlope, kBackwardCoefficients };

// The coefficients of a tile of channels, in shared memory: [coefficient][region and channel], so
// placed that a warp's reads fall into different banks: neighbouring lanes differ in region when
// contiguous, in channel in channels last.
template <typename A, int kChannels, bool kChannelsLast>
class Table {
 public:
  __device__ Table(A* shared, int regions) : values_(shared), regions_(regions) {}
  static size_t bytes(int regions, int coefficients) {
    return sizeof(A) * coefficients * regions * kChannels;
  }
  __device__ int index(int region, int channel) const {
    return kChannelsLast ? region * kChannels + channel : channel * regions_ + region;
  }
  __device__ A* at(int coefficient, int region, int channel) const {
    return values_ + coefficient * regions_ * kChannels + index(region, channel);
  }
  __device__ A get(int coefficient, int region, int channel) const {
    return *at(coefficient, region, channel);
  }
  template <int V>
  __device__ Vec<A, V> get(int coefficient, int region, int channel) const {
    return *reinterpret_cast<const Vec<A, V>*>(at(coefficient, region, channel));
  }

 private:
  A* values_;
  int regions_;
};

template <typename T, bool kChannelsLast>
constexpr int apply_channels() {
  return kChannelsLast ? kChannelTileBytes / static_cast<int>(sizeof(T)) : kApplyChannels;
}

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kApplyThreads, 4)
    region_norm_apply_kernel(RegionView view, Slicing slicing, const T* x, const uint8_t* labels,
                             T* y, Statistics<accumulate_t<T>> statistics,
                             Affine<accumulate_t<T>> affine) {
  using A = accumulate_t<T>;
  constexpr int kChannels = apply_channels<T, kChannelsLast>();
  constexpr int kUnroll = V == 8 ? 2 : 4;  // accesses in flight
  DYNAMIC_SHARED(A, shared);
  const Table<A, kChannels, kChannelsLast> table(shared, view.regions);

  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * kChannels;
  const int channels =
      static_cast<int>(min(static_cast<int64_t>(kChannels), view.channels - first_channel));

  auto set = [&](int region, int channel, A mean, A rstd) {
    const int64_t at = region * view.channels + first_channel + channel;
    *table.at(kMean, region, channel) = mean;
    *table.at(kScale, region, channel) =
        affine.weight != nullptr ? rstd * load(affine.weight + at) : rstd;
    *table.at(kShift, region, channel) = affine.bias != nullptr ? load(affine.bias + at) : A(0);
  };
  if (statistics.partials.planes != nullptr) {
    const double total = view.group_pixels() > 0 ? view.group_pixels() : 1;
    combine_slices<Moments<A>>(view, statistics.partials, work.group, first_channel, channels,
                               [&](int region, int channel, const Moments<A>& moments) {
                                 const A count = moments.count > A(0) ? moments.count : A(1);
                                 A eps = static_cast<A>(statistics.eps);
                                 if (statistics.scale_eps)
                                   eps = static_cast<A>(statistics.eps * total) / count;
                                 const A rstd = A(1) / sqrt(moments.m2 / count + eps);
                                 set(region, channel, moments.mean, rstd);
                                 if (work.slice == 0) {
                                   const int64_t at =
                                       (work.group * view.regions + region) * view.channels +
                                       first_channel + channel;
                                   store(statistics.mean + at, moments.mean);
                                   store(statistics.rstd + at, rstd);
                                 }
                               });
    if (work.slice == 0 && work.tile == 0) {
      for (int region = threadIdx.x; region < view.regions; region += kApplyThreads) {
        store(statistics.count + work.group * view.regions + region,
              statistics.partials.count(view, work.group, region));
      }
    }
  } else {
    for (int i = threadIdx.x; i < view.regions * channels; i += kApplyThreads) {
      const int region = i / channels;
      const int channel = i % channels;
      const int64_t at =
          (work.group * view.regions + region) * view.channels + first_channel + channel;
      set(region, channel, load(statistics.mean + at), load(statistics.rstd + at));
    }
  }
  __syncthreads();

  const bool spatial = affine.spatial_weight != nullptr;
  if constexpr (kChannelsLast) {
    constexpr int kLanes = kChannels / V;
    const int channel = threadIdx.x % kLanes * V;
    Cursor<true> cursor(view, slicing, work, threadIdx.x / kLanes, first_channel + channel);
    if (channel >= channels) cursor.stop();
    while (cursor.inside()) {
      Vec<T, V> values[kUnroll];
      int64_t offsets[kUnroll];
      int regions[kUnroll];
      A weights[kUnroll], biases[kUnroll];
      bool inside[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        inside[u] = cursor.inside();
        if (inside[u]) {
          offsets[u] = cursor.offset();
          values[u] = load<V>(x + offsets[u]);
          regions[u] = view.region(load(labels + cursor.label()));
          weights[u] = spatial ? load(affine.spatial_weight + cursor.index()) : A(1);
          biases[u] = spatial ? load(affine.spatial_bias + cursor.index()) : A(0);
          cursor.advance();
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!inside[u]) continue;
        const auto mean = table.template get<V>(kMean, regions[u], channel);
        const auto scale = table.template get<V>(kScale, regions[u], channel);
        const auto shift = table.template get<V>(kShift, regions[u], channel);
        const bool hole = view.is_hole(regions[u]);
        Vec<T, V> result;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          A normal = (to_accumulate(values[u][j]) - mean[j]) * scale[j] + shift[j];
          if (spatial) normal = normal * weights[u] + biases[u];
          result[j] = from_accumulate<T>(hole ? A(0) : normal);
        }
        store<V>(y + offsets[u], result);
      }
    }
  } else {
    for (Cursor<false> cursor(view, slicing, work, threadIdx.x * V, first_channel); cursor.inside();
         cursor.advance()) {
      const Vec<uint8_t, V> label = load<V>(labels + cursor.label());
      Vec<A, V> weight, bias;
      if (spatial) {
        weight = load<V>(affine.spatial_weight + cursor.index());
        bias = load<V>(affine.spatial_bias + cursor.index());
      }
      for (int channel = 0; channel < channels; channel += kUnroll) {
        const int64_t offset = cursor.offset() + channel * view.pixels;
        Vec<T, V> values[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (channel + u < channels) values[u] = load<V>(x + offset + u * view.pixels);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (channel + u >= channels) continue;
          Vec<T, V> result;
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const int region = view.region(label[j]);
            A normal = (to_accumulate(values[u][j]) - table.get(kMean, region, channel + u)) *
                           table.get(kScale, region, channel + u) +
                       table.get(kShift, region, channel + u);
            if (spatial) normal = normal * weight[j] + bias[j];
            result[j] = from_accumulate<T>(view.is_hole(region) ? A(0) : normal);
          }
          store<V>(y + offset + u * view.pixels, result);
        }
      }
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------

// What the gradient of x is formed from, besides grad, x and labels.
template <typename A>
struct BackwardTerms {
  const int64_t* count;
  const A* mean;
  const A* rstd;
  Partials<A> sums;  // one slice: the totals
  A* total_sums;     // where to write the totals, or null
  const A* weight;
  const A* spatial_weight;
  const A* pooled_gradient;  // (images, 2, height, width) of the channel mean and max, or null
  const int32_t* argmax;
};

// kSpatial: with a spatial weight, a pooled gradient or both.
template <typename T, int V, bool kChannelsLast, bool kSpatial>
__global__ void __launch_bounds__(kApplyThreads, 4)
    region_norm_backward_apply_kernel(RegionView view, Slicing slicing, const T* grad, const T* x,
                                      const uint8_t* labels, T* grad_x,
                                      BackwardTerms<accumulate_t<T>> terms) {
  using A = accumulate_t<T>;
  constexpr int kChannels = apply_channels<T, kChannelsLast>();
  constexpr int kUnroll = 2;  // accesses to each of two tensors in flight
  DYNAMIC_SHARED(A, shared);
  const Table<A, kChannels, kChannelsLast> table(shared, view.regions);

  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * kChannels;
  const int channels =
      static_cast<int>(min(static_cast<int64_t>(kChannels), view.channels - first_channel));

  combine_slices<SumPair<A>>(
      view, terms.sums, work.group, first_channel, channels,
      [&](int region, int channel, const SumPair<A>& sums) {
        const int64_t in_group = region * view.channels + first_channel + channel;
        const int64_t at = work.group * view.regions * view.channels + in_group;
        const int64_t pixels = load(terms.count + work.group * view.regions + region);
        const A count = static_cast<A>(pixels > 0 ? pixels : 1);
        const A rstd = load(terms.rstd + at);
        const A weight = terms.weight != nullptr ? load(terms.weight + in_group) : A(1);
        *table.at(kGradMean, region, channel) = load(terms.mean + at);
        // a region of one pixel is constant: its gradient is 0 exactly, whatever the rounding
        *table.at(kGradScale, region, channel) = pixels > 1 ? rstd * weight : A(0);
        *table.at(kOffset, region, channel) = sums.first / count;
        *table.at(kSlope, region, channel) = sums.second / count * rstd;
        if (terms.total_sums != nullptr && work.slice == 0) {
          store(terms.total_sums + at, sums.first);
          store(terms.total_sums + view.groups * view.regions * view.channels + at, sums.second);
        }
      });
  __syncthreads();

  const bool weighted = kSpatial && terms.spatial_weight != nullptr;
  const bool pooled = kSpatial && terms.pooled_gradient != nullptr;
  const A channel_share = A(1) / static_cast<A>(view.channels);
  // the pooled maps of an image lie side by side
  auto pooled_at = [&](int64_t index, int64_t pixel) { return 2 * (index - pixel) + pixel; };

  if constexpr (kChannelsLast) {
    constexpr int kLanes = kChannels / V;
    const int channel = threadIdx.x % kLanes * V;
    Cursor<true> cursor(view, slicing, work, threadIdx.x / kLanes, first_channel + channel);
    if (channel >= channels) cursor.stop();
    while (cursor.inside()) {
      Vec<T, V> values[kUnroll], gradients[kUnroll];
      int64_t offsets[kUnroll];
      int regions[kUnroll], largest[kUnroll];
      A weights[kUnroll], mean_parts[kUnroll], max_parts[kUnroll];
      bool inside[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        inside[u] = cursor.inside();
        if (inside[u]) {
          offsets[u] = cursor.offset();
          values[u] = load<V>(x + offsets[u]);
          gradients[u] = load<V>(grad + offsets[u]);
          regions[u] = view.region(load(labels + cursor.label()));
          weights[u] = weighted ? load(terms.spatial_weight + cursor.index()) : A(1);
          if (pooled) {
            const int64_t at = pooled_at(cursor.index(), cursor.pixel());
            mean_parts[u] = load(terms.pooled_gradient + at) * channel_share;
            max_parts[u] = load(terms.pooled_gradient + at + view.pixels);
            largest[u] = load(terms.argmax + cursor.index());
          }
          cursor.advance();
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!inside[u]) continue;
        const auto mean = table.template get<V>(kGradMean, regions[u], channel);
        const auto scale = table.template get<V>(kGradScale, regions[u], channel);
        const auto offset = table.template get<V>(kOffset, regions[u], channel);
        const auto slope = table.template get<V>(kSlope, regions[u], channel);
        const bool hole = view.is_hole(regions[u]);
        Vec<T, V> result;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          A gradient = to_accumulate(gradients[u][j]);
          if (kSpatial) gradient *= weights[u];
          gradient = scale[j] *
                     ((gradient - offset[j]) - (to_accumulate(values[u][j]) - mean[j]) * slope[j]);
          if (hole) gradient = A(0);
          if (pooled) {
            gradient += mean_parts[u];
            if (first_channel + channel + j == largest[u]) gradient += max_parts[u];
          }
          result[j] = from_accumulate<T>(gradient);
        }
        store<V>(grad_x + offsets[u], result);
      }
    }
  } else {
    for (Cursor<false> cursor(view, slicing, work, threadIdx.x * V, first_channel); cursor.inside();
         cursor.advance()) {
      const Vec<uint8_t, V> label = load<V>(labels + cursor.label());
      Vec<A, V> weight, mean_part, max_part;
      Vec<int32_t, V> largest;
      if (weighted) weight = load<V>(terms.spatial_weight + cursor.index());
      if (pooled) {
        const int64_t at = pooled_at(cursor.index(), cursor.pixel());
        mean_part = load<V>(terms.pooled_gradient + at);
        max_part = load<V>(terms.pooled_gradient + at + view.pixels);
        largest = load<V>(terms.argmax + cursor.index());
      }
      for (int channel = 0; channel < channels; channel += kUnroll) {
        const int64_t offset = cursor.offset() + channel * view.pixels;
        Vec<T, V> values[kUnroll], gradients[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (channel + u < channels) {
            values[u] = load<V>(x + offset + u * view.pixels);
            gradients[u] = load<V>(grad + offset + u * view.pixels);
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (channel + u >= channels) continue;
          Vec<T, V> result;
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const int region = view.region(label[j]);
            const int c = channel + u;
            A gradient = to_accumulate(gradients[u][j]);
            if (weighted) gradient *= weight[j];
            gradient = table.get(kGradScale, region, c) *
                       ((gradient - table.get(kOffset, region, c)) -
                        (to_accumulate(values[u][j]) - table.get(kGradMean, region, c)) *
                            table.get(kSlope, region, c));
            if (view.is_hole(region)) gradient = A(0);
            if (pooled) {
              gradient += mean_part[j] * channel_share;
              if (first_channel + c == largest[j]) gradient += max_part[j];
            }
            result[j] = from_accumulate<T>(gradient);
          }
          store<V>(grad_x + offset + u * view.pixels, result);
        }
      }
    }
  }
}

// The sums of a spatial affine: over the pixels of each region per channel (of grad * weight) and
// over the channels per pixel (of grad), from one pass. A warp takes tiles of 32 pixels by 32
// channels through shared memory: first a lane is a channel and walks along the pixels, whose
// region is then the same for the whole warp; then a lane is a pixel and adds up the channels. The
// warps of a block share their pixels' channels as far as there are any, and add up their parts.
constexpr int kTile = 32;
constexpr int kTilePitch = kTile + 1;  // rows and columns both fall into different banks

struct SpatialSplit {
  int64_t image_tiles;     // tiles of pixels per image
  int64_t slices, length;  // the group's tiles are cut into slices, length in steps of the block
  int channel_warps;       // warps that share a tile of pixels; the others take further tiles
  unsigned splits;         // blocks that share a tile of pixels
};

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(128, 4)
    spatial_sums_kernel(RegionView view, SpatialSplit split, const T* grad, const T* x,
                        const uint8_t* labels, const accumulate_t<T>* mean,
                        const accumulate_t<T>* rstd, const accumulate_t<T>* spatial_weight,
                        Partials<accumulate_t<T>> partials, accumulate_t<T>* weight_parts,
                        accumulate_t<T>* bias_parts) {
  using A = accumulate_t<T>;
  constexpr int kAccesses = kTile / V;     // per row of the tile; also per lane and tensor
  constexpr int kUnroll = V == 8 ? 2 : 4;  // accesses to each of two tensors in flight
  DYNAMIC_SHARED(A, shared);
  const int warps = blockDim.x / kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;

  A* const tile_grad = shared + warp * 2 * kTile * kTilePitch;
  A* const tile_x = tile_grad + kTile * kTilePitch;
  A* const pixel_sums = shared + warps * 2 * kTile * kTilePitch;  // [warp][2][pixel]
  A* const all_sums = pixel_sums + warps * 2 * kTile;             // [warp][2][region][channel]
  const int warp_sums = 2 * view.regions * kTile;
  A* const first = all_sums + warp * warp_sums;
  A* const second = first + view.regions * kTile;
  for (int region = 0; region < view.regions; ++region) {
    first[region * kTile + lane] = second[region * kTile + lane] = A(0);
  }

  const unsigned channel_split = blockIdx.x % split.splits;
  const unsigned rest = blockIdx.x / split.splits;
  const int64_t slice = rest % static_cast<unsigned>(split.slices);
  const int64_t group = rest / static_cast<unsigned>(split.slices);
  const int warps_along_pixels = warps / split.channel_warps;
  const int64_t first_channel =
      (static_cast<int64_t>(channel_split) * split.channel_warps + warp % split.channel_warps) *
      kTile;
  const int64_t channel = first_channel + lane;
  const int64_t statistics = group * view.regions * view.channels + channel;

  const int64_t tiles = split.image_tiles * view.images_per_group;
  const int64_t first_tile = slice * split.length * warps_along_pixels + warp / split.channel_warps;
  for (int64_t step = 0; step < split.length; ++step) {
    const int64_t tile = first_tile + step * warps_along_pixels;
    const bool inside = tile < tiles;
    const int64_t image = group * view.images_per_group + tile / split.image_tiles;
    const int64_t first_pixel = tile % split.image_tiles * kTile;
    const int64_t pixel = first_pixel + lane;
    const bool pixel_inside = inside && pixel < view.pixels;
    const int64_t map_index = image * view.pixels + pixel;

#pragma unroll 1
    for (int base = 0; base < kAccesses; base += kUnroll) {
      Vec<T, V> gradients[kUnroll], values[kUnroll];
      bool present[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int row = ((base + u) * kWarpSize + lane) / kAccesses;
        const int column = ((base + u) * kWarpSize + lane) % kAccesses * V;
        const int64_t p = first_pixel + (kChannelsLast ? row : column);
        const int64_t c = first_channel + (kChannelsLast ? column : row);
        present[u] = inside && p < view.pixels && c < view.channels;
        if (present[u]) {
          const int64_t offset = kChannelsLast ? (image * view.pixels + p) * view.channels + c
                                               : (image * view.channels + c) * view.pixels + p;
          gradients[u] = load<V>(grad + offset);
          values[u] = load<V>(x + offset);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int row = ((base + u) * kWarpSize + lane) / kAccesses;
        const int column = ((base + u) * kWarpSize + lane) % kAccesses * V;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const int at =
              kChannelsLast ? (column + j) * kTilePitch + row : row * kTilePitch + column + j;
          tile_grad[at] = present[u] ? to_accumulate(gradients[u][j]) : A(0);
          tile_x[at] = present[u] ? to_accumulate(values[u][j]) : A(0);
        }
      }
    }
    const int label =
        pixel_inside ? view.region(load(labels + (view.shared_labels ? pixel : map_index))) : 0;
    const A weight = pixel_inside ? load(spatial_weight + map_index) : A(0);
    __syncwarp();

    A sum_grad = A(0), sum_product = A(0), channel_mean = A(0), channel_rstd = A(0);
    int current = -1;
    const int pixels =
        inside ? static_cast<int>(min(static_cast<int64_t>(kTile), view.pixels - first_pixel)) : 0;
    for (int i = 0; i < pixels; ++i) {
      const int region = __shfl_sync(kFullMask, label, i);
      const A pixel_weight = __shfl_sync(kFullMask, weight, i);
      if (region != current) {
        if (current >= 0) {
          first[current * kTile + lane] += sum_grad;
          second[current * kTile + lane] += sum_product;
        }
        current = region;
        sum_grad = sum_product = A(0);
        if (channel < view.channels) {
          channel_mean = load(mean + statistics + region * view.channels);
          channel_rstd = load(rstd + statistics + region * view.channels);
        }
      }
      const int at = lane * kTilePitch + i;
      if (view.is_hole(region)) {
        tile_grad[at] = tile_x[at] = A(0);
        continue;
      }
      const A gradient = tile_grad[at];
      const A normal = channel < view.channels ? (tile_x[at] - channel_mean) * channel_rstd : A(0);
      tile_x[at] = gradient * normal;
      sum_grad += gradient * pixel_weight;
      sum_product += gradient * pixel_weight * normal;
    }
    if (current >= 0) {
      first[current * kTile + lane] += sum_grad;
      second[current * kTile + lane] += sum_product;
    }
    __syncwarp();

    A weight_part = A(0), bias_part = A(0);
#pragma unroll 8
    for (int c = 0; c < kTile; ++c) {
      weight_part += tile_x[c * kTilePitch + lane];
      bias_part += tile_grad[c * kTilePitch + lane];
    }
    if (split.channel_warps > 1) {
      pixel_sums[(2 * warp) * kTile + lane] = weight_part;
      pixel_sums[(2 * warp + 1) * kTile + lane] = bias_part;
      __syncthreads();
      weight_part = bias_part = A(0);
      if (warp % split.channel_warps == 0) {
        for (int w = warp; w < warp + split.channel_warps; ++w) {
          weight_part += pixel_sums[(2 * w) * kTile + lane];
          bias_part += pixel_sums[(2 * w + 1) * kTile + lane];
        }
      }
      __syncthreads();
    } else {
      __syncwarp();
    }
    if (pixel_inside && warp % split.channel_warps == 0) {
      const int64_t at = channel_split * view.images * view.pixels + map_index;
      store(weight_parts + at, weight_part);
      store(bias_parts + at, bias_part);
    }
  }
  __syncthreads();

  const int64_t plane = partials.plane(view);
  const int sums = split.channel_warps * view.regions * kTile;
  for (int i = threadIdx.x; i < sums; i += blockDim.x) {
    const int first_warp = i / (view.regions * kTile);
    const int within = i % (view.regions * kTile);
    const int64_t c =
        (static_cast<int64_t>(channel_split) * split.channel_warps + first_warp) * kTile +
        within % kTile;
    if (c >= view.channels) continue;
    A total_grad = A(0), total_product = A(0);
    for (int w = first_warp; w < warps; w += split.channel_warps) {
      total_grad += all_sums[w * warp_sums + within];
      total_product += all_sums[w * warp_sums + view.regions * kTile + within];
    }
    const int64_t at = partials.index(view, group, within / kTile, c) + slice;
    store(partials.planes + at, total_grad);
    store(partials.planes + plane + at, total_product);
  }
}

// ---- combining partial results ------------------------------------------------------------------

// Totals of moments: count, mean and variance.
template <typename A>
__global__ void __launch_bounds__(kApplyThreads)
    combine_moments_kernel(RegionView view, Partials<A> partials, int64_t* counts, A* mean,
                           A* variance) {
  const int64_t results = view.groups * view.regions * view.channels;
  const int64_t plane = partials.plane(view);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kApplyThreads / kWarpSize;
  reduce_rows<Moments<A>>(
      static_cast<int>(min(results - first_row, int64_t{kApplyThreads / kWarpSize})),
      static_cast<int>(partials.slices),
      [&](int row, int slice) -> Moments<A> {
        const int64_t result = first_row + row;
        const auto count = load(partials.counts + result / view.channels * partials.slices + slice);
        const int64_t at = result * partials.slices + slice;
        return {static_cast<A>(count), load(partials.planes + at),
                load(partials.planes + plane + at)};
      },
      [&](int row, const Moments<A>& moments) {
        const int64_t result = first_row + row;
        store(mean + result, moments.mean);
        store(variance + result, moments.m2 / (moments.count > A(0) ? moments.count : A(1)));
        if (result % view.channels == 0) {
          const int64_t region = result / view.channels;
          store(counts + region, partials.count(view, region / view.regions,
                                                static_cast<int>(region % view.regions)));
        }
      });
}

// Totals of sums over pixels (blocks below row_blocks) and over channels (the others). A null
// parts pointer: there are no maps.
template <typename A>
__global__ void __launch_bounds__(kApplyThreads)
    combine_sums_kernel(int64_t results, int slices, const A* partials, A* sums,
                        unsigned row_blocks, int64_t pixels, int splits, const A* weight_parts,
                        const A* bias_parts, A* grad_spatial_weight, A* grad_spatial_bias) {
  if (blockIdx.x < row_blocks) {
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kApplyThreads / kWarpSize;
    reduce_rows<SumPair<A>>(
        static_cast<int>(min(results - first_row, int64_t{kApplyThreads / kWarpSize})), slices,
        [&](int row, int slice) -> SumPair<A> {
          const int64_t at = (first_row + row) * slices + slice;
          return {load(partials + at), load(partials + results * slices + at)};
        },
        [&](int row, const SumPair<A>& total) {
          store(sums + first_row + row, total.first);
          store(sums + results + first_row + row, total.second);
        });
  } else {
    const int64_t pixel =
        static_cast<int64_t>(blockIdx.x - row_blocks) * kApplyThreads + threadIdx.x;
    if (pixel >= pixels) return;
    A weight = A(0), bias = A(0);
    for (int split = 0; split < splits; ++split) {
      weight += load(weight_parts + split * pixels + pixel);
      bias += load(bias_parts + split * pixels + pixel);
    }
    store(grad_spatial_weight + pixel, weight);
    store(grad_spatial_bias + pixel, bias);
  }
}

// ---- launchers ----------------------------------------------------------------------------------

RegionView describe(const Tensor& x, const Tensor& labels, int64_t num_regions, bool per_instance,
                    bool ignore_holes) {
  expects(x.dim() == 4, "x: expected a tensor of four dimensions");
  expects(num_regions >= 1 && num_regions <= kMaxRegions, "num_regions: expected 1 to 64");
  RegionView view;
  view.images = x.size(0);
  view.channels = x.size(1);
  view.pixels = x.size(2) * x.size(3);
  view.groups = per_instance ? view.images : 1;
  view.images_per_group = per_instance ? 1 : view.images;
  view.regions = static_cast<int>(num_regions);
  view.ignore_holes = ignore_holes;
  expects(view.channels > 0 && view.pixels > 0, "x: expected C, H and W of at least 1");
  expects(labels.dim() == 4 && labels.size(1) == 1 && labels.size(2) == x.size(2) &&
              labels.size(3) == x.size(3) && (labels.size(0) == 1 || labels.size(0) == view.images),
          "labels: expected the shape (N or 1, 1, H, W) of x");
  expects_plain(labels, ScalarType::Byte, labels.size(0) * view.pixels,
                "labels: expected a contiguous uint8 tensor");
  view.shared_labels = labels.size(0) == 1 && view.images != 1;
  return view;
}

// grad must have x's shape, dtype and memory format.
void expects_like(const Tensor& grad, const Tensor& x) {
  expects(grad.scalar_type() == x.scalar_type() && grad.dim() == 4, "grad: expected x's dtype");
  int64_t matching = 0;
  for (int64_t dim = 0; dim < 4; ++dim) {
    matching +=
        grad.size(dim) == x.size(dim) && (x.size(dim) == 1 || grad.stride(dim) == x.stride(dim));
  }
  expects(matching == 4 || (x.numel() == 0 && grad.numel() == 0),
          "grad: expected x's shape and memory format");
}

// The apply kernels' cut: enough blocks to fill a large device, but each reading rather more of
// the tensor than of the partial results that it combines.
template <typename T, int V, bool kChannelsLast>
Slicing apply_slicing(const RegionView& view, int64_t partial_slices) {
  constexpr int kChannels = apply_channels<T, kChannelsLast>();
  const int64_t step = kChannelsLast ? kApplyThreads / (kChannels / V) : kApplyThreads * V;
  const int64_t tiles = (view.channels + kChannels - 1) / kChannels;
  const int64_t tile_groups = std::max<int64_t>(1, tiles * view.groups);
  const int64_t paying =
      view.group_pixels() * static_cast<int64_t>(sizeof(T)) /
      (8 * view.regions * partial_slices * static_cast<int64_t>(sizeof(accumulate_t<T>)));
  const int64_t slices = std::max(std::min(paying, 2048 / tile_groups), 256 / tile_groups);
  return Slicing(view, tiles, step, slices);
}

// Calls f(width tag, channels-last tag): 128-bit accesses if everything that is read or written V
// elements at a time allows them.
template <typename T, typename F, typename... Maps>
void dispatch_apply(const RegionView& view, bool channels_last, F&& f, const T* x, const T* other,
                    const T* result, const Maps*... maps) {
  constexpr int kWidest = kMaxAccessBytes / sizeof(T);
  const int width = channels_last ? vector_width(view.channels, x, other, result)
                                  : vector_width(view.pixels, x, other, result, maps...);
  dispatch_access<T>(width == kWidest, channels_last, f);
}

template <typename T>
void launch_apply(const RegionView& view, const Tensor& x, const Tensor& labels, Tensor& y,
                  const Statistics<accumulate_t<T>>& statistics,
                  const Affine<accumulate_t<T>>& affine) {
  using A = accumulate_t<T>;
  dispatch_apply<T>(
      view, is_channels_last(x),
      [&](auto width, auto format) {
        constexpr int V = decltype(width)::value;
        constexpr bool kChannelsLast = decltype(format)::value;
        constexpr int kChannels = apply_channels<T, kChannelsLast>();
        const bool given = statistics.partials.planes == nullptr;
        const Slicing slicing =
            apply_slicing<T, V, kChannelsLast>(view, given ? 1 : statistics.partials.slices);
        launch(region_norm_apply_kernel<T, V, kChannelsLast>, slicing.grid(view),
               dim3(kApplyThreads),
               Table<A, kChannels, kChannelsLast>::bytes(view.regions, kForwardCoefficients),
               current_stream(x), view, slicing, data<const T>(x), data<const uint8_t>(labels),
               data<T>(y), statistics, affine);
      },
      data<const T>(x), static_cast<const T*>(nullptr), data<const T>(y),
      data<const uint8_t>(labels), affine.spatial_weight, affine.spatial_bias);
}

template <typename A>
Affine<A> describe_affine(const RegionView& view, ScalarType dtype,
                          const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& spatial_weight,
                          const std::optional<Tensor>& spatial_bias) {
  const int64_t parameters = view.regions * view.channels;
  const int64_t pixels = view.images * view.pixels;
  expects(weight.has_value() == bias.has_value() &&
              spatial_weight.has_value() == spatial_bias.has_value() &&
              !(weight.has_value() && spatial_weight.has_value()),
          "expected weight and bias, or spatial_weight and spatial_bias, or none of them");
  expects_plain(weight, dtype, parameters, "weight: expected the shape (regions, channels)");
  expects_plain(bias, dtype, parameters, "bias: expected the shape (regions, channels)");
  expects_plain(spatial_weight, dtype, pixels, "spatial_weight: expected the shape (N, 1, H, W)");
  expects_plain(spatial_bias, dtype, pixels, "spatial_bias: expected the shape (N, 1, H, W)");
  return {data<const A>(weight), data<const A>(bias), data<const A>(spatial_weight),
          data<const A>(spatial_bias)};
}

Tensor region_labels_cuda(const Tensor& mask, int64_t height, int64_t width, int64_t num_regions,
                          bool check_values) {
  expects(mask.dim() == 4 && mask.size(1) == 1 && mask.is_contiguous(),
          "mask: expected a contiguous tensor of shape (N or 1, 1, H, W)");
  expects(mask.size(2) > 0 && mask.size(3) > 0 && height > 0 && width > 0,
          "mask: expected a height and width of at least 1");
  expects(num_regions >= 1 && num_regions <= kMaxRegions, "num_regions: expected 1 to 64");
  const DeviceGuard guard(mask);
  Tensor labels = new_tensor(mask, {mask.size(0), 1, height, width}, ScalarType::Byte);
  const int64_t rows = mask.size(0) * height;
  constexpr int kRowsPerBlock = 8;
  auto run = [&](auto type) {
    using M = typename decltype(type)::type;
    auto run_width = [&](auto kernel) {
      launch(kernel, dim3(static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock)),
             dim3(kWarpSize, kRowsPerBlock), 0, current_stream(mask), data<const M>(mask),
             data<uint8_t>(labels), rows, height, width, mask.size(2), mask.size(3),
             static_cast<int>(num_regions), check_values);
    };
    if (width % 4 == 0) {
      run_width(region_labels_kernel<M, 4>);
    } else {
      run_width(region_labels_kernel<M, 1>);
    }
  };
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
      run(Type<bool>{});
      break;
    case ScalarType::Byte:
      run(Type<uint8_t>{});
      break;
    case ScalarType::Char:
      run(Type<int8_t>{});
      break;
    case ScalarType::Short:
      run(Type<int16_t>{});
      break;
    case ScalarType::Int:
      run(Type<int32_t>{});
      break;
    case ScalarType::Long:
      run(Type<int64_t>{});
      break;
    default:
      dispatch_floating(mask.scalar_type(), run);
  }
  return labels;
}

std::tuple<Tensor, Tensor, Tensor> region_statistics_cuda(const Tensor& x, const Tensor& labels,
                                                          int64_t num_regions, bool per_instance,
                                                          bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  const ScalarType dtype = accumulate_type(x);
  Tensor count = new_tensor(x, {view.groups, num_regions}, ScalarType::Long);
  Tensor mean = new_tensor(x, {view.groups, num_regions, view.channels}, dtype);
  Tensor variance = new_tensor(x, {view.groups, num_regions, view.channels}, dtype);
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const auto buffer = region_partials<T>(view, x, is_channels_last(x), data<const T>(x), nullptr,
                                           data<const uint8_t>(labels), nullptr, nullptr);
    const int64_t rows_per_block = kApplyThreads / kWarpSize;
    launch(combine_moments_kernel<A>,
           dim3(static_cast<unsigned>((mean.numel() + rows_per_block - 1) / rows_per_block)),
           dim3(kApplyThreads), 0, current_stream(x), view, buffer.partials, data<int64_t>(count),
           data<A>(mean), data<A>(variance));
  });
  return {count, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_cuda(
    const Tensor& x, const Tensor& labels, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& spatial_weight,
    const std::optional<Tensor>& spatial_bias, int64_t num_regions, bool per_instance, double eps,
    bool scale_eps, bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  const ScalarType dtype = accumulate_type(x);
  Tensor y = torch::stable::empty_like(x);
  Tensor count = new_tensor(x, {view.groups, num_regions}, ScalarType::Long);
  Tensor mean = new_tensor(x, {view.groups, num_regions, view.channels}, dtype);
  Tensor rstd = new_tensor(x, {view.groups, num_regions, view.channels}, dtype);
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const auto affine = describe_affine<A>(view, dtype, weight, bias, spatial_weight, spatial_bias);
    const auto buffer = region_partials<T>(view, x, is_channels_last(x), data<const T>(x), nullptr,
                                           data<const uint8_t>(labels), nullptr, nullptr);
    launch_apply<T>(view, x, labels, y,
                    Statistics<A>{buffer.partials, data<int64_t>(count), data<A>(mean),
                                  data<A>(rstd), eps, scale_eps},
                    affine);
  });
  return {y, count, mean, rstd};
}

Tensor region_norm_apply_cuda(const Tensor& x, const Tensor& labels, const Tensor& mean,
                              const Tensor& rstd, const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& bias,
                              const std::optional<Tensor>& spatial_weight,
                              const std::optional<Tensor>& spatial_bias, int64_t num_regions,
                              bool per_instance, bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  const ScalarType dtype = accumulate_type(x);
  const int64_t statistics = view.groups * view.regions * view.channels;
  expects_plain(mean, dtype, statistics, "mean: expected the shape (R, regions, channels)");
  expects_plain(rstd, dtype, statistics, "rstd: expected the shape (R, regions, channels)");
  Tensor y = torch::stable::empty_like(x);
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const auto affine = describe_affine<A>(view, dtype, weight, bias, spatial_weight, spatial_bias);
    // the kernel writes mean and rstd only where it combined them from partial results
    launch_apply<T>(view, x, labels, y,
                    Statistics<A>{{},
                                  nullptr,
                                  const_cast<A*>(data<const A>(mean)),
                                  const_cast<A*>(data<const A>(rstd)),
                                  0.0,
                                  false},
                    affine);
  });
  return y;
}

// Both kinds of sums of a spatial affine, in their final form.
template <typename T>
void launch_spatial_sums(const RegionView& view, const Tensor& grad, const Tensor& x,
                         const Tensor& labels, const Tensor& mean, const Tensor& rstd,
                         const Tensor& spatial_weight, Tensor& sums, Tensor& grad_spatial_weight,
                         Tensor& grad_spatial_bias) {
  using A = accumulate_t<T>;
  constexpr size_t kSharedBytes = 48 * 1024;
  const size_t warp_bytes =
      sizeof(A) * (2 * kTile * kTilePitch + 2 * kTile + 2 * view.regions * kTile);
  int warps = 4;
  while (warps > 1 && warps * warp_bytes > kSharedBytes) warps /= 2;

  SpatialSplit split;
  const int64_t channel_tiles = (view.channels + kTile - 1) / kTile;
  split.channel_warps = 1;
  while (split.channel_warps < warps && split.channel_warps < channel_tiles) {
    split.channel_warps *= 2;
  }
  split.splits =
      static_cast<unsigned>((channel_tiles + split.channel_warps - 1) / split.channel_warps);
  split.image_tiles = (view.pixels + kTile - 1) / kTile;
  const int64_t per_step = warps / split.channel_warps;
  const int64_t steps =
      std::max<int64_t>(1, (split.image_tiles * view.images_per_group + per_step - 1) / per_step);
  const int64_t wanted =
      std::max<int64_t>(1, 1024 / std::max<int64_t>(1, view.groups * split.splits));
  split.length = (steps + wanted - 1) / wanted;
  split.slices = (steps + split.length - 1) / split.length;

  const int64_t results = view.groups * view.regions * view.channels;
  const int64_t pixels = view.images * view.pixels;
  const bool final_sums = split.slices == 1;
  const bool final_maps = split.splits == 1;
  Tensor partial_sums =
      final_sums ? sums : new_tensor(x, {2 * results * split.slices}, accumulate_type(x));
  Tensor parts = final_maps ? grad_spatial_weight
                            : new_tensor(x, {2 * split.splits * pixels}, accumulate_type(x));
  A* weight_parts = data<A>(parts);
  A* bias_parts = final_maps ? data<A>(grad_spatial_bias) : weight_parts + split.splits * pixels;
  const Partials<A> partials{data<A>(partial_sums), nullptr, split.slices};

  const bool channels_last = is_channels_last(x);
  dispatch_apply<T>(
      view, channels_last,
      [&](auto width, auto format) {
        launch(spatial_sums_kernel<T, decltype(width)::value, decltype(format)::value>,
               grid_of(view.groups * split.slices * split.splits), dim3(warps * kWarpSize),
               warps * warp_bytes, current_stream(x), view, split, data<const T>(grad),
               data<const T>(x), data<const uint8_t>(labels), data<const A>(mean),
               data<const A>(rstd), data<const A>(spatial_weight), partials, weight_parts,
               bias_parts);
      },
      data<const T>(x), data<const T>(grad), static_cast<const T*>(nullptr));
  if (final_sums && final_maps) return;
  const int64_t rows_per_block = kApplyThreads / kWarpSize;
  const unsigned row_blocks =
      final_sums ? 0 : static_cast<unsigned>((results + rows_per_block - 1) / rows_per_block);
  const unsigned pixel_blocks =
      final_maps ? 0 : static_cast<unsigned>((pixels + kApplyThreads - 1) / kApplyThreads);
  launch(combine_sums_kernel<A>, dim3(row_blocks + pixel_blocks), dim3(kApplyThreads), 0,
         current_stream(x), results, static_cast<int>(split.slices),
         static_cast<const A*>(partials.planes), data<A>(sums), row_blocks, pixels,
         static_cast<int>(split.splits), static_cast<const A*>(weight_parts),
         static_cast<const A*>(bias_parts), data<A>(grad_spatial_weight),
         data<A>(grad_spatial_bias));
}

void expects_backward(const RegionView& view, const Tensor& grad, const Tensor& x,
                      const Tensor& mean, const Tensor& rstd,
                      const std::optional<Tensor>& spatial_weight) {
  expects_like(grad, x);
  const ScalarType dtype = accumulate_type(x);
  const int64_t statistics = view.groups * view.regions * view.channels;
  expects_plain(mean, dtype, statistics, "mean: expected the shape (R, regions, channels)");
  expects_plain(rstd, dtype, statistics, "rstd: expected the shape (R, regions, channels)");
  expects_plain(spatial_weight, dtype, view.images * view.pixels,
                "spatial_weight: expected the shape (N, 1, H, W)");
}

struct BackwardSums {
  Tensor sums, grad_spatial_weight, grad_spatial_bias;
};

BackwardSums new_sums(const RegionView& view, const Tensor& x, bool spatial) {
  const ScalarType dtype = accumulate_type(x);
  auto map = [&] {
    return spatial ? new_tensor(x, {view.images, 1, x.size(2), x.size(3)}, dtype)
                   : new_tensor(x, {0}, dtype);
  };
  return {new_tensor(x, {2, view.groups, view.regions, view.channels}, dtype), map(), map()};
}

template <typename T>
PartialsBuffer<accumulate_t<T>> partial_sums(const RegionView& view, const Tensor& grad,
                                             const Tensor& x, const Tensor& labels,
                                             const Tensor& mean, const Tensor& rstd) {
  using A = accumulate_t<T>;
  return region_partials<T>(view, x, is_channels_last(x), data<const T>(x), data<const T>(grad),
                            data<const uint8_t>(labels), data<const A>(mean), data<const A>(rstd));
}

std::tuple<Tensor, Tensor, Tensor> region_norm_backward_sums_cuda(
    const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& mean,
    const Tensor& rstd, const std::optional<Tensor>& spatial_weight, int64_t num_regions,
    bool per_instance, bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  expects_backward(view, grad, x, mean, rstd, spatial_weight);
  BackwardSums result = new_sums(view, x, spatial_weight.has_value());
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    if (spatial_weight.has_value()) {
      launch_spatial_sums<T>(view, grad, x, labels, mean, rstd, *spatial_weight, result.sums,
                             result.grad_spatial_weight, result.grad_spatial_bias);
      return;
    }
    const auto buffer = partial_sums<T>(view, grad, x, labels, mean, rstd);
    if (buffer.partials.slices == 1) {
      result.sums =
          torch::stable::view(buffer.planes, {{2, view.groups, view.regions, view.channels}});
      return;
    }
    const int64_t results = view.groups * view.regions * view.channels;
    const int64_t rows_per_block = kApplyThreads / kWarpSize;
    const unsigned row_blocks =
        static_cast<unsigned>((results + rows_per_block - 1) / rows_per_block);
    const A* none = nullptr;
    launch(combine_sums_kernel<A>, dim3(row_blocks), dim3(kApplyThreads), 0, current_stream(x),
           results, static_cast<int>(buffer.partials.slices),
           static_cast<const A*>(buffer.partials.planes), data<A>(result.sums), row_blocks,
           int64_t{0}, 0, none, none, static_cast<A*>(nullptr), static_cast<A*>(nullptr));
  });
  return {result.sums, result.grad_spatial_weight, result.grad_spatial_bias};
}

template <typename T>
void launch_backward_apply(const RegionView& view, const Tensor& grad, const Tensor& x,
                           const Tensor& labels, Tensor& grad_x,
                           const BackwardTerms<accumulate_t<T>>& terms) {
  using A = accumulate_t<T>;
  dispatch_apply<T>(
      view, is_channels_last(x),
      [&](auto width, auto format) {
        constexpr int V = decltype(width)::value;
        constexpr bool kChannelsLast = decltype(format)::value;
        constexpr int kChannels = apply_channels<T, kChannelsLast>();
        const Slicing slicing = apply_slicing<T, V, kChannelsLast>(view, terms.sums.slices);
        const bool spatial = terms.spatial_weight != nullptr || terms.pooled_gradient != nullptr;
        launch(spatial ? region_norm_backward_apply_kernel<T, V, kChannelsLast, true>
                       : region_norm_backward_apply_kernel<T, V, kChannelsLast, false>,
               slicing.grid(view), dim3(kApplyThreads),
               Table<A, kChannels, kChannelsLast>::bytes(view.regions, kBackwardCoefficients),
               current_stream(x), view, slicing, data<const T>(grad), data<const T>(x),
               data<const uint8_t>(labels), data<T>(grad_x), terms);
      },
      data<const T>(x), data<const T>(grad), data<const T>(grad_x), data<const uint8_t>(labels),
      terms.spatial_weight, terms.pooled_gradient, terms.argmax);
}

Tensor region_norm_backward_apply_cuda(const Tensor& grad, const Tensor& x, const Tensor& labels,
                                       const Tensor& count, const Tensor& mean, const Tensor& rstd,
                                       const Tensor& sums, const std::optional<Tensor>& weight,
                                       const std::optional<Tensor>& spatial_weight,
                                       const std::optional<Tensor>& pooled_gradient,
                                       const std::optional<Tensor>& argmax, int64_t num_regions,
                                       bool per_instance, bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  expects_backward(view, grad, x, mean, rstd, spatial_weight);
  const ScalarType dtype = accumulate_type(x);
  const int64_t pixels = view.images * view.pixels;
  expects_plain(count, ScalarType::Long, view.groups * view.regions,
                "count: expected the shape (R, regions)");
  expects_plain(sums, dtype, 2 * view.groups * view.regions * view.channels,
                "sums: expected the shape (2, R, regions, channels)");
  expects_plain(weight, dtype, view.regions * view.channels,
                "weight: expected the shape (regions, channels)");
  expects(pooled_gradient.has_value() == argmax.has_value(),
          "expected both of pooled_gradient and argmax, or neither");
  expects_plain(pooled_gradient, dtype, 2 * pixels,
                "pooled_gradient: expected the shape (N, 2, H, W)");
  expects_plain(argmax, ScalarType::Int, pixels, "argmax: expected int32 (N, 1, H, W)");
  Tensor grad_x = torch::stable::empty_like(x);
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    // a single slice is only read: Partials is the view that kernels write through, too
    const Partials<A> totals{const_cast<A*>(data<const A>(sums)), nullptr, 1};
    launch_backward_apply<T>(
        view, grad, x, labels, grad_x,
        BackwardTerms<A>{data<const int64_t>(count), data<const A>(mean), data<const A>(rstd),
                         totals, nullptr, data<const A>(weight), data<const A>(spatial_weight),
                         data<const A>(pooled_gradient), data<const int32_t>(argmax)});
  });
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_backward_cuda(
    const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& count,
    const Tensor& mean, const Tensor& rstd, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& spatial_weight, int64_t num_regions, bool per_instance,
    bool ignore_holes) {
  const RegionView view = describe(x, labels, num_regions, per_instance, ignore_holes);
  const DeviceGuard guard(x);
  expects_backward(view, grad, x, mean, rstd, spatial_weight);
  const ScalarType dtype = accumulate_type(x);
  expects_plain(count, ScalarType::Long, view.groups * view.regions,
                "count: expected the shape (R, regions)");
  expects_plain(weight, dtype, view.regions * view.channels,
                "weight: expected the shape (regions, channels)");
  Tensor grad_x = torch::stable::empty_like(x);
  BackwardSums result = new_sums(view, x, spatial_weight.has_value());
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    BackwardTerms<A> terms{data<const int64_t>(count),
                           data<const A>(mean),
                           data<const A>(rstd),
                           {},
                           nullptr,
                           data<const A>(weight),
                           data<const A>(spatial_weight),
                           nullptr,
                           nullptr};
    PartialsBuffer<A> buffer;
    if (spatial_weight.has_value()) {
      launch_spatial_sums<T>(view, grad, x, labels, mean, rstd, *spatial_weight, result.sums,
                             result.grad_spatial_weight, result.grad_spatial_bias);
      terms.sums = Partials<A>{data<A>(result.sums), nullptr, 1};
    } else {
      buffer = partial_sums<T>(view, grad, x, labels, mean, rstd);
      terms.sums = buffer.partials;
      terms.total_sums = data<A>(result.sums);
    }
    launch_backward_apply<T>(view, grad, x, labels, grad_x, terms);
  });
  return {grad_x, result.sums, result.grad_spatial_weight, result.grad_spatial_bias};
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  m.impl("region_labels", TORCH_BOX(&region_labels_cuda));
  m.impl("region_statistics", TORCH_BOX(&region_statistics_cuda));
  m.impl("region_norm", TORCH_BOX(&region_norm_cuda));
  m.impl("region_norm_apply", TORCH_BOX(&region_norm_apply_cuda));
  m.impl("region_norm_backward_sums", TORCH_BOX(&region_norm_backward_sums_cuda));
  m.impl("region_norm_backward_apply", TORCH_BOX(&region_norm_backward_apply_cuda));
  m.impl("region_norm_backward", TORCH_BOX(&region_norm_backward_cuda));
}

}  // namespace torchext::cuda
