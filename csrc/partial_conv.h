// Partial convolution around PyTorch's convolution: the calls of its parts, checked, with their
// results allocated. cpu/partial_conv.cpp and cuda/partial_conv.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

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
  TORCHEXT_HOST_DEVICE int64_t input_pixels() const { return input[0] * input[1] * input[2]; }
  int64_t output_rows() const { return output[0] * output[1]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  // Column sums that `outputs` neighbouring windows need.
  int64_t columns(int64_t outputs) const {
    return (outputs - 1) * stride[2] + dilation[2] * (kernel[2] - 1) + 1;
  }
};

// How window sums become scale and updated mask.
struct WindowOptions {
  bool ratio, bias;
  double eps;
};

// How many channels of x each mask channel stands for; none where each stands for one. Python
// writes the ones out, since an exported program loses the type of an empty list.
Sizes grouped(const Sizes& mask_channels) {
  const bool single = std::all_of(mask_channels.begin(), mask_channels.end(),
                                  [](int64_t channels) { return channels == 1; });
  return single ? Sizes() : mask_channels;
}

struct MaskWindow {
  const Tensor& mask;
  bool channels_last;
  Sizes mask_channels;  // as `grouped` gives them
  Window window;
  WindowOptions options;
  Tensor scale, updated;
};

// The mask channels that x's channels meet.
struct MaskRuns {
  int64_t masks;
  bool shared;    // one mask serves all images
  bool each;      // each channel of x has its own
  Sizes lengths;  // else: how many channels of x each mask channel stands for

  MaskRuns(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
    expects(mask.dim() == 4 && (mask.size(0) == x.size(0) || mask.size(0) == 1) &&
                mask.size(2) == x.size(2) && mask.size(3) == x.size(3) &&
                mask.scalar_type() == x.scalar_type(),
            "mask: expected x's dtype, height and width, and its batch size or 1");
    masks = mask.size(1);
    shared = mask.size(0) == 1 && x.size(0) != 1;
    lengths = masks == 1 ? Sizes{x.size(1)} : grouped(mask_channels);
    each = masks == x.size(1) && (masks == 1 || lengths.empty());
    if (each) {
      expects(is_channels_last(mask) == is_channels_last(x), "mask: expected x's memory format");
      return;
    }
    expects(mask.is_contiguous(), "mask: expected a contiguous mask");
    expects(!lengths.empty(), "mask: expected one channel, or x's");
    int64_t total = 0;
    for (int64_t length : lengths) total += length;
    expects(static_cast<int64_t>(lengths.size()) == masks && total == x.size(1),
            "mask_channels: expected a number for each mask channel, x's channels in all");
  }
};

struct MaskProduct {
  const Tensor& x;
  const Tensor& mask;
  bool channels_last;
  MaskRuns runs;
  Tensor y;  // may be x
};

// A convolution's output and the maps of one channel that belong to it.
struct OutputMaps {
  int64_t images, channels, pixels;
  bool shared;  // one pair of maps serves all images
  bool channels_last;

  OutputMaps(const Tensor& raw, const Tensor& scale, const Tensor& updated)
      : channels_last(is_channels_last(raw)) {
    images = raw.size(0);
    channels = raw.size(1);
    pixels = raw.size(2) * raw.size(3);
    shared = scale.dim() > 0 && scale.size(0) == 1 && images != 1;
    expects(scale.dim() == 4 && (scale.size(0) == images || scale.size(0) == 1),
            "scale: expected the raw output's batch size or 1");
    const ScalarType type = accumulate_type(raw);
    const int64_t elements = scale.size(0) * pixels;
    expects_plain(scale, type, elements, "scale: expected contiguous (N or 1, 1, H, W)");
    expects_plain(updated, type, elements, "updated: expected the shape of scale");
  }
};

// What the epilogue does to a channel after the scale.
struct EpilogueOptions {
  const MaybeTensor& bias;
  const MaybeTensor& norm_weight;
  const MaybeTensor& norm_bias;
  double negative_slope;
  bool mask_output;

  void check(ScalarType type, int64_t channels) const {
    expects_plain(bias, type, channels, "bias: expected a number per channel");
    expects_plain(norm_weight, type, channels, "norm_weight: expected a number per channel");
    expects_plain(norm_bias, type, channels, "norm_bias: expected a number per channel");
    expects(norm_weight.has_value() == norm_bias.has_value(),
            "norm_bias: expected both norm_weight and norm_bias, or none");
  }
};

struct Epilogue {
  const Tensor& raw;
  const Tensor& scale;
  const Tensor& updated;
  EpilogueOptions options;
  OutputMaps maps;
  Tensor y;  // may be raw
};

struct EpilogueBackward {
  const Tensor& grad;
  const MaybeTensor& y;    // whose sign tells the side of the activation; not needed without one
  const MaybeTensor& raw;  // for the third sum
  const Tensor& scale;
  const Tensor& updated;
  const MaybeTensor& norm_weight;
  double negative_slope;
  bool mask_output;
  OutputMaps maps;
  Tensor grad_raw, sums;  // (3, C), see torchext/reference/partial_conv.py
};
constexpr int64_t kSums = 3;

