// The kernels around a partial convolution's convolution; see partial_conv.cu.
#pragma once

#include "../partial_conv.h"
#include "launch.cuh"
#include "quotient.cuh"
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
  int each;  // accesses of a thread: fewer than it can hold, where there would be few blocks

  template <typename T, int V>
  static Runs of(int64_t count, int64_t length) {
    Runs runs{count, length, 0, 2 * kUnroll<T>};
    do {
      runs.each /= 2;
      const int64_t per_block = int64_t{kThreads} * runs.each * V;
      runs.blocks = (length + per_block - 1) / per_block;
    } while (runs.each > 1 && count * runs.blocks < kEnoughBlocks);
    return runs;
  }
  __device__ int64_t run() const { return blockIdx.x / blocks; }
  // The u-th element of a thread's accesses; behind the run where there is none.
  template <int V>
  __device__ int64_t element(int u) const {
    const int64_t access = static_cast<int64_t>(blockIdx.x % blocks) * each + u;
    return u < each ? (access * kThreads + threadIdx.x) * V : length;
  }
};

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
    const int64_t i = runs.element<V>(u);
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
    const int64_t i = runs.element<V>(u);
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

template <int V, typename A>
__device__ __forceinline__ Vec<A, V> repeated(A value) {
  Vec<A, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) result[j] = value;
  return result;
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

  __device__ __forceinline__ A operator()(A raw, A scale, A updated,
                                          const ChannelEpilogue<A>& epilogue) const {
    A y = updated == A(0) ? A(0) : raw * scale + bias * updated;
    y = y * norm_weight + norm_bias;
    y = y > A(0) ? y : y * epilogue.negative_slope;
    return epilogue.mask_output ? masked(y, updated) : y;
  }
};

// The values of V channels.
template <int V, typename A>
struct ChannelVectors {
  Vec<A, V> bias, norm_weight, norm_bias;

  __device__ __forceinline__ ChannelVectors(const ChannelEpilogue<A>& epilogue, int64_t c)
      : bias(read(epilogue.bias, c, A(0))),
        norm_weight(read(epilogue.norm_weight, c, A(1))),
        norm_bias(read(epilogue.norm_bias, c, A(0))) {}
  __device__ __forceinline__ ChannelValues<A> operator[](int j) const {
    return {bias[j], norm_weight[j], norm_bias[j]};
  }

 private:
  __device__ static __forceinline__ Vec<A, V> read(const A* values, int64_t c, A absent) {
    return values != nullptr ? load<V>(values + c) : repeated<V>(absent);
  }
};

constexpr int64_t kMostPlanes = 8;

// Contiguous: `blocks` blocks for a plane's pixels, and `each` planes that share the maps' values.
struct PlaneShares {
  int64_t blocks, groups, each;
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    plane_epilogue_kernel(OutputMaps view, PlaneShares shares, const T* raw,
                          const accumulate_t<T>* scale, const accumulate_t<T>* updated,
                          ChannelEpilogue<accumulate_t<T>> epilogue, T* y) {
  using A = accumulate_t<T>;
  const int64_t pixel = (blockIdx.x % shares.blocks * kThreads + threadIdx.x) * V;
  if (pixel >= view.pixels) return;
  const int64_t group = blockIdx.x / shares.blocks;
  const int64_t image = group / shares.groups;
  const int64_t first = (group - image * shares.groups) * shares.each;
  const int64_t last = min(first + shares.each, view.channels);
  const int64_t map = (view.shared ? 0 : image * view.pixels) + pixel;
  const int64_t start = image * view.channels * view.pixels + pixel;
  const Vec<A, V> k = load<V>(scale + map), known = load<V>(updated + map);
  for (int64_t base = first; base < last; base += kUnroll<T>) {
    Vec<T, V> values[kUnroll<T>];
#pragma unroll
    for (int u = 0; u < kUnroll<T>; ++u) {
      if (base + u < last) values[u] = load<V>(raw + start + (base + u) * view.pixels);
    }
#pragma unroll
    for (int u = 0; u < kUnroll<T>; ++u) {
      if (base + u >= last) continue;
      const ChannelValues<A> channel = ChannelVectors<1, A>(epilogue, base + u)[0];
      Vec<T, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        result[j] =
            from_accumulate<T>(channel(to_accumulate(values[u][j]), k[j], known[j], epilogue));
      }
      store<V>(y + start + (base + u) * view.pixels, result);
    }
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pixel_epilogue_kernel(Runs runs, OutputMaps view, const T* raw, const accumulate_t<T>* scale,
                          const accumulate_t<T>* updated, ChannelEpilogue<accumulate_t<T>> epilogue,
                          T* y) {
  using A = accumulate_t<T>;
  const int64_t image = runs.run();
  const int64_t map = view.shared ? 0 : image * view.pixels;
  Vec<T, V> values[kUnroll<T>];
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<V>(u);
    if (i < runs.length) values[u] = load<V>(raw + image * runs.length + i);
  }
#pragma unroll
  for (int u = 0; u < kUnroll<T>; ++u) {
    const int64_t i = runs.element<V>(u);
    if (i >= runs.length) continue;
    const int64_t pixel = quotient(i, view.channels);
    const A k = load(scale + map + pixel), known = load(updated + map + pixel);
    const ChannelVectors<V, A> channels(epilogue, i - pixel * view.channels);
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result[j] = from_accumulate<T>(channels[j](to_accumulate(values[u][j]), k, known, epilogue));
    }
    store<V>(y + image * runs.length + i, result);
  }
}

