// The vectorised inner parts of the label convolution. label_conv2d.cpp walks them.
#pragma once

#include "../definitions.h"
#include "simd.h"

namespace torchext {

// Pixels whose results are gathered before they are written, so that every channel gets whole
// lines.
constexpr int64_t kLabelPixels = 64;
// Of a channel in that scratch: a line more than it needs, so that channels fall into all cache
// sets.
constexpr int64_t kLabelStride = kLabelPixels + 16;

// A row of pixels with the labels around it. A label is the row of the table that it stands for;
// outside the image it is that of the zeros.
struct LabelRows {
  const int32_t* rows[kMaxLabelKernel];  // each (width + kernel - 1)
  int64_t kernel, width;
  int64_t tap_stride, channels;  // table (taps, labels, channels)
};

#define TORCHEXT_LABEL_CONV2D_KERNELS                                                             \
  /* same[x] says whether pixel x sees the labels that x - 1 sees. changed: width + kernel. */    \
  void same_windows(const LabelRows& labels, uint8_t* changed, uint8_t* same);                    \
  /* One row of the output; scratch holds (kLabelStride + 1) * channels. */                       \
  template <class T>                                                                              \
  void label_conv_row(const LabelRows& labels, const uint8_t* same, const accumulate_t<T>* table, \
                      const accumulate_t<T>* bias, int64_t channel_stride,                        \
                      accumulate_t<T>* scratch, T* out);                                          \
  /* Adds one row's gradients to the table's; scratch as above. */                                \
  template <class T>                                                                              \
  void label_conv_gradient_row(const LabelRows& labels, const uint8_t* same, const T* grad,       \
                               int64_t channel_stride, accumulate_t<T>* scratch,                  \
                               accumulate_t<T>* table);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_LABEL_CONV2D_KERNELS)

}  // namespace torchext