// By the device's file.
void compute(const MaskWindow& call);
void compute(const MaskProduct& call);
void compute(const Epilogue& call);
void compute(const EpilogueBackward& call);

std::tuple<Tensor, Tensor> mask_window(const Tensor& mask, const Sizes& mask_channels,
                                       const Sizes& kernel_size, const Sizes& stride,
                                       const Sizes& padding, const Sizes& dilation,
                                       const Sizes& output_size, bool ratio, bool bias,
                                       double eps) {
  expects(mask.dim() == 4 || mask.dim() == 5, "mask: expected four or five dimensions");
  const bool channels_last = mask.dim() == 4 && is_channels_last(mask);
  expects(channels_last || mask.is_contiguous(), "mask: expected a contiguous mask");
  const Window window(mask, kernel_size, stride, padding, dilation, output_size);
  const int64_t masks = mask.size(1);
  Sizes groups = grouped(mask_channels);
  expects(masks > 0 && (groups.empty() || static_cast<int64_t>(groups.size()) == masks),
          "mask_channels: expected a number for each mask channel");
  Sizes shape{mask.size(0), 1};
  shape.insert(shape.end(), output_size.begin(), output_size.end());
  Tensor scale = torch::stable::new_empty(mask, shape, accumulate_type(mask));
  Tensor updated = torch::stable::new_empty(mask, shape, accumulate_type(mask));
  compute(MaskWindow{mask, channels_last, groups, window, {ratio, bias, eps}, scale, updated});
  return {scale, updated};
}

void multiply(const Tensor& x, const Tensor& mask, const Sizes& mask_channels, const Tensor& y) {
  const bool channels_last = is_channels_last(x);
  compute(MaskProduct{x, mask, channels_last, MaskRuns(x, mask, mask_channels), y});
}

Tensor mask_product(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  Tensor y = torch::stable::empty_like(x);
  multiply(x, mask, mask_channels, y);
  return y;
}

void mask_product_in_place(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  multiply(x, mask, mask_channels, x);
}

void finish(const Tensor& raw, const Tensor& scale, const Tensor& updated,
            const EpilogueOptions& options, const Tensor& y) {
  const OutputMaps maps(raw, scale, updated);
  options.check(accumulate_type(raw), maps.channels);
  compute(Epilogue{raw, scale, updated, options, maps, y});
}

Tensor partial_conv_epilogue(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                             const MaybeTensor& bias, const MaybeTensor& norm_weight,
                             const MaybeTensor& norm_bias, double negative_slope,
                             bool mask_output) {
  Tensor y = torch::stable::empty_like(raw);
  finish(raw, scale, updated, {bias, norm_weight, norm_bias, negative_slope, mask_output}, y);
  return y;
}

void partial_conv_epilogue_in_place(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                                    const MaybeTensor& bias, const MaybeTensor& norm_weight,
                                    const MaybeTensor& norm_bias, double negative_slope,
                                    bool mask_output) {
  finish(raw, scale, updated, {bias, norm_weight, norm_bias, negative_slope, mask_output}, raw);
}

std::tuple<Tensor, Tensor> partial_conv_epilogue_backward(const Tensor& grad, const MaybeTensor& y,
                                                          const MaybeTensor& raw,
                                                          const Tensor& scale,
                                                          const Tensor& updated,
                                                          const MaybeTensor& norm_weight,
                                                          double negative_slope, bool mask_output) {
  const OutputMaps maps(grad, scale, updated);
  const ScalarType type = accumulate_type(grad);
  expects(y.has_value() || negative_slope == 1, "y: expected the result of the activation");
  if (y.has_value()) expects_like(*y, grad, "y: expected the gradient's dtype, shape and format");
  if (raw.has_value())
    expects_like(*raw, grad, "raw: expected the gradient's dtype, shape and format");
  expects_plain(norm_weight, type, maps.channels, "norm_weight: expected a number per channel");
  Tensor grad_raw = torch::stable::empty_like(grad);
  Tensor sums = new_tensor(grad, {kSums, maps.channels}, type);
  compute(EpilogueBackward{grad, y, raw, scale, updated, norm_weight, negative_slope, mask_output,
                           maps, grad_raw, sums});
  return {grad_raw, sums};
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, mask_window);
  TORCHEXT_IMPLEMENT(m, mask_product);
  m.impl("mask_product_", TORCH_BOX(&mask_product_in_place));
  TORCHEXT_IMPLEMENT(m, partial_conv_epilogue);
  m.impl("partial_conv_epilogue_", TORCH_BOX(&partial_conv_epilogue_in_place));
  TORCHEXT_IMPLEMENT(m, partial_conv_epilogue_backward);
}

}  // namespace
}  // namespace torchext
