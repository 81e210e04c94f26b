// Modulated normalisation with statistics per pixel.
#pragma once

#include "modulated_norm_maps.cuh"

namespace torchext {
namespace {

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

}  // namespace
}  // namespace torchext
