// The convolution of a one-hot label map: its calls, checked, with their results allocated.
// cpu/label_conv2d.cpp and cuda/label_conv2d.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

struct LabelMaps {
  int64_t images, height, width, classes, channels, kernel;

  LabelMaps(const Tensor& labels, int64_t num_classes, int64_t out_channels, int64_t kernel_size)
      : classes(num_classes), channels(out_channels), kernel(kernel_size) {
    expects(labels.dim() == 3 && labels.size(1) > 0 && labels.size(2) > 0,
            "labels: expected the shape (N, H, W)");
    images = labels.size(0);
    height = labels.size(1);
    width = labels.size(2);
    expects_plain(labels, ScalarType::Int, labels.numel(), "labels: expected contiguous int32");
    expects(kernel % 2 == 1 && kernel >= 1 && kernel <= kMaxLabelKernel,
            "weight: expected an odd kernel size up to 7");
    expects(channels > 0 && classes > 0 &&
                classes < (int64_t{1} << 31) / (kMaxLabelKernel * kMaxLabelKernel),
            "weight: expected at least one class and channel");
  }
  TORCHEXT_HOST_DEVICE int64_t pixels() const { return height * width; }
  int64_t taps() const { return kernel * kernel; }
};

struct LabelConv2d {
  const Tensor& labels;
  const Tensor& weight;
  const MaybeTensor& bias;
  bool check_values;  // where that costs no synchronisation
  LabelMaps maps;
  Tensor y;
};

struct LabelConv2dBackward {
  const Tensor& grad;
  const Tensor& labels;
  LabelMaps maps;
  Tensor grad_weight;
};

// By the device's file.
void compute(const LabelConv2d& call);
void compute(const LabelConv2dBackward& call);

Tensor label_conv2d(const Tensor& labels, const Tensor& weight, const MaybeTensor& bias,
                    ScalarType dtype, bool check_values) {
  expects(weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.is_contiguous(),
          "weight: expected a contiguous (O, classes, k, k) tensor");
  const LabelMaps maps(labels, weight.size(1), weight.size(0), weight.size(2));
  const ScalarType type = weight.scalar_type();
  expects(type == accumulate_type(weight), "weight: expected float32 or float64");
  expects((dtype == ScalarType::Double) == (type == ScalarType::Double),
          "dtype: expected float64 with a weight of float64 only");
  expects_plain(bias, type, maps.channels, "bias: expected contiguous (O) like weight");
  Tensor y = new_tensor(weight, {maps.images, maps.channels, maps.height, maps.width}, dtype);
  compute(LabelConv2d{labels, weight, bias, check_values, maps, y});
  return y;
}

Tensor label_conv2d_backward(const Tensor& grad, const Tensor& labels, int64_t classes,
                             int64_t kernel) {
  expects(grad.dim() == 4 && grad.is_contiguous(), "grad: expected a contiguous (N, O, H, W)");
  const LabelMaps maps(labels, classes, grad.size(1), kernel);
  expects(grad.numel() == maps.images * maps.channels * maps.pixels() && grad.size(3) == maps.width,
          "grad: expected the height and width of labels");
  Tensor grad_weight =
      new_tensor(grad, {maps.channels, classes, kernel, kernel}, accumulate_type(grad));
  compute(LabelConv2dBackward{grad, labels, maps, grad_weight});
  return grad_weight;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, label_conv2d);
  TORCHEXT_IMPLEMENT(m, label_conv2d_backward);
}

}  // namespace
}  // namespace torchext
