// PD-GAN's diversity maps: their calls, checked, with their results allocated.
// cpu/diversity_map.cpp and cuda/diversity_map.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

struct HardMap {
  int64_t steps, radius, height, width, offset;  // offset: of the map in the output
};

struct DiversityMaps {
  const Tensor& labels;
  const std::vector<HardMap>& maps;
  double base;
  Tensor y;
};

struct SoftDiversityMap {
  const Tensor& logits;
  const Tensor& labels;
  bool channels_last;
  Tensor y;
};

struct SoftDiversityMapBackward {
  const Tensor& grad;
  const Tensor& y;
  const Tensor& labels;
  bool channels_last;
  Tensor grad_logits;
};

// By the device's file.
void compute(const DiversityMaps& call);
void compute(const SoftDiversityMap& call);
void compute(const SoftDiversityMapBackward& call);

Tensor diversity_maps(const Tensor& labels, const Sizes& steps, const Sizes& windows,
                      const Sizes& heights, const Sizes& widths, double base, ScalarType dtype) {
  expects(labels.dim() == 4 && labels.size(1) == 1 && labels.size(2) > 0 && labels.size(3) > 0,
          "labels: expected the shape (N, 1, H, W)");
  expects_plain(labels, ScalarType::Byte, labels.numel(), "labels: expected contiguous uint8");
  expects(dtype == ScalarType::Float || dtype == ScalarType::Double,
          "dtype: expected float32 or float64");
  expects(windows.size() == steps.size() && heights.size() == steps.size() &&
              widths.size() == steps.size(),
          "steps, windows, heights, widths: expected lists of one length");
  std::vector<HardMap> maps;
  int64_t elements = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    expects(steps[i] >= 1 && steps[i] <= kMaxSteps, "steps: expected 1 to 255");
    expects(windows[i] >= 3 && windows[i] <= kMaxWindow && windows[i] % 2 == 1,
            "windows: expected odd numbers from 3 to 255");
    expects(heights[i] > 0 && widths[i] > 0, "heights, widths: expected positive numbers");
    maps.push_back({steps[i], windows[i] / 2, heights[i], widths[i], elements});
    elements += labels.size(0) * heights[i] * widths[i];
  }
  Tensor y = new_tensor(labels, {elements}, dtype);
  compute(DiversityMaps{labels, maps, base, y});
  return y;
}

void expects_labels(const Tensor& labels, const Tensor& x) {
  expects(labels.dim() == 4 && (labels.size(0) == 1 || labels.size(0) == x.size(0)),
          "labels: expected (N, 1, H, W)");
  expects_plain(labels, ScalarType::Byte, labels.size(0) * x.size(2) * x.size(3),
                "labels: expected contiguous uint8");
}

Tensor soft_diversity_map(const Tensor& logits, const Tensor& labels) {
  const bool channels_last = is_channels_last(logits);
  expects_labels(labels, logits);
  Tensor y = torch::stable::empty_like(logits);
  compute(SoftDiversityMap{logits, labels, channels_last, y});
  return y;
}

Tensor soft_diversity_map_backward(const Tensor& grad, const Tensor& y, const Tensor& labels) {
  const bool channels_last = is_channels_last(y);
  expects_labels(labels, y);
  expects_like(grad, y, "grad: expected the dtype, shape and memory format of y");
  Tensor grad_logits = torch::stable::empty_like(y);
  compute(SoftDiversityMapBackward{grad, y, labels, channels_last, grad_logits});
  return grad_logits;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, diversity_maps);
  TORCHEXT_IMPLEMENT(m, soft_diversity_map);
  TORCHEXT_IMPLEMENT(m, soft_diversity_map_backward);
}

}  // namespace
}  // namespace torchext
