// The vectorised inner parts of modulated normalisation. modulated_norm.cpp walks them.
//
// A row is a run of elements that lie side by side in memory: pixels of one channel (contiguous) or
// channels of one pixel (channels last). Whatever belongs to a row either runs along it or is one
// number for the whole row, so both formats, and every kind of statistics and map, share the rows'
// loops.
#pragma once

#include "../definitions.h"
#include "simd.h"

namespace torchext {

// An operand of a row: elements of x's type, accumulate-type values along the row, or one of them.
template <class T>
struct RowInput {
  const T* elements = nullptr;
  const accumulate_t<T>* values = nullptr;
  bool along = false;              // of `values`
  const int32_t* index = nullptr;  // then element i is values[index[i] * stride]
  int64_t stride = 1;

  bool absent() const { return elements == nullptr && values == nullptr; }
};

// Where a row's results go: stored as elements, or added to the values along the row or to one sum.
template <class T>
struct RowOutput {
  T* elements = nullptr;
  accumulate_t<T>* values = nullptr;
  bool along = false;
};

// y = leaky(xn * scale + beta * weight), xn = (x - mean) * rstd; see torchext.modulated_norm.
template <class T>
struct Modulation {
  RowInput<T> gamma, beta, weight;
  Gain gain;
  accumulate_t<T> slope;
};

template <class T>
struct RowGradients {
  // Sums of gn and gn * xn, where gn is the gradient of xn.
  RowOutput<T> sum, product;
  RowOutput<T> gamma, beta, weight;
};

#define TORCHEXT_MODULATED_NORM_KERNELS                                                          \
  /* One row of y; at most kTile elements, as in all rows here. `next`: how far behind the maps' \
     elements those of the next row lie, 0 if they follow. */                                    \
  template <class T>                                                                             \
  void modulate_row(const RowInput<T>& x, const RowInput<T>& mean, const RowInput<T>& rstd,      \
                    const Modulation<T>& modulation, int64_t count, int64_t next, T* y);         \
  /* gn and xn of a row, and what they give to the gradients of the maps. `y` may be null where  \
     nothing is activated. */                                                                    \
  template <class T>                                                                             \
  void gradient_row(const T* grad, const T* y, const RowInput<T>& x, const RowInput<T>& mean,    \
                    const RowInput<T>& rstd, const Modulation<T>& modulation,                    \
                    const RowGradients<T>& out, int64_t count, accumulate_t<T>* gn,              \
                    accumulate_t<T>* xn);                                                        \
  /* grad_x = rstd * (gn - sum - xn * product) */                                                \
  template <class T>                                                                             \
  void input_gradient_row(const accumulate_t<T>* gn, const accumulate_t<T>* xn,                  \
                          const RowInput<T>& rstd, const RowInput<T>& sum,                       \
                          const RowInput<T>& product, int64_t count, T* grad_x);                 \
  /* Mean and 1 / sqrt(squared deviations / divisor + eps) over channels, at each of `pixels` <= \
     kTile pixels; with `centred` false of the values themselves. Keeps the pixels in `tile`     \
     (channels, pixels). */                                                                      \
  template <class T>                                                                             \
  void channel_statistics_of_plane(const T* x, int64_t pixels, int64_t channels,                 \
                                   int64_t channel_stride, bool centred, double divisor,         \
                                   double eps, accumulate_t<T>* tile, accumulate_t<T>* mean,     \
                                   accumulate_t<T>* rstd);                                       \
  /* The same at one pixel of a channels-last tensor. */                                         \
  template <class T>                                                                             \
  void channel_statistics_of_pixel(const T* x, int64_t channels, bool centred, double divisor,   \
                                   double eps, accumulate_t<T>* mean, accumulate_t<T>* rstd);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_MODULATED_NORM_KERNELS)

}  // namespace torchext
