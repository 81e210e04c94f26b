// What the walk of dual attention does with each element; see dual_attention.cu.
#pragma once

#include "channel_walk.cuh"

namespace torchext {
namespace {

template <typename T, int V, bool kChannelsLast>
struct Scale {
  using A = accumulate_t<T>;
  const A* gate;
  const A* attention;

  __device__ __forceinline__ Vec<A, V> along(const Place& at) const {
    return load<V>(kChannelsLast ? gate + at.row : attention + at.pixel);
  }
  // gate + attention of V elements
  __device__ __forceinline__ Vec<A, V> operator()(Vec<A, V> scale, const Place& at) const {
    const A other = load(kChannelsLast ? attention + at.pixel : gate + at.row);
#pragma unroll
    for (int j = 0; j < V; ++j) scale[j] += other;
    return scale;
  }
};

template <typename T, int V, bool kChannelsLast>
struct Forward {
  using A = accumulate_t<T>;
  using Gathered = Nothing<A>;
  static constexpr bool kSums = false;
  static constexpr int kUnroll = 4;
  struct Loaded {
    Vec<T, V> high, low;
  };
  using Along = Vec<A, V>;
  const T* high;
  const T* low;
  Scale<T, V, kChannelsLast> scale;
  T* y;
  A slope;

  __device__ __forceinline__ Along along(const Place& at) const { return scale.along(at); }
  __device__ __forceinline__ Loaded load(const Place& at) const {
    return {torchext::load<V>(high + at.offset), torchext::load<V>(low + at.offset)};
  }
  __device__ __forceinline__ void use(const Loaded& loaded, const Along& along, const Place& at,
                                      A (&)[V]) const {
    const Vec<A, V> scales = scale(along, at);
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A mixed = to_accumulate(loaded.high[j]) + to_accumulate(loaded.low[j]) * scales[j];
      result[j] = from_accumulate<T>(mixed > A(0) ? mixed : slope * mixed);
    }
    store<V>(y + at.offset, result);
  }
  __device__ __forceinline__ void finish(const Gathered&, int64_t, int64_t, int64_t) const {}
};

template <typename T, int V, bool kChannelsLast>
struct Backward {
  using A = accumulate_t<T>;
  using Gathered = Sum<A>;
  static constexpr bool kSums = true;
  static constexpr int kUnroll = 2;  // of three maps each
  struct Loaded {
    Vec<T, V> grad, y, low;
  };
  using Along = Vec<A, V>;
  const T* grad;
  const T* y;
  const T* low;
  Scale<T, V, kChannelsLast> scale;
  T* grad_high;
  T* grad_low;
  A* grad_attention;
  int64_t pixels;
  A slope;

  __device__ __forceinline__ Along along(const Place& at) const { return scale.along(at); }
  __device__ __forceinline__ Loaded load(const Place& at) const {
    return {torchext::load<V>(grad + at.offset), torchext::load<V>(y + at.offset),
            torchext::load<V>(low + at.offset)};
  }
  __device__ __forceinline__ void use(const Loaded& loaded, const Along& along, const Place& at,
                                      A (&values)[V]) const {
    const Vec<A, V> scales = scale(along, at);
    Vec<T, V> high, low_result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A given = to_accumulate(loaded.grad[j]);
      const A mixed = to_accumulate(loaded.y[j]) > A(0) ? given : slope * given;
      high[j] = from_accumulate<T>(mixed);
      low_result[j] = from_accumulate<T>(mixed * scales[j]);
      values[j] = mixed * to_accumulate(loaded.low[j]);
    }
    store<V>(grad_high + at.offset, high);
    store<V>(grad_low + at.offset, low_result);
  }
  __device__ __forceinline__ void finish(const Gathered& gathered, int64_t image, int64_t pixel,
                                         int64_t) const {
    store(grad_attention + image * pixels + pixel, gathered.sum);
  }
};

}  // namespace
}  // namespace torchext
