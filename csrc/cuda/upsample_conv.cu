// The last step of a convolution of an up-sampled image by phases:
//
//   y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend
//
// Passes over memory: interleave_phases reads the phases (and the addend) and writes y in 1 launch,
// 2T (3T), the floor; its backward reads the gradient and writes the phases' in 1 launch, 2T, the
// floor. Launch: blocks of 256 threads take rows of y (in the backward: of the gradient, or of the
// phases in channels-last order), a power of two of threads each, which divide 64 bits no more than
// once a row. Full-resolution rows are read and written by 128 bits; those of the phases, which
// begin anywhere, by one element if contiguous.
#include "../upsample_conv.h"
#include "launch.cuh"
#include "quotient.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kPasses = 4;  // of a row's threads over a long row

// Rows of `length` accesses each, `lanes` threads to a row.
struct Rows {
  int64_t count;
  int length, lanes;

  Rows(int64_t rows, int64_t accesses) : count(rows), lanes(1) {
    expects(accesses < int64_t{1} << 30, "tensor too large for one row");
    length = static_cast<int>(accesses);
    while (lanes < kThreads && lanes * kPasses < length) lanes *= 2;
  }
  dim3 grid() const { return grid_of((count + kThreads / lanes - 1) / (kThreads / lanes)); }
  __device__ int64_t row() const {
    return static_cast<int64_t>(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  }
  __device__ int lane() const { return threadIdx.x % lanes; }
};

// Contiguous: a row of y is made of a row each of two phases. kWide: accesses of 128 bits to y and
// the addend, else of two elements, and of one.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    interleave_plane_kernel(Phases p, Rows rows, const T* phases, const accumulate_t<T>* bias,
                            const T* addend, T* y) {
  using A = accumulate_t<T>;
  constexpr int V = kWide ? kMaxAccessBytes / sizeof(T) : 2;
  const int64_t row = rows.row();
  if (row >= rows.count) return;
  const int64_t plane = quotient(row, p.H), image = quotient(plane, p.C);
  const int64_t high = row - plane * p.H, c = plane - image * p.C;
  const int64_t a = high % 2;
  const int64_t low = high / 2 + (a ? p.row_offset[1] : p.row_offset[0]);
  const T* const left = phases + (((image * 4 + 2 * a) * p.C + c) * p.h + low) * p.w;
  const T* const even = left + p.column_offset[0];
  const T* const odd = left + p.C * p.h * p.w + p.column_offset[1];
  const A shift = bias != nullptr ? load(bias + c) : A(0);
  for (int i = rows.lane(); i < rows.length; i += rows.lanes) {
    A values[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      values[j] = to_accumulate(load((j % 2 ? odd : even) + i * (V / 2) + j / 2)) + shift;
    }
    const int64_t at = row * p.W + i * V;
    if (addend != nullptr) {
      Vec<T, V> more;
      if (kWide) {
        more = load<V>(addend + at);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) more[j] = load(addend + at + j);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] += to_accumulate(more[j]);
    }
    Vec<T, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) result[j] = from_accumulate<T>(values[j]);
    store<V>(y + at, result);
  }
}

// Channels last: an access is of V channels of a pixel.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    interleave_pixels_kernel(Phases p, Rows rows, const T* phases, const accumulate_t<T>* bias,
                             const T* addend, T* y) {
  using A = accumulate_t<T>;
  const int64_t row = rows.row();
  if (row >= rows.count) return;
  const int64_t image = quotient(row, p.H), high = row - image * p.H;
  const int64_t a = high % 2;
  const int64_t low = high / 2 + (a ? p.row_offset[1] : p.row_offset[0]);
  const T* const source = phases + ((image * p.h + low) * p.w * 4 + 2 * a) * p.C;
  const int channels = static_cast<int>(p.C);
  const unsigned accesses = static_cast<unsigned>(channels / V);
  for (int i = rows.lane(); i < rows.length; i += rows.lanes) {
    const int column = static_cast<int>(static_cast<unsigned>(i) / accesses);
    const int c = i * V - column * channels;
    const int b = column % 2;
    const int64_t from = column / 2 + (b ? p.column_offset[1] : p.column_offset[0]);
    const Vec<T, V> values = load<V>(source + (from * 4 + b) * channels + c);
    const int64_t at = row * p.W * channels + static_cast<int64_t>(i) * V;
    Vec<T, V> more = values, result;
    if (addend != nullptr) more = load<V>(addend + at);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A value = to_accumulate(values[j]);
      if (bias != nullptr) value += load(bias + c + j);
      if (addend != nullptr) value += to_accumulate(more[j]);
      result[j] = from_accumulate<T>(value);
    }
    store<V>(y + at, result);
  }
}

