// Partial convolution around PyTorch's convolution (arXiv 1804.07723, arXiv 1811.11718):
//
//   y = conv(x * m) * scale + bias * updated,  scale and updated from the mask's window sums
//
// Passes over memory (T = the feature map, maps of one channel not counted) and launches:
//   mask_window                     a mask of one channel: none, in 1. Of more: read once, in 2.
//   mask_product                    reads T, writes T in 1 (the floor of an unfused product).
//   partial_conv_epilogue           reads the raw output, writes the result, in 1: 2T, the floor.
//   partial_conv_epilogue_backward  reads the gradient, writes the raw output's: 2T, the floor; the
//                                   bias's gradient on the way, its parts added up in a 2nd.
//
// Launch: 256 threads. Elementwise kernels: a thread takes accesses of 128 bits of a plane
// (contiguous) or of an image (channels last). mask_window: a block takes a piece of an output row,
// sums the window's rows into shared column sums, then adds up columns: k + k additions per pixel.
#include <algorithm>
#include <tuple>
#include <vector>

#include "reduce.cuh"
#include "tensors.cuh"

namespace torchext::cuda {
namespace {

using Sizes = std::vector<int64_t>;

constexpr int kThreads = 256;
// Accesses of a thread; more of them spill for numbers of 64 and of 16 bits.
template <typename T>
constexpr int kUnroll = sizeof(T) == 4   ? 4
                        : sizeof(T) == 2 ? 2
                                         : 1;
constexpr int kMaxMasks = 64;

// The channels that each mask channel stands for, as a kernel argument; none: one each.
struct MaskChannels {
  int count;
  int channels[kMaxMasks];
};

MaskChannels describe_channels(const Sizes& mask_channels, int64_t masks) {
  expects(mask_channels.empty() || static_cast<int64_t>(mask_channels.size()) == masks,
          "mask_channels: expected a number for each mask channel");
  expects(mask_channels.size() <= kMaxMasks, "mask_channels: expected at most 64 numbers");
  MaskChannels result{static_cast<int>(mask_channels.size()), {}};
  std::copy(mask_channels.begin(), mask_channels.end(), result.channels);
  return result;
}

// ---- mask window --------------------------------------------------------------------------------

// A window over two or three dimensions, as over three.
struct Window {
  int64_t input[3], output[3], kernel[3], stride[3], padding[3], dilation[3];

