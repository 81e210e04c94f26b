// The last step of a convolution of an up-sampled image by phases:
//
//   y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend
//
// interleave_phases reads the phases, and the addend if there is one, and writes y: 2T or 3T, the
// floor. Its backward reads the gradient and writes the phases': 2T, the floor.
#include "upsample_conv_kernels.h"

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;
using Sizes = std::vector<int64_t>;

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
  // Where phase (a, b) of channel c begins for output row 2 i + a, column b.
  int64_t plane_row(int64_t n, int64_t c, int64_t a, int64_t b, int64_t i) const {
    return (((n * 4 + 2 * a + b) * C + c) * h + i + row_offset[a]) * w + column_offset[b];
  }
  int64_t pixel(int64_t n, int64_t a, int64_t b, int64_t i, int64_t j) const {
    return (((n * h + i + row_offset[a]) * w + j + column_offset[b]) * 4 + 2 * a + b) * C;
  }
};

// A new tensor of these sizes, in channels-last order if wanted.
Tensor new_image(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W,
                 bool channels_last) {
  if (!channels_last) return empty(like, {N, C, H, W}, like.scalar_type());
  const Tensor image = empty(like, {N, H, W, C}, like.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(image, 1, 3), 2, 3);
}

Tensor interleave_phases_cpu(const Tensor& phases, const std::optional<Tensor>& bias,
                             const std::optional<Tensor>& addend, const Sizes& offsets) {
  const bool channels_last = is_channels_last(phases);
  expects(phases.size(1) % 4 == 0, "phases: expected four times the output's channels");
  const Phases p(phases.size(0), phases.size(1) / 4, phases.size(2), phases.size(3), offsets);
  expects_plain(bias, accumulate_type(phases), p.C, "bias: expected a number per channel");
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
  dispatch_floating(phases.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const T* in = data<T>(phases);
    const T* more = data<T>(addend);
    const A* biases = data<A>(bias);
    T* out = mutable_data<T>(y);
    if (channels_last) {
      parallel_for(0, p.N * p.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t n = unit / p.H, row = unit % p.H;
          for (int64_t x = 0; x < p.W; ++x) {
            const int64_t to = (unit * p.W + x) * p.C;
            TORCHEXT_AT_SIMD_LEVEL(add_row<T>)(in + p.pixel(n, row % 2, x % 2, row / 2, x / 2),
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
            in + p.plane_row(n, c, row % 2, 0, row / 2),
            in + p.plane_row(n, c, row % 2, 1, row / 2), biases ? biases[c] : A(0),
            more ? more + unit * p.W : nullptr, p.W / 2, out + unit * p.W);
      }
    });
  });
  return y;
}

Tensor interleave_phases_backward_cpu(const Tensor& grad, const Sizes& offsets, int64_t height,
                                      int64_t width) {
  const bool channels_last = is_channels_last(grad);
  const Phases p(grad.size(0), grad.size(1), height, width, offsets);
  expects(grad.size(2) == p.H && grad.size(3) == p.W, "grad: expected the result's shape");
  Tensor phases = new_image(grad, p.N, 4 * p.C, height, width, channels_last);
  torch::stable::zero_(phases);  // what no output takes
  dispatch_floating(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<T>(grad);
    T* out = mutable_data<T>(phases);
    if (channels_last) {
      parallel_for(0, p.N * p.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit)
          for (int64_t x = 0; x < p.W; ++x)
            std::copy_n(in + (unit * p.W + x) * p.C, p.C,
                        out + p.pixel(unit / p.H, unit % p.H % 2, x % 2, unit % p.H / 2, x / 2));
      });
      return;
    }
    parallel_for(0, p.N * p.C * p.H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / p.H, row = unit % p.H, n = plane / p.C, c = plane % p.C;
        TORCHEXT_AT_SIMD_LEVEL(deinterleave_row<T>)(in + unit * p.W, p.W / 2,
                                                    out + p.plane_row(n, c, row % 2, 0, row / 2),
                                                    out + p.plane_row(n, c, row % 2, 1, row / 2));
      }
    });
  });
  return phases;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("interleave_phases", TORCH_BOX(&interleave_phases_cpu));
  m.impl("interleave_phases_backward", TORCH_BOX(&interleave_phases_backward_cpu));
}

}  // namespace torchext
