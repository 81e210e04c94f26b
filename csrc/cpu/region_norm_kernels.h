// The vectorised inner parts of region normalisation: one plane (image and channel) of a contiguous
// tensor, or one range of pixels of a channels-last tensor, at a time. region_norm.cpp walks them.
#pragma once

#include "../definitions.h"
#include "simd.h"

namespace torchext {

// Count, mean and sum of squared deviations of a set of values, merged by Chan's formula.
struct Moments {
  int64_t count = 0;
  double mean = 0;
  double squares = 0;
};

struct TileRegion {
  uint8_t region;
  int32_t count;
};

// The labels of one image and, tile by tile, which regions occur: made once per call and read for
// every channel, so that a tile within one region (most of them) costs no mask at all.
struct LabelPlane {
  const uint8_t* labels;  // (pixels)
  int64_t pixels;
  const int32_t* first;  // (tiles + 1): tile t's regions are present[first[t]..first[t+1])
  const TileRegion* present;
};

// Per-region constants of y = (x - mean) * scale + offset; each (K), or (K, C) for channels last.
template <class A>
struct RegionConstants {
  const A* mean;
  const A* scale;
  const A* offset;
};

// Per-region constants of grad_x = scale * (g - mean_gradient) - (x - mean) * slope.
template <class A>
struct RegionGradient {
  const A* mean;
  const A* scale;
  const A* mean_gradient;
  const A* slope;
};

// Per-pixel maps, null where absent.
template <class A>
struct PixelMaps {
  const A* weight = nullptr;  // multiplies y, or the incoming gradient
  const A* bias = nullptr;
  const A* mean_gradient = nullptr;  // gradient of the mean over channels, already divided by C
  const A* max_gradient = nullptr;   // gradient of the maximum over channels
  const int32_t* argmax = nullptr;
};

// `stream`: the result is too large to stay in the cache, so write around it.
#define TORCHEXT_REGION_NORM_KERNELS                                                               \
  /* Writes the regions that occur in a tile; returns how many, or -1 for a label out of range. */ \
  int32_t tile_regions(const uint8_t* labels, int64_t count, int64_t num_regions,                  \
                       TileRegion* present);                                                       \
  template <class T>                                                                               \
  void plane_moments(const T* x, const LabelPlane& plane, bool ignore_holes, Moments* moments);    \
  template <class T>                                                                               \
  void plane_apply(const T* x, const LabelPlane& plane, const RegionConstants<accumulate_t<T>>& k, \
                   int64_t num_regions, const PixelMaps<accumulate_t<T>>& maps, bool ignore_holes, \
                   bool stream, T* y);                                                             \
  template <class T>                                                                               \
  void plane_gradient_sums(const T* grad, const T* x, const LabelPlane& plane,                     \
                           const accumulate_t<T>* mean, const accumulate_t<T>* rstd,               \
                           int64_t num_regions, const accumulate_t<T>* weight_map,                 \
                           bool ignore_holes, double* sums, accumulate_t<T>* weight_gradient,      \
                           accumulate_t<T>* bias_gradient);                                        \
  template <class T>                                                                               \
  void plane_gradient_apply(const T* grad, const T* x, const LabelPlane& plane,                    \
                            const RegionGradient<accumulate_t<T>>& k, int64_t num_regions,         \
                            const PixelMaps<accumulate_t<T>>& maps, int32_t channel,               \
                            bool ignore_holes, bool stream, T* grad_x);                            \
  template <class T>                                                                               \
  void pixels_moments(const T* x, const uint8_t* labels, int64_t pixels, int64_t channels,         \
                      int64_t num_regions, bool ignore_holes, int64_t* count, double* mean,        \
                      double* squares);                                                            \
  template <class T>                                                                               \
  void pixels_apply(const T* x, const uint8_t* labels, int64_t pixels, int64_t channels,           \
                    const RegionConstants<accumulate_t<T>>& k,                                     \
                    const PixelMaps<accumulate_t<T>>& maps, bool ignore_holes, T* y);              \
  template <class T>                                                                               \
  void pixels_gradient_sums(const T* grad, const T* x, const uint8_t* labels, int64_t pixels,      \
                            int64_t channels, int64_t num_regions, const accumulate_t<T>* mean,    \
                            const accumulate_t<T>* rstd, const accumulate_t<T>* weight_map,        \
                            bool ignore_holes, double* sums, accumulate_t<T>* weight_gradient,     \
                            accumulate_t<T>* bias_gradient);                                       \
  template <class T>                                                                               \
  void pixels_gradient_apply(const T* grad, const T* x, const uint8_t* labels, int64_t pixels,     \
                             int64_t channels, const RegionGradient<accumulate_t<T>>& k,           \
                             const PixelMaps<accumulate_t<T>>& maps, bool ignore_holes,            \
                             T* grad_x);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_REGION_NORM_KERNELS)

}  // namespace torchext