// What the epilogue did, for its gradient; y and raw may be null, the first where the slope is 1.
template <typename T>
struct EpilogueGradient {
  using A = accumulate_t<T>;
  const T* grad;
  const T* y;
  const T* raw;
  const A* scale;
  const A* updated;
  const A* norm_weight;
  A negative_slope;
  bool mask_output;

  template <int V>
  __device__ __forceinline__ Vec<A, V> weights_of(int64_t c) const {
    return norm_weight != nullptr ? load<V>(norm_weight + c) : repeated<V>(A(1));
  }
  // The raw output's gradients of V elements from `at` on, with their scale, updated mask and
  // channel's weight; each element's terms are added to its sums.
  template <int V>
  __device__ __forceinline__ Vec<T, V> pull_back(int64_t at, const Vec<A, V>& k,
                                                 const Vec<A, V>& known, const Vec<A, V>& weight,
                                                 A (&sums)[kSums][V]) const {
    const Vec<T, V> g = load<V>(grad + at);
    Vec<T, V> result = g, raws = g, out;  // without an activation the slope is 1 on either side
    if (y != nullptr) result = load<V>(y + at);
    if (raw != nullptr) raws = load<V>(raw + at);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A a = to_accumulate(g[j]);
      if (mask_output) a = masked(a, known[j]);
      a = to_accumulate(result[j]) > A(0) ? a : a * negative_slope;
      const A scaled = known[j] == A(0) ? A(0) : a * k[j];
      sums[0][j] += masked(a, known[j]);
      sums[1][j] += a;
      if (raw != nullptr && known[j] != A(0)) sums[2][j] += scaled * to_accumulate(raws[j]);
      out[j] = from_accumulate<T>(scaled * weight[j]);
    }
    return out;
  }
};

// Contiguous: a block takes every splits-th share of a plane, and leaves one part of its sums:
// parts (images * splits, 3, channels).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    plane_epilogue_backward_kernel(OutputMaps view, int64_t splits, EpilogueGradient<T> gradient,
                                   T* grad_raw, accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  __shared__ A scratch[kSums * (kThreads / kWarpSize)];
  const int64_t plane = blockIdx.x / splits;
  const int64_t split = blockIdx.x % splits;
  const int64_t image = plane / view.channels;
  const int64_t c = plane - image * view.channels;
  const int64_t map = view.shared ? 0 : image * view.pixels;
  const Vec<A, V> weight = repeated<V>(gradient.template weights_of<1>(c)[0]);
  A sums[kSums][V] = {};
  for (int64_t i = (split * kThreads + threadIdx.x) * V; i < view.pixels;
       i += splits * kThreads * V) {
    const int64_t at = plane * view.pixels + i;
    const Vec<A, V> k = load<V>(gradient.scale + map + i);
    const Vec<A, V> known = load<V>(gradient.updated + map + i);
    store<V>(grad_raw + at, gradient.template pull_back<V>(at, k, known, weight, sums));
  }
  A totals[kSums] = {};
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int j = 0; j < V; ++j) totals[s] += sums[s][j];
  }
  block_sum(totals, scratch);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    store(parts + ((image * splits + split) * kSums + s) * view.channels + c, totals[s]);
  }
}

// Channels last: `lanes` threads across a pixel's channels, V each, the others across pixels.
// parts (splits, 3, channels).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pixel_epilogue_backward_kernel(OutputMaps view, int64_t all_pixels, int64_t splits, int lanes,
                                   EpilogueGradient<T> gradient, T* grad_raw,
                                   accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  __shared__ A shared[kThreads * V];
  const int lane = threadIdx.x % lanes;
  const int rows = kThreads / lanes;
  const int row = threadIdx.x / lanes;
  const int64_t split = blockIdx.x % splits;
  const int64_t c = (static_cast<int64_t>(blockIdx.x / splits) * lanes + lane) * V;
  A sums[kSums][V] = {};
  if (c < view.channels) {
    const Vec<A, V> weight = gradient.template weights_of<V>(c);
    for (int64_t pixel = split * rows + row; pixel < all_pixels; pixel += splits * rows) {
      const int64_t at = view.shared ? pixel - quotient(pixel, view.pixels) * view.pixels : pixel;
      const int64_t element = pixel * view.channels + c;
      const Vec<A, V> k = repeated<V>(load(gradient.scale + at));
      const Vec<A, V> known = repeated<V>(load(gradient.updated + at));
      store<V>(grad_raw + element, gradient.template pull_back<V>(element, k, known, weight, sums));
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    if (s > 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < V; ++j) shared[j * kThreads + threadIdx.x] = sums[s][j];
    __syncthreads();
    if (row == 0 && c < view.channels) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A sum = 0;
        for (int r = 0; r < rows; ++r) sum += shared[j * kThreads + r * lanes + lane];
        store(parts + (split * kSums + s) * view.channels + c + j, sum);
      }
    }
  }
}

// totals[i] = the sum over parts of parts[part][i], in order.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    combine_epilogue_sums_kernel(const A* parts, int64_t count, int64_t length, A* totals) {
  __shared__ A shared[kThreads];
  const int lane = threadIdx.x % kWarpSize;
  const int row = threadIdx.x / kWarpSize;
  constexpr int kRows = kThreads / kWarpSize;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  A sum = 0;
  if (i < length) {
    for (int64_t part = row; part < count; part += kRows) sum += load(parts + part * length + i);
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (row != 0 || i >= length) return;
  for (int r = 1; r < kRows; ++r) sum += shared[r * kWarpSize + lane];
  store(totals + i, sum);
}

}  // namespace
}  // namespace torchext
