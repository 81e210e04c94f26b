// The last step of a convolution of an up-sampled image by phases: its calls, checked, with their
// results allocated. cpu/upsample_conv.cpp and cuda/upsample_conv.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

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

struct InterleavePhases {
  const Tensor& phases;
  const MaybeTensor& bias;
  const MaybeTensor& addend;
  bool channels_last;
  Phases shape;
  Tensor y;
};

struct InterleavePhasesBackward {
  const Tensor& grad;
  bool channels_last;
  Phases shape;
  Tensor phases;  // all of it is to be written, zeros where no output takes it
};

// By the device's file.
void compute(const InterleavePhases& call);
void compute(const InterleavePhasesBackward& call);

Tensor interleave_phases(const Tensor& phases, const MaybeTensor& bias, const MaybeTensor& addend,
                         const Sizes& offsets) {
  const bool channels_last = is_channels_last(phases);
  expects(phases.size(1) % 4 == 0, "phases: expected four times the output's channels");
  const Phases p(phases.size(0), phases.size(1) / 4, phases.size(2), phases.size(3), offsets);
  expects_plain(bias, accumulate_type(phases), p.C, "bias: expected a number per channel");
  Tensor y = new_image(phases, p.N, p.C, p.H, p.W, channels_last);
  if (addend.has_value() && y.numel() > 0)
    expects_like(*addend, y, "addend: expected the result's shape and dtype, in its memory format");
  compute(InterleavePhases{phases, bias, addend, channels_last, p, y});
  return y;
}

Tensor interleave_phases_backward(const Tensor& grad, const Sizes& offsets, int64_t height,
                                  int64_t width) {
  const bool channels_last = is_channels_last(grad);
  const Phases p(grad.size(0), grad.size(1), height, width, offsets);
  expects(grad.size(2) == p.H && grad.size(3) == p.W, "grad: expected the result's shape");
  Tensor phases = new_image(grad, p.N, 4 * p.C, height, width, channels_last);
  compute(InterleavePhasesBackward{grad, channels_last, p, phases});
  return phases;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, interleave_phases);
  TORCHEXT_IMPLEMENT(m, interleave_phases_backward);
}

}  // namespace
}  // namespace torchext