  Window(const Tensor& mask, const Sizes& kernel_size, const Sizes& strides, const Sizes& paddings,
         const Sizes& dilations, const Sizes& output_size) {
    const size_t dimensions = mask.dim() - 2;
    for (const Sizes* sizes : {&kernel_size, &strides, &paddings, &dilations, &output_size})
      expects(sizes->size() == dimensions, "mask: expected one size per spatial dimension");
    for (size_t i = 0; i < 3; ++i) {
      const bool given = i + dimensions >= 3;
      const size_t from = i + dimensions - 3;
      input[i] = given ? mask.size(2 + from) : 1;
      output[i] = given ? output_size[from] : 1;
      kernel[i] = given ? kernel_size[from] : 1;
      stride[i] = given ? strides[from] : 1;
      padding[i] = given ? paddings[from] : 0;
      dilation[i] = given ? dilations[from] : 1;
      expects(output[i] >= 0 && kernel[i] > 0 && stride[i] > 0 && padding[i] >= 0 &&
                  dilation[i] > 0 && input[i] > 0,
              "mask: expected positive sizes, and a padding of at least 0");
    }
  }
  __host__ __device__ int64_t input_pixels() const { return input[0] * input[1] * input[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  // Column sums that `outputs` neighbouring windows need.
  int64_t columns(int64_t outputs) const {
    return (outputs - 1) * stride[2] + dilation[2] * (kernel[2] - 1) + 1;
  }
};

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

std::tuple<Tensor, Tensor> mask_window_cuda(const Tensor& mask, const Sizes& channels_of_x,
                                            const Sizes& kernel_size, const Sizes& stride,
                                            const Sizes& padding, const Sizes& dilation,
                                            const Sizes& output_size, bool ratio, bool bias,
                                            double eps) {
  expects(mask.dim() == 4 || mask.dim() == 5, "mask: expected four or five dimensions");
  const bool channels_last = mask.dim() == 4 && is_channels_last(mask);
  expects(channels_last || mask.is_contiguous(), "mask: expected a contiguous mask");
  const Window window(mask, kernel_size, stride, padding, dilation, output_size);
  const int64_t N = mask.size(0), G = mask.size(1), pixels = window.input_pixels();
  const Sizes mask_channels = grouped(channels_of_x);
  const MaskChannels counts = describe_channels(mask_channels, G);
  int64_t channels = counts.count > 0 ? 0 : G;
  for (int64_t number : mask_channels) channels += number;
  const DeviceGuard guard(mask);
  const ScalarType type = accumulate_type(mask);
  Sizes shape{N, 1};
  shape.insert(shape.end(), output_size.begin(), output_size.end());
  Tensor scale = torch::stable::new_empty(mask, shape, type);
  Tensor updated = torch::stable::new_empty(mask, shape, type);

  dispatch_floating(mask.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const WindowRule<A> rule{ratio, bias, static_cast<A>(channels) * static_cast<A>(window.taps()),
                             static_cast<A>(eps)};
    // As many outputs per block as their column sums fit into shared memory without opting in.
    constexpr int64_t kColumns = 48 * 1024 / sizeof(A);
    int64_t outputs = std::min<int64_t>(kThreads, window.output[2]);
    while (outputs > 1 && window.columns(outputs) > kColumns) outputs = (outputs + 1) / 2;
    expects(outputs == 0 || window.columns(outputs) <= kColumns,
            "dilation: expected a window of at most 6144 columns");
    const int64_t pieces = outputs == 0 ? 0 : (window.output[2] + outputs - 1) / outputs;
    const dim3 grid = grid_of(N * window.output[0] * window.output[1] * pieces);
    const auto run = [&](auto source, const Tensor& input, A factor) {
      using S = typename decltype(source)::type;
      launch(mask_window_kernel<S>, grid, dim3(kThreads),
             sizeof(A) * static_cast<size_t>(outputs == 0 ? 0 : window.columns(outputs)),
             current_stream(mask), window, data<const S>(input), factor, rule, outputs, pieces,
             data<A>(scale), data<A>(updated));
    };
    if (G == 1) {
      run(Type<T>{}, mask, static_cast<A>(channels));
    } else {
      Tensor sums = new_tensor(mask, {N, pixels}, type);
      launch(mask_channel_sum_kernel<T>, grid_of((N * pixels + kThreads - 1) / kThreads),
             dim3(kThreads), 0, current_stream(mask), data<const T>(mask), data<A>(sums), N, G,
             pixels, channels_last, counts);
      run(Type<A>{}, sums, A(1));
    }
  });
  return {scale, updated};
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

// ---- entry points -------------------------------------------------------------------------------

void launch_mask_product(const Tensor& x, const Tensor& mask, const Sizes& channels_of_x,
                         const Tensor& y) {
  const Sizes mask_channels = grouped(channels_of_x);
  const bool channels_last = is_channels_last(x);
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  expects(mask.dim() == 4 && (mask.size(0) == N || mask.size(0) == 1) &&
              mask.size(2) == x.size(2) && mask.size(3) == x.size(3) &&
              mask.scalar_type() == x.scalar_type(),
          "mask: expected x's dtype, height and width, and its batch size or 1");
  const int64_t G = mask.size(1);
  const bool each = G == C && (mask_channels.empty() || C == 1);
  expects(each || G == 1 || !mask_channels.empty(), "mask: expected one channel, or x's");
  int64_t total = 0;
  for (int64_t channels : mask_channels) total += channels;
  expects(each || G == 1 || total == C, "mask_channels: expected x's channels in all");
  expects(each ? is_channels_last(mask) == channels_last : mask.is_contiguous(),
          "mask: expected a contiguous mask, or x's memory format if it has x's channels");
  const MaskView view{C,    P,
                      G,    mask.size(0) == 1 && N != 1,
                      each, describe_channels(each || G == 1 ? Sizes{} : mask_channels, G)};
  const DeviceGuard guard(x);
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    const T* in = data<const T>(x);
    const T* masks = data<const T>(mask);
    T* out = data<T>(y);
    const bool reads_mask_wide = !channels_last || each;
    const int64_t extent = channels_last ? C : P;
    const int width =
        reads_mask_wide ? vector_width(extent, in, masks, out) : vector_width(extent, in, out);
    dispatch_access<T>(width == kWidest, channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      const Runs runs = channels_last ? Runs::of<T, V>(N, C * P) : Runs::of<T, V>(N * C, P);
      launch(mask_product_kernel<T, V, decltype(format)::value>, grid_of(runs.count * runs.blocks),
             dim3(kThreads), 0, current_stream(x), runs, view, in, masks, out);
    });
  });
}

Tensor mask_product_cuda(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  Tensor y = torch::stable::empty_like(x);
  launch_mask_product(x, mask, mask_channels, y);
  return y;
}

void mask_product_in_place_cuda(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  launch_mask_product(x, mask, mask_channels, x);
}

OutputView describe_output(const Tensor& raw, const Tensor& scale, const Tensor& updated) {
  const int64_t N = raw.size(0), P = raw.size(2) * raw.size(3);
  expects(scale.dim() == 4 && (scale.size(0) == N || scale.size(0) == 1),
          "scale: expected the raw output's batch size or 1");
  const ScalarType type = accumulate_type(raw);
  expects_plain(scale, type, scale.size(0) * P, "scale: expected contiguous (N or 1, 1, H, W)");
  expects_plain(updated, type, scale.size(0) * P, "updated: expected the shape of scale");
  return {raw.size(1), P, scale.size(0) == 1 && N != 1};
}

void launch_epilogue(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& norm_weight,
                     const std::optional<Tensor>& norm_bias, double negative_slope,
                     bool mask_output, const Tensor& y) {
  const bool channels_last = is_channels_last(raw);
  const OutputView view = describe_output(raw, scale, updated);
  const int64_t N = raw.size(0), C = view.channels, P = view.pixels;
  const ScalarType type = accumulate_type(raw);
  expects_plain(bias, type, C, "bias: expected a number per channel");
  expects_plain(norm_weight, type, C, "norm_weight: expected a number per channel");
  expects_plain(norm_bias, type, C, "norm_bias: expected a number per channel");
  expects(norm_weight.has_value() == norm_bias.has_value(),
          "norm_bias: expected both norm_weight and norm_bias, or none");
  const DeviceGuard guard(raw);
  dispatch_floating(raw.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    const T* in = data<const T>(raw);
    const A* scales = data<const A>(scale);
    const A* masks = data<const A>(updated);
    T* out = data<T>(y);
    const ChannelEpilogue<A> epilogue{data<const A>(bias), data<const A>(norm_weight),
                                      data<const A>(norm_bias), static_cast<A>(negative_slope),
                                      mask_output};
    const int width =
        channels_last ? vector_width(C, in, out) : vector_width(P, in, scales, masks, out);
    dispatch_access<T>(width == kWidest, channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      const Runs runs = channels_last ? Runs::of<T, V>(N, C * P) : Runs::of<T, V>(N * C, P);
      launch(partial_conv_epilogue_kernel<T, V, decltype(format)::value>,
             grid_of(runs.count * runs.blocks), dim3(kThreads), 0, current_stream(raw), runs, view,
             in, scales, masks, epilogue, out);
    });
  });
}

