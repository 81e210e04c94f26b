// The vectorised inner parts of dual attention. dual_attention.cpp walks them.
#pragma once

#include "simd.h"

namespace torchext {

// `runs` runs of `length` consecutive elements, `stride` apart: of an image's tile, its channels
// (contiguous: a run holds pixels) or its pixels (channels last: a run holds channels).
struct TileRuns {
  int64_t runs, length, stride;
};

// What the gate and the attention are to a tile: one of them a value for each run, the other a
// value for each element of a run.
template <class A>
struct Scales {
  const A* of_run;
  const A* of_element;
};

#define TORCHEXT_DUAL_ATTENTION_KERNELS                                                            \
  /* by_run[r] += the sum of a run */                                                              \
  template <class T>                                                                               \
  void run_sums(const T* x, TileRuns tile, double* by_run);                                        \
  /* by_element[i] += the sum over the runs, of up to kTile elements each */                       \
  template <class T>                                                                               \
  void element_sums(const T* x, TileRuns tile, accumulate_t<T>* by_element);                       \
  /* y = leaky(high + low * (of_run + of_element)) */                                              \
  template <class T>                                                                               \
  void dual_attention_tile(const T* high, const T* low, T* y, TileRuns tile,                       \
                           Scales<accumulate_t<T>> scales, accumulate_t<T> slope);                 \
  /* The gradients of high and low; by_run and by_element receive the sums of high's times low. */ \
  template <class T>                                                                               \
  void dual_attention_backward_tile(const T* grad, const T* y, const T* low, T* grad_high,         \
                                    T* grad_low, TileRuns tile, Scales<accumulate_t<T>> scales,    \
                                    accumulate_t<T> slope, accumulate_t<T>* by_run,                \
                                    accumulate_t<T>* by_element);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_DUAL_ATTENTION_KERNELS)

}  // namespace torchext
