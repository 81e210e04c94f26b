// The kernels around a partial convolution's convolution; see partial_conv.cu.
#pragma once

#include "../partial_conv.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
// Accesses of a thread; more of them spill for numbers of 64 and of 16 bits.
template <typename T>
constexpr int kUnroll = sizeof(T) == 4   ? 4
                        : sizeof(T) == 2 ? 2
                                         : 1;

// The channels that each mask channel stands for, as a kernel argument; none: one each.
struct MaskChannels {
  int count;
  int channels[kMaxMaskChannels];
};

// ---- mask window --------------------------------------------------------------------------------

// How window sums become scale and updated mask.
template <typename A>
struct WindowRule {
  bool ratio, bias;
  A window, eps;
};

// The mask's channels added up, each as often as it counts.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    mask_channel_sum_kernel(const T* mask, accumulate_t<T>* sums, int64_t images, int64_t masks,
                            int64_t pixels, bool channels_last, MaskChannels counts) {
  using A = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= images * pixels) return;
  const int64_t image = at / pixels;
  const int64_t step = channels_last ? 1 : pixels;
  const T* value =
      mask + (channels_last ? at * masks : image * masks * pixels + at - image * pixels);
  A sum = 0;
  for (int64_t g = 0; g < masks; ++g) {
    const A factor = counts.count > 0 ? static_cast<A>(counts.channels[g]) : A(1);
    sum += factor * to_accumulate(load(value + g * step));
  }
  store(sums + at, sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    mask_window_kernel(Window window, const T* mask, accumulate_t<T> factor,
                       WindowRule<accumulate_t<T>> rule, int64_t outputs, int64_t pieces,
                       accumulate_t<T>* scale, accumulate_t<T>* updated) {
  using A = accumulate_t<T>;
  DYNAMIC_SHARED(A, columns);
  const int64_t piece = blockIdx.x % pieces;
  const int64_t row = blockIdx.x / pieces % window.output[1];
  const int64_t plane = blockIdx.x / pieces / window.output[1] % window.output[0];
  const int64_t image = blockIdx.x / pieces / window.output[1] / window.output[0];
  const T* const values = mask + image * window.input_pixels();
  const int64_t first_output = piece * outputs;
  const int64_t count =
      outputs < window.output[2] - first_output ? outputs : window.output[2] - first_output;
  const int64_t first_column = first_output * window.stride[2] - window.padding[2];
  const int64_t needed =
      (count - 1) * window.stride[2] + window.dilation[2] * (window.kernel[2] - 1) + 1;

  for (int64_t i = threadIdx.x; i < needed; i += kThreads) {
    const int64_t w = first_column + i;
    A sum = 0;
    if (w >= 0 && w < window.input[2]) {
      for (int64_t a = 0; a < window.kernel[0]; ++a) {
        const int64_t d = plane * window.stride[0] - window.padding[0] + a * window.dilation[0];
        if (d < 0 || d >= window.input[0]) continue;
        for (int64_t b = 0; b < window.kernel[1]; ++b) {
          const int64_t h = row * window.stride[1] - window.padding[1] + b * window.dilation[1];
          if (h < 0 || h >= window.input[1]) continue;
          sum += to_accumulate(load(values + (d * window.input[1] + h) * window.input[2] + w));
        }
      }
    }
    columns[i] = factor * sum;
  }
  __syncthreads();

  const int64_t out =
      ((image * window.output[0] + plane) * window.output[1] + row) * window.output[2] +
      first_output;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    A s = 0;
    for (int64_t k = 0; k < window.kernel[2]; ++k) {
      s += columns[i * window.stride[2] + k * window.dilation[2]];
    }
    A known, factor_of_raw;
    if (rule.ratio) {
      known = s < A(0) ? A(0) : s > A(1) ? A(1) : s;
      const A r = rule.window / (s + rule.eps) * known;
      factor_of_raw = rule.bias ? r * known : r;
    } else {
      known = s == A(0) ? A(0) : A(1);
      factor_of_raw = s == A(0) ? A(0) : A(1) / s;
    }
    store(scale + out + i, factor_of_raw);
    store(updated + out + i, known);
  }
}

// ---- elementwise kernels ------------------------------------------------------------------------

// A block's share of the runs of `length` elements that lie behind one another: planes of pixels,
// or images in channels-last order.
struct Runs {
  int64_t count, length, blocks;

