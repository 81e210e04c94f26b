// Modulated normalisation with statistics per channel, or none.
#pragma once

#include "modulated_norm_maps.cuh"

namespace torchext {
namespace {

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

}  // namespace
}  // namespace torchext
