// The last step of a convolution of an up-sampled image by phases:
//
//   y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend
//
// Passes over memory: interleave_phases reads the phases (and the addend) and writes y in 1 launch,
// 2T (3T), the floor; its backward reads the gradient and writes the phases' in 1 launch, 2T, the
// floor. Launch: 256 threads, each one element of y, or of the phases.
#include "../upsample_conv.h"
#include "launch.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;

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

template <typename F>
void dispatch_format(bool channels_last, F&& f) {
  if (channels_last) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

void compute(const InterleavePhases& call) {
  const DeviceGuard guard(call.y);
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_format(call.channels_last, [&](auto format) {
      launch(interleave_phases_kernel<T, decltype(format)::value>,
             grid_of((call.y.numel() + kThreads - 1) / kThreads), dim3(kThreads), 0,
             current_stream(call.y), call.shape, data<const T>(call.phases),
             data<const accumulate_t<T>>(call.bias), data<const T>(call.addend), data<T>(call.y));
    });
  });
}

void compute(const InterleavePhasesBackward& call) {
  const DeviceGuard guard(call.grad);
  dispatch_floating(call.grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_format(call.channels_last, [&](auto format) {
      launch(interleave_phases_backward_kernel<T, decltype(format)::value>,
             grid_of((call.phases.numel() + kThreads - 1) / kThreads), dim3(kThreads), 0,
             current_stream(call.grad), call.shape, data<const T>(call.grad), data<T>(call.phases));
    });
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