// Contiguous: row r of the phases 2a and 2a + 1 is made of a row of the gradient, or of zeros.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    interleave_plane_backward_kernel(Phases p, Rows rows, const T* grad, T* phases) {
  constexpr int V = kWide ? kMaxAccessBytes / sizeof(T) : 2;
  const T zero = from_accumulate<T>(accumulate_t<T>(0));
  const int64_t row = rows.row();
  if (row >= rows.count) return;
  const int64_t plane = quotient(row, p.h), pair = quotient(plane, p.C);
  const int64_t low = row - plane * p.h, c = plane - pair * p.C;
  const int64_t image = pair / 2, a = pair % 2;
  const int64_t high = 2 * (low - (a ? p.row_offset[1] : p.row_offset[0])) + a;
  T* const left = phases + ((pair * 2 * p.C + c) * p.h + low) * p.w;
  T* const right = left + p.C * p.h * p.w;
  const int width = static_cast<int>(p.w), taken = static_cast<int>(p.W / 2);
  if (high < 0 || high >= p.H) {
    for (int j = rows.lane(); j < width; j += rows.lanes) {
      store(left + j, zero);
      store(right + j, zero);
    }
    return;
  }
  T* const even = left + p.column_offset[0];
  T* const odd = right + p.column_offset[1];
  const T* const source = grad + ((image * p.C + c) * p.H + high) * p.W;
  for (int i = rows.lane(); i < rows.length; i += rows.lanes) {
    Vec<T, V> values;
    if (kWide) {
      values = load<V>(source + i * V);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] = load(source + i * V + j);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) store((j % 2 ? odd : even) + i * (V / 2) + j / 2, values[j]);
  }
  for (int j = rows.lane(); j < width - taken; j += rows.lanes) {
    store(left + (j < p.column_offset[0] ? j : j + taken), zero);
    store(right + (j < p.column_offset[1] ? j : j + taken), zero);
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    interleave_pixels_backward_kernel(Phases p, Rows rows, const T* grad, T* phases) {
  const int64_t row = rows.row();
  if (row >= rows.count) return;
  const int64_t image = quotient(row, p.h), low = row - image * p.h;
  const int channels = static_cast<int>(p.C);
  const unsigned accesses = static_cast<unsigned>(channels / V);
  for (int i = rows.lane(); i < rows.length; i += rows.lanes) {
    const int place = static_cast<int>(static_cast<unsigned>(i) / accesses);
    const int c = i * V - place * channels;
    const int column = place / 4, a = place / 2 % 2, b = place % 2;
    const int64_t high = 2 * (low - (a ? p.row_offset[1] : p.row_offset[0])) + a;
    const int64_t wide = 2 * (column - (b ? p.column_offset[1] : p.column_offset[0])) + b;
    Vec<T, V> values;
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = from_accumulate<T>(accumulate_t<T>(0));
    if (high >= 0 && high < p.H && wide >= 0 && wide < p.W) {
      values = load<V>(grad + ((image * p.H + high) * p.W + wide) * channels + c);
    }
    store<V>(phases + row * p.w * 4 * channels + static_cast<int64_t>(i) * V, values);
  }
}

void compute(const InterleavePhases& call) {
  const DeviceGuard guard(call.y);
  const Phases& p = call.shape;
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    const T* from = data<const T>(call.phases);
    const T* addend = data<const T>(call.addend);
    T* to = data<T>(call.y);
    const bool wide = (call.channels_last ? vector_width(p.C, from, addend, to)
                                          : vector_width(p.W, addend, to)) == kWidest;
    dispatch_access<T>(wide ? kWidest : 1, call.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      const auto run = [&](auto kernel, const Rows& rows) {
        launch(kernel, rows.grid(), dim3(kThreads), 0, current_stream(call.y), p, rows, from,
               data<const accumulate_t<T>>(call.bias), addend, to);
      };
      if constexpr (decltype(format)::value) {
        run(&interleave_pixels_kernel<T, V>, Rows(p.N * p.H, p.W * (p.C / V)));
      } else {
        run(&interleave_plane_kernel<T, (V > 1)>, Rows(p.N * p.C * p.H, p.W / std::max(V, 2)));
      }
    });
  });
}

void compute(const InterleavePhasesBackward& call) {
  const DeviceGuard guard(call.grad);
  const Phases& p = call.shape;
  dispatch_floating(call.grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = kMaxAccessBytes / sizeof(T);
    const T* from = data<const T>(call.grad);
    T* to = data<T>(call.phases);
    const bool wide =
        (call.channels_last ? vector_width(p.C, from, to) : vector_width(p.W, from)) == kWidest;
    dispatch_access<T>(wide ? kWidest : 1, call.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      const auto run = [&](auto kernel, const Rows& rows) {
        launch(kernel, rows.grid(), dim3(kThreads), 0, current_stream(call.grad), p, rows, from,
               to);
      };
      if constexpr (decltype(format)::value) {
        run(&interleave_pixels_backward_kernel<T, V>, Rows(p.N * p.h, p.w * 4 * (p.C / V)));
      } else {
        run(&interleave_plane_backward_kernel<T, (V > 1)>,
            Rows(2 * p.N * p.C * p.h, p.W / std::max(V, 2)));
      }
    });
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
