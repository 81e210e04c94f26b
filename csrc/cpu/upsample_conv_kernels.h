// The vectorised inner parts of interleaving. upsample_conv.cpp walks them.
#pragma once

#include "simd.h"

namespace torchext {

#define TORCHEXT_UPSAMPLE_CONV_KERNELS                                                         \
  /* y[2 j] = even[j] + bias + addend[2 j], y[2 j + 1] = odd[j] + ...; addend may be null */   \
  template <class T>                                                                           \
  void interleave_row(const T* even, const T* odd, accumulate_t<T> bias, const T* addend,      \
                      int64_t columns, T* y);                                                  \
  /* y[c] = x[c] + bias[c] + addend[c]; bias and addend may be null */                         \
  template <class T>                                                                           \
  void add_row(const T* x, const accumulate_t<T>* bias, const T* addend, int64_t count, T* y); \
  /* even[j] = grad[2 j], odd[j] = grad[2 j + 1] */                                            \
  template <class T>                                                                           \
  void deinterleave_row(const T* grad, int64_t columns, T* even, T* odd);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_UPSAMPLE_CONV_KERNELS)

}  // namespace torchext
