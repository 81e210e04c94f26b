// The vectorised inner parts of the self-aware affine. self_aware_affine.cpp walks them.
#pragma once

#include "../definitions.h"
#include "simd.h"

namespace torchext {

// A single-channel map with a border of zeros of the kernel's half size on each side, so that a
// window never leaves it. `stride` is the padded width.
template <class A>
struct PaddedMap {
  const A* values;  // the padded map's first element
  int64_t stride;
};

// Weight gradients keep this many partial sums per tap, added up at the end.
constexpr int64_t kLanes = 16;

#define TORCHEXT_SELF_AWARE_AFFINE_KERNELS                                                       \
  /* Mean, maximum and first argmax over channels for `pixels` <= kTile pixels of an image. */   \
  template <class T>                                                                             \
  void plane_mean_max(const T* x, int64_t pixels, int64_t channels, int64_t channel_stride,      \
                      accumulate_t<T>* mean, accumulate_t<T>* maximum, int32_t* argmax);         \
  template <class T>                                                                             \
  void pixels_mean_max(const T* x, int64_t pixels, int64_t channels, accumulate_t<T>* mean,      \
                       accumulate_t<T>* maximum, int32_t* argmax);                               \
  /* out[0..width) = bias + sum over maps and taps of taps[m][ky][kx] * map[m][row + ky][. + kx] \
   */                                                                                            \
  template <class A>                                                                             \
  void convolve_row(const PaddedMap<A>* maps, int64_t num_maps, const A* taps, int64_t kernel,   \
                    int64_t row, A bias, int64_t width, A* out);                                 \
  template <class A>                                                                             \
  void sigmoid_row(A* values, int64_t width, A threshold, uint8_t* labels);                      \
  /* gradient *= s * (1 - s) */                                                                  \
  template <class A>                                                                             \
  void sigmoid_gradient_row(A* gradient, const A* saliency, int64_t width);                      \
  /* lanes[ky][kx][.] += gradient[.] * map[row + ky][. + kx] */                                  \
  template <class A>                                                                             \
  void tap_gradient_row(const A* gradient, const PaddedMap<A>& map, int64_t kernel, int64_t row, \
                        int64_t width, A* lanes);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_SELF_AWARE_AFFINE_KERNELS)

}  // namespace torchext