Tensor partial_conv_epilogue_cuda(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                                  const std::optional<Tensor>& bias,
                                  const std::optional<Tensor>& norm_weight,
                                  const std::optional<Tensor>& norm_bias, double negative_slope,
                                  bool mask_output) {
  Tensor y = torch::stable::empty_like(raw);
  launch_epilogue(raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output,
                  y);
  return y;
}

void partial_conv_epilogue_in_place_cuda(const Tensor& raw, const Tensor& scale,
                                         const Tensor& updated, const std::optional<Tensor>& bias,
                                         const std::optional<Tensor>& norm_weight,
                                         const std::optional<Tensor>& norm_bias,
                                         double negative_slope, bool mask_output) {
  launch_epilogue(raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output,
                  raw);
}

std::tuple<Tensor, Tensor> partial_conv_epilogue_backward_cuda(const Tensor& grad,
                                                               const Tensor& scale,
                                                               const Tensor& updated) {
  const bool channels_last = is_channels_last(grad);
  const OutputView view = describe_output(grad, scale, updated);
  const int64_t N = grad.size(0), C = view.channels, P = view.pixels;
  const ScalarType type = accumulate_type(grad);
  const DeviceGuard guard(grad);
  Tensor grad_raw = torch::stable::empty_like(grad);
  Tensor grad_bias = new_tensor(grad, {C}, type);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    const T* in = data<const T>(grad);
    const A* scales = data<const A>(scale);
    const A* masks = data<const A>(updated);
    T* out = data<T>(grad_raw);
    const int width =
        channels_last ? vector_width(C, in, out) : vector_width(P, in, scales, masks, out);
    dispatch_access<T>(width == kWidest, channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      // Enough blocks for a large device, few enough that their parts are a small tensor.
      constexpr int64_t kBlocks = 2048;
      int64_t count = 0;
      Tensor parts;
      if constexpr (decltype(format)::value) {
        const int64_t vectors = (C + V - 1) / V;
        int lanes = 1;
        while (lanes < 32 && lanes < vectors) lanes *= 2;
        const int64_t groups = (vectors + lanes - 1) / lanes;
        const int64_t rows = kThreads / lanes;
        count = std::max<int64_t>(
            1, std::min((N * P + rows - 1) / rows, std::max<int64_t>(1, kBlocks / groups)));
        parts = new_tensor(grad, {count, C}, type);
        launch(pixel_epilogue_backward_kernel<T, V>, grid_of(groups * count), dim3(kThreads), 0,
               current_stream(grad), view, N * P, count, lanes, in, scales, masks, out,
               data<A>(parts));
      } else {
        const int64_t shares = (P + kThreads * V - 1) / (kThreads * V);
        const int64_t wanted = std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, N * C));
        const int64_t splits = std::max<int64_t>(1, std::min(shares, wanted));
        count = N * splits;
        parts = new_tensor(grad, {count, C}, type);
        launch(plane_epilogue_backward_kernel<T, V>, grid_of(N * C * splits), dim3(kThreads), 0,
               current_stream(grad), view, splits, in, scales, masks, out, data<A>(parts));
      }
      launch(combine_bias_gradient_kernel<A>, grid_of((C + kWarpSize - 1) / kWarpSize),
             dim3(kThreads), 0, current_stream(grad), data<const A>(parts), count, C,
             data<A>(grad_bias));
    });
  });
  return {grad_raw, grad_bias};
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  m.impl("mask_window", TORCH_BOX(&mask_window_cuda));
  m.impl("mask_product", TORCH_BOX(&mask_product_cuda));
  m.impl("mask_product_", TORCH_BOX(&mask_product_in_place_cuda));
  m.impl("partial_conv_epilogue", TORCH_BOX(&partial_conv_epilogue_cuda));
  m.impl("partial_conv_epilogue_", TORCH_BOX(&partial_conv_epilogue_in_place_cuda));
  m.impl("partial_conv_epilogue_backward", TORCH_BOX(&partial_conv_epilogue_backward_cuda));
}

}  // namespace torchext::cuda
