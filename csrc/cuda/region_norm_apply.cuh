// Normalising every region by its statistics: the forward pass of region normalisation.
#pragma once

#include "region_statistics.cuh"

namespace torchext {
namespace {

constexpr int kApplyThreads = 128;
constexpr int kApplyChannels = 8;  // of a tile in contiguous tensors

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

}  // namespace
}  // namespace torchext
