// The vectorised inner parts of the diversity maps. diversity_map.cpp walks them.
#pragma once

#include "simd.h"

namespace torchext {

#define TORCHEXT_DIVERSITY_MAP_KERNELS                                                             \
  /* Distances to the nearest known pixel above (or below), from those of the row before; the      \
     largest is `cap`. */                                                                          \
  void next_distances(const uint8_t* known, const uint16_t* before, int64_t width, uint16_t cap,   \
                      uint16_t* distance);                                                         \
  /* rings = ceil(min(above, below) / radius), at most `steps` */                                  \
  void vertical_rings(const uint16_t* above, const uint16_t* below, int64_t width, int64_t radius, \
                      uint8_t steps, uint8_t* rings);                                              \
  /* The rings of both directions. `vertical` has (steps - 1) * radius more on each side. */       \
  void spread_rings(const uint8_t* vertical, int64_t width, int64_t radius, uint8_t steps,         \
                    uint8_t* rings);                                                               \
  /* y = 1 where known, else sigmoid(logits), for count <= kTile */                                \
  template <class T>                                                                               \
  void soft_map_pixels(const T* logits, const uint8_t* known, int64_t count, T* y);                \
  template <class T>                                                                               \
  void soft_map_channels(const T* logits, bool known, int64_t count, T* y);                        \
  template <class T>                                                                               \
  void soft_map_gradient_pixels(const T* grad, const T* y, const uint8_t* known, int64_t count,    \
                                T* grad_logits);                                                   \
  template <class T>                                                                               \
  void soft_map_gradient_channels(const T* grad, const T* y, bool known, int64_t count,            \
                                  T* grad_logits);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_DIVERSITY_MAP_KERNELS)

}  // namespace torchext
