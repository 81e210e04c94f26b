// The last step of a convolution of an up-sampled image by phases:
//
//   y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend
//
// interleave_phases reads the phases, and the addend if there is one, and writes y: 2T or 3T, the
// floor. Its backward reads the gradient and writes the phases': 2T, the floor.
#include "../upsample_conv.h"

#include "tensors.h"
#include "upsample_conv_kernels.h"

namespace torchext {
namespace {

// Where phase (a, b) of channel c begins for output row 2 i + a, column b.
int64_t plane_row(const Phases& p, int64_t n, int64_t c, int64_t a, int64_t b, int64_t i) {
  return (((n * 4 + 2 * a + b) * p.C + c) * p.h + i + p.row_offset[a]) * p.w + p.column_offset[b];
}
// Where a pixel of phase (a, b) begins in channels last.
int64_t pixel(const Phases& p, int64_t n, int64_t a, int64_t b, int64_t i, int64_t j) {
  return (((n * p.h + i + p.row_offset[a]) * p.w + j + p.column_offset[b]) * 4 + 2 * a + b) * p.C;
}

void compute(const InterleavePhases& call) {
  const Phases& p = call.shape;
  dispatch_floating(call.phases.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const T* in = data<const T>(call.phases);
    const T* more = data<const T>(call.addend);
    const A* biases = data<const A>(call.bias);
    T* out = data<T>(call.y);
    if (call.channels_last) {
      parallel_for(0, p.N * p.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t n = unit / p.H, row = unit % p.H;
          for (int64_t x = 0; x < p.W; ++x) {
            const int64_t to = (unit * p.W + x) * p.C;
            TORCHEXT_AT_SIMD_LEVEL(add_row<T>)(in + pixel(p, n, row % 2, x % 2, row / 2, x / 2),
                                               biases, more ? more + to : nullptr, p.C, out + to);
          }
        }
      });
      return;
    }
    parallel_for(0, p.N * p.C * p.H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / p.H, row = unit % p.H, n = plane / p.C, c = plane % p.C;
        TORCHEXT_AT_SIMD_LEVEL(interleave_row<T>)(
            in + plane_row(p, n, c, row % 2, 0, row / 2),
            in + plane_row(p, n, c, row % 2, 1, row / 2), biases ? biases[c] : A(0),
            more ? more + unit * p.W : nullptr, p.W / 2, out + unit * p.W);
      }
    });
  });
}

void compute(const InterleavePhasesBackward& call) {
  const Phases& p = call.shape;
  Tensor phases = call.phases;
  torch::stable::zero_(phases);  // what no output takes
  dispatch_floating(call.grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<const T>(call.grad);
    T* out = data<T>(phases);
    if (call.channels_last) {
      parallel_for(0, p.N * p.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit)
          for (int64_t x = 0; x < p.W; ++x)
            std::copy_n(in + (unit * p.W + x) * p.C, p.C,
                        out + pixel(p, unit / p.H, unit % p.H % 2, x % 2, unit % p.H / 2, x / 2));
      });
      return;
    }
    parallel_for(0, p.N * p.C * p.H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / p.H, row = unit % p.H, n = plane / p.C, c = plane % p.C;
        TORCHEXT_AT_SIMD_LEVEL(deinterleave_row<T>)(in + unit * p.W, p.W / 2,
                                                    out + plane_row(p, n, c, row % 2, 0, row / 2),
                                                    out + plane_row(p, n, c, row % 2, 1, row / 2));
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
