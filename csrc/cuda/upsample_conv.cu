// The last step of a convolution of an up-sampled image by phases:
//
//   y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend
//
// Passes over memory: interleave_phases reads the phases (and the addend) and writes y in 1 launch,
// 2T (3T), the floor; its backward reads the gradient and writes the phases' in 1 launch, 2T, the
// floor. Launch: 256 threads, each one element of y, or of the phases.
#include <algorithm>
#include <vector>

#include "tensors.cuh"

namespace torchext::cuda {
namespace {

using Sizes = std::vector<int64_t>;
constexpr int kThreads = 256;

// Low resolution (h, w) of the phases and high resolution (H, W), C channels each phase.
struct Phases {
  int64_t N, C, h, w, H, W;
  int64_t row_offset[2], column_offset[2];

  Phases(int64_t images, int64_t channels, int64_t height, int64_t width, const Sizes& offsets)
      : N(images), C(channels), h(height), w(width) {
    expects(offsets.size() == 4, "offsets: expected four");
    for (int64_t i = 0; i < 2; ++i) {
      row_offset[i] = offsets[i];
      column_offset[i] = offsets[2 + i];
    }
    H = 2 * (h - std::max(offsets[0], offsets[1]));
    W = 2 * (w - std::max(offsets[2], offsets[3]));
    expects(*std::min_element(offsets.begin(), offsets.end()) >= 0 && H > 0 && W > 0,
            "offsets: expected 0 to less than the phases' size");
  }
};

// An element's place in a tensor of (channels, height, width), in either memory format.
struct Place {
  int64_t n, c, row, column;

  template <bool kChannelsLast>
  static __device__ Place of(int64_t index, int64_t channels, int64_t height, int64_t width) {
    if (kChannelsLast) {
      const int64_t pixel = index / channels;
      return {pixel / width / height, index % channels, pixel / width % height, pixel % width};
    }
    const int64_t plane = index / width / height;
    return {plane / channels, plane % channels, index / width % height, index % width};
  }
  template <bool kChannelsLast>
  __device__ int64_t index(int64_t channels, int64_t height, int64_t width) const {
    return kChannelsLast ? ((n * height + row) * width + column) * channels + c
                         : ((n * channels + c) * height + row) * width + column;
  }
};

template <typename T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    interleave_phases_kernel(Phases p, const T* phases, const accumulate_t<T>* bias,
                             const T* addend, T* y) {
  using A = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= p.N * p.C * p.H * p.W) return;
  const Place to = Place::of<kChannelsLast>(at, p.C, p.H, p.W);
  const int a = to.row % 2, b = to.column % 2;
  const Place from{to.n, (2 * a + b) * p.C + to.c,
                   to.row / 2 + (a ? p.row_offset[1] : p.row_offset[0]),
                   to.column / 2 + (b ? p.column_offset[1] : p.column_offset[0])};
  A value = to_accumulate(load(phases + from.index<kChannelsLast>(4 * p.C, p.h, p.w)));
  if (bias != nullptr) value += load(bias + to.c);
  if (addend != nullptr) value += to_accumulate(load(addend + at));
  store(y + at, from_accumulate<T>(value));
}

template <typename T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    interleave_phases_backward_kernel(Phases p, const T* grad, T* phases) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= 4 * p.N * p.C * p.h * p.w) return;
  const Place from = Place::of<kChannelsLast>(at, 4 * p.C, p.h, p.w);
  const int phase = static_cast<int>(from.c / p.C), a = phase / 2, b = phase % 2;
  const Place to{from.n, from.c % p.C, 2 * (from.row - (a ? p.row_offset[1] : p.row_offset[0])) + a,
                 2 * (from.column - (b ? p.column_offset[1] : p.column_offset[0])) + b};
  const bool taken = to.row >= 0 && to.row < p.H && to.column >= 0 && to.column < p.W;
  store(phases + at, taken ? load(grad + to.index<kChannelsLast>(p.C, p.H, p.W))
                           : from_accumulate<T>(accumulate_t<T>(0)));
}

// A new tensor of these sizes, in channels-last order if wanted.
Tensor new_image(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W,
                 bool channels_last) {
  if (!channels_last) return new_tensor(like, {N, C, H, W}, like.scalar_type());
  const Tensor image = new_tensor(like, {N, H, W, C}, like.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(image, 1, 3), 2, 3);
}

template <typename F>
void dispatch_format(bool channels_last, F&& f) {
  if (channels_last) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

Tensor interleave_phases_cuda(const Tensor& phases, const std::optional<Tensor>& bias,
                              const std::optional<Tensor>& addend, const Sizes& offsets) {
  const bool channels_last = is_channels_last(phases);
  expects(phases.size(1) % 4 == 0, "phases: expected four times the output's channels");
  const Phases p(phases.size(0), phases.size(1) / 4, phases.size(2), phases.size(3), offsets);
  expects_plain(bias, accumulate_type(phases), p.C, "bias: expected a number per channel");
  const DeviceGuard guard(phases);
  Tensor y = new_image(phases, p.N, p.C, p.H, p.W, channels_last);
  if (addend.has_value()) {
    expects(addend->scalar_type() == phases.scalar_type() && addend->dim() == 4 &&
                addend->size(0) == p.N && addend->size(1) == p.C && addend->size(2) == p.H &&
                addend->size(3) == p.W,
            "addend: expected the result's shape and dtype");
    for (int64_t dim = 0; dim < 4; ++dim)
      expects(
          addend->numel() == 0 || addend->size(dim) == 1 || addend->stride(dim) == y.stride(dim),
          "addend: expected the phases' memory format");
  }
  dispatch_floating(phases.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_format(channels_last, [&](auto format) {
      launch(interleave_phases_kernel<T, decltype(format)::value>,
             grid_of((p.N * p.C * p.H * p.W + kThreads - 1) / kThreads), dim3(kThreads), 0,
             current_stream(phases), p, data<const T>(phases), data<const accumulate_t<T>>(bias),
             data<const T>(addend), data<T>(y));
    });
  });
  return y;
}

Tensor interleave_phases_backward_cuda(const Tensor& grad, const Sizes& offsets, int64_t height,
                                       int64_t width) {
  const bool channels_last = is_channels_last(grad);
  const Phases p(grad.size(0), grad.size(1), height, width, offsets);
  expects(grad.size(2) == p.H && grad.size(3) == p.W, "grad: expected the result's shape");
  const DeviceGuard guard(grad);
  Tensor phases = new_image(grad, p.N, 4 * p.C, height, width, channels_last);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_format(channels_last, [&](auto format) {
      launch(interleave_phases_backward_kernel<T, decltype(format)::value>,
             grid_of((4 * p.N * p.C * p.h * p.w + kThreads - 1) / kThreads), dim3(kThreads), 0,
             current_stream(grad), p, data<const T>(grad), data<T>(phases));
    });
  });
  return phases;
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  m.impl("interleave_phases", TORCH_BOX(&interleave_phases_cuda));
  m.impl("interleave_phases_backward", TORCH_BOX(&interleave_phases_backward_cuda));
}

}  // namespace torchext::cuda
