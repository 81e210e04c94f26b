// The gradient of region normalisation's input.
#pragma once

#include "region_norm_apply.cuh"

namespace torchext {
namespace {

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

}  // namespace
}  // namespace torchext
