// Where a modulated norm's scale and offset come from, and where their gradients go.
#pragma once

#include "../modulated_norm.h"
#include "region_statistics.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;

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

}  // namespace
}  // namespace torchext