  template <typename T, int V>
  static Runs of(int64_t count, int64_t length) {
    const int64_t per_block = int64_t{kThreads} * kUnroll<T> * V;
    return {count, length, (length + per_block - 1) / per_block};
  }
  __device__ int64_t run() const { return blockIdx.x / blocks; }
  // The u-th element of a thread's accesses.
  template <typename T, int V>
  __device__ int64_t element(int u) const {
    return ((static_cast<int64_t>(blockIdx.x % blocks) * kUnroll<T> + u) * kThreads + threadIdx.x) *
           V;
  }
};

__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (a < (int64_t{1} << 32) && b < (int64_t{1} << 32)) {
    return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  }
  return a / b;
}

template <typename A>
__device__ __forceinline__ A masked(A value, A mask) {
  return mask == A(0) ? A(0) : value * mask;
}

// Which element of the masks an element of x meets.
struct MaskView {
  int64_t channels, pixels, masks;
  bool shared;      // one mask for all images
  bool each;        // a mask for each channel of x
  MaskChannels of;  // else, if there is more than one

  __device__ int64_t mask_of(int64_t c) const {
    if (each) return c;
    int g = 0;
    for (int64_t end = 0; g + 1 < of.count; ++g) {
      end += of.channels[g];
      if (c < end) break;
    }
    return g;
  }
};

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    mask_product_kernel(Runs runs, MaskView view, const T* x, const T* mask, T* y) {
  using A = accumulate_t<T>;
  const int64_t run = runs.run();
  const int64_t image = kChannelsLast ? run : run / view.channels;
  const T* const masks = mask + (view.shared ? 0 : image * view.masks * view.pixels);
  const T* const plane =
      kChannelsLast ? masks : masks + view.mask_of(run - image * view.channels) * view.pixels;
  Vec<T, V> values[kUnroll<T>], factors[kUnroll<T>];
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<T, V>(u);
    if (i >= runs.length) continue;
    values[u] = load<V>(x + run * runs.length + i);
    if (!kChannelsLast || view.each) {
      factors[u] = load<V>(plane + i);
    } else {
      const int64_t pixel = quotient(i, view.channels);
      const int64_t c = i - pixel * view.channels;
      if (view.masks == 1) {
        const T factor = load(masks + pixel);
#pragma unroll
        for (int j = 0; j < V; ++j) factors[u][j] = factor;
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          factors[u][j] = load(masks + view.mask_of(c + j) * view.pixels + pixel);
        }
      }
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<T, V>(u);
    if (i >= runs.length) continue;
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result[j] =
          from_accumulate<T>(masked<A>(to_accumulate(values[u][j]), to_accumulate(factors[u][j])));
    }
    store<V>(y + run * runs.length + i, result);
  }
}

// What the epilogue does to a channel after the scale; the tensors' pointers may be null.
template <typename A>
struct ChannelEpilogue {
  const A* bias;
  const A* norm_weight;
  const A* norm_bias;
  A negative_slope;
  bool mask_output;
};

template <typename A>
struct ChannelValues {
  A bias, norm_weight, norm_bias;

  __device__ __forceinline__ ChannelValues() {}
  __device__ __forceinline__ ChannelValues(const ChannelEpilogue<A>& epilogue, int64_t c)
      : bias(epilogue.bias != nullptr ? load(epilogue.bias + c) : A(0)),
        norm_weight(epilogue.norm_weight != nullptr ? load(epilogue.norm_weight + c) : A(1)),
        norm_bias(epilogue.norm_bias != nullptr ? load(epilogue.norm_bias + c) : A(0)) {}
  __device__ __forceinline__ A operator()(A raw, A scale, A updated, A slope, bool remask) const {
    A y = updated == A(0) ? A(0) : raw * scale + bias * updated;
    y = y * norm_weight + norm_bias;
    y = y > A(0) ? y : y * slope;
    return remask ? masked(y, updated) : y;
  }
};

