// The convolution of a one-hot label map as table look-ups (torchext.label_conv2d).
//
//   y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap]
//
// Passes over memory and launches: forward writes y once (the floor) in 1; labels and the weights,
// of which a channel takes classes * k^2 numbers, come from the cache. Backward reads the gradient
// once per tap and tile of classes (from the cache, while a slice fits) in 2: partial sums per
// slice of pixels, then the slices added up in order.
//
// Launch: forward 256 threads across the pixels of an image, each for a tile of channels. Backward
// 256 threads per tap, tile of 32 channels by 32 classes and slice: a thread sums 4 of the tile's
// numbers over the slice's pixels, 32 of which lie in shared memory at a time.
#include <algorithm>

#include "tensors.cuh"

namespace torchext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxKernel = 7;
constexpr int kChannels = 32;  // of a forward block's tile, and of a backward block's
constexpr int kClasses = 32;
constexpr int kPixels = 32;
constexpr int kOwn = kChannels * kClasses / kThreads;  // sums of a backward thread
constexpr int64_t kMaxSlices = 32;

struct Problem {
  int64_t images, height, width, classes, channels;

  __host__ __device__ int64_t pixels() const { return height * width; }
};

// The label under a tap, or -1 outside the image and for a label that is no class.
__device__ __forceinline__ int label_at(const Problem& problem, const int32_t* plane, int64_t y,
                                        int64_t x) {
  if (y < 0 || y >= problem.height || x < 0 || x >= problem.width) return -1;
  const int label = load(plane + y * problem.width + x);
  return label >= 0 && label < problem.classes ? label : -1;
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(kThreads, kKernel > 3 ? 2 : 4)
    label_conv2d_kernel(Problem problem, const int32_t* labels, const accumulate_t<T>* weight,
                        const accumulate_t<T>* bias, T* out, int64_t pixel_blocks,
                        int64_t channel_tiles) {
  using A = accumulate_t<T>;
  constexpr int kTaps = kKernel * kKernel;
  const int64_t pixel_block = blockIdx.x % pixel_blocks;
  const int64_t rest = blockIdx.x / pixel_blocks;
  const int64_t image = rest / channel_tiles;
  const int64_t first = rest % channel_tiles * kChannels;
  const int64_t pixel = pixel_block * kThreads + threadIdx.x;
  if (pixel >= problem.pixels()) return;
  const int64_t y = pixel / problem.width;
  const int64_t x = pixel - y * problem.width;

  const int32_t* plane = labels + image * problem.pixels();
  int taps[kTaps];  // where each tap's number lies within a channel's, or -1
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    const int label =
        label_at(problem, plane, y + tap / kKernel - kKernel / 2, x + tap % kKernel - kKernel / 2);
    taps[tap] = label < 0 ? -1 : label * kTaps + tap;
  }
  const int64_t last = min(first + kChannels, problem.channels);
#pragma unroll 1  // else the taps' loads of several channels spill
  for (int64_t o = first; o < last; ++o) {
    const A* table = weight + o * problem.classes * kTaps;
    A sum = bias != nullptr ? load(bias + o) : A(0);
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if (taps[tap] >= 0) sum += load(table + taps[tap]);
    }
    store(out + (image * problem.channels + o) * problem.pixels() + pixel, from_accumulate<T>(sum));
  }
}

struct BackwardTiling {
  int64_t channel_tiles, class_tiles, slices, slice_pixels;
  int kernel;
};

// partials (slices, O, classes, taps).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    label_conv2d_backward_kernel(Problem problem, BackwardTiling tiling, const T* grad,
                                 const int32_t* labels, accumulate_t<T>* partials) {
  using A = accumulate_t<T>;
  __shared__ A gradients[kChannels][kPixels + 1];
  __shared__ int under[kPixels];
  const int taps = tiling.kernel * tiling.kernel;
  const int tap = blockIdx.x % taps;
  int64_t rest = blockIdx.x / taps;
  const int64_t first_class = rest % tiling.class_tiles * kClasses;
  rest /= tiling.class_tiles;
  const int64_t first_channel = rest % tiling.channel_tiles * kChannels;
  const int64_t slice = rest / tiling.channel_tiles;
  const int dy = tap / tiling.kernel - tiling.kernel / 2;
  const int dx = tap % tiling.kernel - tiling.kernel / 2;

  const int lane = threadIdx.x % kPixels;
  const int row = threadIdx.x / kPixels;
  A sums[kOwn] = {};  // of channel `lane` and classes row, row + 8, ...
  const int64_t all = problem.images * problem.pixels();
  const int64_t end = min((slice + 1) * tiling.slice_pixels, all);
  for (int64_t begin = slice * tiling.slice_pixels; begin < end; begin += kPixels) {
    const int64_t index = begin + lane;
    const int64_t image = index / problem.pixels();
    const int64_t pixel = index - image * problem.pixels();
    for (int c = row; c < kChannels; c += kThreads / kPixels) {
      const int64_t o = first_channel + c;
      gradients[c][lane] =
          index < end && o < problem.channels
              ? to_accumulate(
                    load(grad + (image * problem.channels + o) * problem.pixels() + pixel))
              : A(0);
    }
    if (row == 0) {
      const int64_t y = pixel / problem.width;
      under[lane] = index < end ? label_at(problem, labels + image * problem.pixels(), y + dy,
                                           pixel - y * problem.width + dx)
                                : -1;
    }
    __syncthreads();
    for (int p = 0; p < kPixels; ++p) {
      const A value = gradients[lane][p];
      const int64_t label = under[p] - first_class;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (label == row + i * (kThreads / kPixels)) sums[i] += value;
      }
    }
    __syncthreads();
  }
  const int64_t o = first_channel + lane;
  if (o >= problem.channels) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t label = first_class + row + i * (kThreads / kPixels);
    if (label >= problem.classes) continue;
    store(partials + ((slice * problem.channels + o) * problem.classes + label) * taps + tap,
          sums[i]);
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    label_conv2d_backward_total_kernel(const A* partials, int64_t slices, int64_t results,
                                       A* grad_weight) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= results) return;
  A sum = 0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += load(partials + slice * results + i);
  store(grad_weight + i, sum);
}

