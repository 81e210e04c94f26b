// The vectorised inner parts of partial convolution. partial_conv.cpp walks them.
#pragma once

#include "simd.h"

namespace torchext {

// How window sums become scale and updated mask (see torchext/reference/partial_conv.py).
template <class A>
struct WindowRule {
  bool ratio, bias;
  A window, eps;
};

// What the epilogue does to a channel after the scale; the tensors' pointers may be null.
template <class A>
struct ChannelEpilogue {
  const A* bias;
  const A* norm_weight;
  const A* norm_bias;
  A negative_slope;
  bool mask_output;
};

// What the epilogue did, for its gradient; y and raw may be null, the first where the slope is 1.
template <class T>
struct EpilogueGradient {
  const T* grad;
  const T* y;
  const T* raw;
  const accumulate_t<T>* scale;
  const accumulate_t<T>* updated;
  const accumulate_t<T>* norm_weight;
  accumulate_t<T> negative_slope;
  bool mask_output;

  // From an element and its pixel's place in the maps on.
  EpilogueGradient from(int64_t element, int64_t pixel) const {
    EpilogueGradient there = *this;
    there.grad += element;
    if (y) there.y += element;
    if (raw) there.raw += element;
    there.scale += pixel;
    there.updated += pixel;
    return there;
  }
};

// Output pixels of a tile in each direction: small, so that many tiles are all hole (8 x 8 leaves a
// seventh less to convolve than 16 x 16 where half is in holes), while a convolution of 8 x 8 tiles
// takes but 2 to 5 % longer than one of large ones.
constexpr int64_t kTileSide = 8;

// The windows of a row of tiles: where the first begins, how far apart they are, their size.
struct PlaneWindows {
  int64_t height, width;  // of the plane
  int64_t left, step, rows, columns;
  int64_t tiles;
};

#define TORCHEXT_PARTIAL_CONV_KERNELS                                                              \
  /* sums[i] += factor * values[i] */                                                              \
  template <class T>                                                                               \
  void add_scaled(const T* values, accumulate_t<T> factor, int64_t count, accumulate_t<T>* sums);  \
  /* sums[i] = sum over channels of factors[c] * values[i][c]; without factors, plain. */          \
  template <class T>                                                                               \
  void sum_channels(const T* values, const accumulate_t<T>* factors, int64_t pixels,               \
                    int64_t channels, accumulate_t<T>* sums);                                      \
  /* From a row of column sums (zeros where it is padded) to scale and updated mask. */            \
  template <class A>                                                                               \
  void window_row(const A* columns, int64_t kernel, int64_t stride, int64_t dilation,              \
                  int64_t width, const WindowRule<A>& rule, A* sums, A* scale, A* updated);        \
  /* y = x * mask, 0 where the mask is 0, in the elements' type. */                                \
  template <class T>                                                                               \
  void multiply_mask(const T* x, const T* mask, int64_t count, T* y);                              \
  template <class T>                                                                               \
  void multiply_mask_value(const T* x, T mask, int64_t count, T* y);                               \
  /* The epilogue of `count` pixels of channel c, or of all channels of `pixels` pixels. */        \
  template <class T>                                                                               \
  void epilogue_plane(const T* raw, const accumulate_t<T>* scale, const accumulate_t<T>* updated,  \
                      int64_t count, int64_t c, const ChannelEpilogue<accumulate_t<T>>& epilogue,  \
                      T* y);                                                                       \
  template <class T>                                                                               \
  void epilogue_pixels(const T* raw, const accumulate_t<T>* scale, const accumulate_t<T>* updated, \
                       int64_t pixels, int64_t channels,                                           \
                       const ChannelEpilogue<accumulate_t<T>>& epilogue, T* y);                    \
  /* For a row of tiles whose slot is not negative: the windows of `plane`, zero outside of it, */ \
  /* times the mask (if any), each to tiles + slot * pitch. */                                     \
  template <class T>                                                                               \
  void gather_row(const T* plane, const T* mask, const PlaneWindows& windows, int64_t top,         \
                  const int32_t* slots, int64_t count, int64_t pitch, T* tiles);                   \
  /* The epilogue of a row of tiles of channel c, `rows` of each, into a plane; dead ones are */   \
  /* those of a raw output of 0. */                                                                \
  template <class T>                                                                               \
  void scatter_row(const T* tiles, const int32_t* slots, int64_t count, int64_t pitch,             \
                   const accumulate_t<T>* scale, const accumulate_t<T>* updated, int64_t rows,     \
                   int64_t width, int64_t c, const ChannelEpilogue<accumulate_t<T>>& epilogue,     \
                   T* plane);                                                                      \
  /* The raw output's gradient, of `count` pixels of channel c or of all channels of `pixels` */   \
  /* pixels; the channel's three sums to sums[0], sums[stride], ..., or added to (3, channels). */ \
  template <class T>                                                                               \
  void epilogue_backward_plane(const EpilogueGradient<T>& of, int64_t count, int64_t c,            \
                               T* grad_raw, accumulate_t<T>* sums, int64_t stride);                \
  template <class T>                                                                               \
  void epilogue_backward_pixels(const EpilogueGradient<T>& of, int64_t pixels, int64_t channels,   \
                                T* grad_raw, accumulate_t<T>* sums);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_PARTIAL_CONV_KERNELS)

}  // namespace torchext