struct OutputView {
  int64_t channels, pixels;
  bool shared;  // one map for all images
};

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    partial_conv_epilogue_kernel(Runs runs, OutputView view, const T* raw,
                                 const accumulate_t<T>* scale, const accumulate_t<T>* updated,
                                 ChannelEpilogue<accumulate_t<T>> epilogue, T* y) {
  using A = accumulate_t<T>;
  const int64_t run = runs.run();
  const int64_t image = kChannelsLast ? run : run / view.channels;
  const int64_t map = view.shared ? 0 : image * view.pixels;
  ChannelValues<A> of_plane;
  if (!kChannelsLast) of_plane = ChannelValues<A>(epilogue, run - image * view.channels);
  Vec<T, V> values[kUnroll<T>];
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<T, V>(u);
    if (i < runs.length) values[u] = load<V>(raw + run * runs.length + i);
  }
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<T, V>(u);
    if (i >= runs.length) continue;
    Vec<T, V> result;
    if (kChannelsLast) {
      const int64_t pixel = quotient(i, view.channels);
      const int64_t c = i - pixel * view.channels;
      const A k = load(scale + map + pixel), known = load(updated + map + pixel);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const ChannelValues<A> channel(epilogue, c + j);
        result[j] = from_accumulate<T>(channel(to_accumulate(values[u][j]), k, known,
                                               epilogue.negative_slope, epilogue.mask_output));
      }
    } else {
      const Vec<A, V> k = load<V>(scale + map + i);
      const Vec<A, V> known = load<V>(updated + map + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        result[j] = from_accumulate<T>(of_plane(to_accumulate(values[u][j]), k[j], known[j],
                                                epilogue.negative_slope, epilogue.mask_output));
      }
    }
    store<V>(y + run * runs.length + i, result);
  }
}

// Contiguous: a block takes `steps` whole shares of a plane, and leaves one part of the bias's sum.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    plane_epilogue_backward_kernel(OutputView view, int64_t splits, const T* grad,
                                   const accumulate_t<T>* scale, const accumulate_t<T>* updated,
                                   T* grad_raw, accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  __shared__ A scratch[kThreads / kWarpSize];
  const int64_t plane = blockIdx.x / splits;
  const int64_t split = blockIdx.x % splits;
  const int64_t image = plane / view.channels;
  const int64_t map = view.shared ? 0 : image * view.pixels;
  A sum = 0;
  for (int64_t i = (split * kThreads + threadIdx.x) * V; i < view.pixels;
       i += splits * kThreads * V) {
    const Vec<T, V> g = load<V>(grad + plane * view.pixels + i);
    const Vec<A, V> k = load<V>(scale + map + i);
    const Vec<A, V> known = load<V>(updated + map + i);
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A value = to_accumulate(g[j]);
      sum += masked(value, known[j]);
      result[j] = from_accumulate<T>(masked(value, k[j]));
    }
    store<V>(grad_raw + plane * view.pixels + i, result);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    store(parts + (image * splits + split) * view.channels + plane % view.channels, sum);
  }
}

// Channels last: `lanes` threads across a pixel's channels, V each, the others across pixels.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pixel_epilogue_backward_kernel(OutputView view, int64_t all_pixels, int64_t splits, int lanes,
                                   const T* grad, const accumulate_t<T>* scale,
                                   const accumulate_t<T>* updated, T* grad_raw,
                                   accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  __shared__ A shared[kThreads * V];
  const int lane = threadIdx.x % lanes;
  const int rows = kThreads / lanes;
  const int row = threadIdx.x / lanes;
  const int64_t split = blockIdx.x % splits;
  const int64_t c = (static_cast<int64_t>(blockIdx.x / splits) * lanes + lane) * V;
  A sums[V] = {};
  if (c < view.channels) {
    for (int64_t pixel = split * rows + row; pixel < all_pixels; pixel += splits * rows) {
      const int64_t at = view.shared ? pixel - quotient(pixel, view.pixels) * view.pixels : pixel;
      const A k = load(scale + at), known = load(updated + at);
      const Vec<T, V> g = load<V>(grad + pixel * view.channels + c);
      Vec<T, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A value = to_accumulate(g[j]);
        sums[j] += masked(value, known);
        result[j] = from_accumulate<T>(masked(value, k));
      }
      store<V>(grad_raw + pixel * view.channels + c, result);
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) shared[j * kThreads + threadIdx.x] = sums[j];
  __syncthreads();
  if (row != 0 || c >= view.channels) return;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    A sum = 0;
    for (int r = 0; r < rows; ++r) sum += shared[j * kThreads + r * lanes + lane];
    store(parts + split * view.channels + c + j, sum);
  }
}

// grad_bias[c] = the sum over parts of parts[part][c], in order.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    combine_bias_gradient_kernel(const A* parts, int64_t count, int64_t channels, A* grad_bias) {
  __shared__ A shared[kThreads];
  const int lane = threadIdx.x % kWarpSize;
  const int row = threadIdx.x / kWarpSize;
  constexpr int kRows = kThreads / kWarpSize;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  A sum = 0;
  if (c < channels) {
    for (int64_t part = row; part < count; part += kRows) sum += load(parts + part * channels + c);
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (row != 0 || c >= channels) return;
  for (int r = 1; r < kRows; ++r) sum += shared[r * kWarpSize + lane];
  store(grad_bias + c, sum);
}

}  // namespace
}  // namespace torchext