Problem describe(const Tensor& labels, int64_t classes, int64_t channels, int64_t kernel) {
  expects(labels.dim() == 3 && labels.size(1) > 0 && labels.size(2) > 0,
          "labels: expected the shape (N, H, W)");
  expects_plain(labels, ScalarType::Int, labels.numel(), "labels: expected contiguous int32");
  expects(kernel % 2 == 1 && kernel >= 1 && kernel <= kMaxKernel,
          "weight: expected an odd kernel size up to 7");
  expects(classes > 0 && channels > 0 && classes < (int64_t{1} << 31) / (kMaxKernel * kMaxKernel),
          "weight: expected at least one class and channel");
  return {labels.size(0), labels.size(1), labels.size(2), classes, channels};
}

Tensor label_conv2d_cuda(const Tensor& labels, const Tensor& weight,
                         const std::optional<Tensor>& bias, ScalarType dtype, bool) {
  const DeviceGuard guard(labels);
  expects(weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.is_contiguous(),
          "weight: expected a contiguous (O, classes, k, k) tensor");
  const Problem problem = describe(labels, weight.size(1), weight.size(0), weight.size(2));
  const ScalarType type = weight.scalar_type();
  expects(type == ScalarType::Float || type == ScalarType::Double,
          "weight: expected float32 or float64");
  expects((dtype == ScalarType::Double) == (type == ScalarType::Double),
          "dtype: expected float64 with a weight of float64 only");
  expects_plain(bias, type, problem.channels, "bias: expected contiguous (O) like weight");
  Tensor y =
      new_tensor(weight, {problem.images, problem.channels, problem.height, problem.width}, dtype);
  const int64_t pixel_blocks = (problem.pixels() + kThreads - 1) / kThreads;
  const int64_t channel_tiles = (problem.channels + kChannels - 1) / kChannels;
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    auto run = [&](auto kernel) {
      launch(label_conv2d_kernel<T, decltype(kernel)::value>,
             grid_of(problem.images * channel_tiles * pixel_blocks), dim3(kThreads), 0,
             current_stream(labels), problem, data<const int32_t>(labels), data<const A>(weight),
             data<const A>(bias), data<T>(y), pixel_blocks, channel_tiles);
    };
    switch (weight.size(3)) {
      case 1:
        return run(std::integral_constant<int, 1>{});
      case 3:
        return run(std::integral_constant<int, 3>{});
      case 5:
        return run(std::integral_constant<int, 5>{});
      default:
        return run(std::integral_constant<int, 7>{});
    }
  });
  return y;
}

Tensor label_conv2d_backward_cuda(const Tensor& grad, const Tensor& labels, int64_t classes,
                                  int64_t kernel) {
  const DeviceGuard guard(labels);
  expects(grad.dim() == 4 && grad.is_contiguous(), "grad: expected a contiguous (N, O, H, W)");
  const Problem problem = describe(labels, classes, grad.size(1), kernel);
  expects(grad.numel() == problem.images * problem.channels * problem.pixels() &&
              grad.size(3) == problem.width,
          "grad: expected the height and width of labels");
  const int64_t taps = kernel * kernel;
  const int64_t results = problem.channels * classes * taps;
  Tensor grad_weight =
      new_tensor(grad, {problem.channels, classes, kernel, kernel}, accumulate_type(grad));
  BackwardTiling tiling{};
  tiling.channel_tiles = (problem.channels + kChannels - 1) / kChannels;
  tiling.class_tiles = (classes + kClasses - 1) / kClasses;
  tiling.kernel = static_cast<int>(kernel);
  const int64_t all = problem.images * problem.pixels();
  const int64_t steps = std::max<int64_t>(1, (all + kPixels - 1) / kPixels);
  const int64_t wanted = std::max<int64_t>(1, std::min(kMaxSlices, steps / 16));
  tiling.slice_pixels = (steps + wanted - 1) / wanted * kPixels;
  tiling.slices = std::max<int64_t>(1, (all + tiling.slice_pixels - 1) / tiling.slice_pixels);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    Tensor partials = new_tensor(grad, {tiling.slices * results}, accumulate_type(grad));
    launch(label_conv2d_backward_kernel<T>,
           grid_of(taps * tiling.class_tiles * tiling.channel_tiles * tiling.slices),
           dim3(kThreads), 0, current_stream(labels), problem, tiling, data<const T>(grad),
           data<const int32_t>(labels), data<A>(partials));
    launch(label_conv2d_backward_total_kernel<A>, grid_of((results + kThreads - 1) / kThreads),
           dim3(kThreads), 0, current_stream(labels), data<const A>(partials), tiling.slices,
           results, data<A>(grad_weight));
  });
  return grad_weight;
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  m.impl("label_conv2d", TORCH_BOX(&label_conv2d_cuda));
  m.impl("label_conv2d_backward", TORCH_BOX(&label_conv2d_backward_cuda));
}

}  // namespace torchext::cuda
