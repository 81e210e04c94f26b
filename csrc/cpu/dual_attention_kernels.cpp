// Dual attention, vectorised (compiled once per SIMD level, see simd.h).
#include "dual_attention_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace

template <class T>
void run_sums(const T* x, TileRuns tile, double* by_run) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  for (int64_t r = 0; r < tile.runs; ++r)
    for (int64_t start = 0; start < tile.length; start += kTile) {
      const int64_t count = smaller(kTile, tile.length - start);
      const A* values = input(x + r * tile.stride + start, count);
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < count; ++i) sum += values[i];
      by_run[r] += static_cast<double>(sum);
    }
}

template <class T>
void element_sums(const T* x, TileRuns tile, accumulate_t<T>* by_element) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  for (int64_t r = 0; r < tile.runs; ++r)
    for (int64_t start = 0; start < tile.length; start += kTile) {
      const int64_t count = smaller(kTile, tile.length - start);
      const A* __restrict values = input(x + r * tile.stride + start, count);
      A* __restrict sums = by_element + start;
      for (int64_t i = 0; i < count; ++i) sums[i] += values[i];
    }
}

template <class T>
void dual_attention_tile(const T* high, const T* low, T* y, TileRuns tile,
                         Scales<accumulate_t<T>> scales, accumulate_t<T> slope) {
  using A = accumulate_t<T>;
  InputTile<T> high_input, low_input;
  OutputTile<T> output;
  for (int64_t r = 0; r < tile.runs; ++r)
    for (int64_t start = 0; start < tile.length; start += kTile) {
      const int64_t count = smaller(kTile, tile.length - start), at = r * tile.stride + start;
      const A* __restrict highs = high_input(high + at, count);
      const A* __restrict lows = low_input(low + at, count);
      const A* __restrict of_element = scales.of_element + start;
      A* __restrict out = output(y + at);
      const A of_run = scales.of_run[r];
      for (int64_t i = 0; i < count; ++i) {
        const A mixed = highs[i] + lows[i] * (of_run + of_element[i]);
        out[i] = mixed > 0 ? mixed : slope * mixed;
      }
      output.commit(y + at, count);
    }
}

template <class T>
void dual_attention_backward_tile(const T* grad, const T* y, const T* low, T* grad_high,
                                  T* grad_low, TileRuns tile, Scales<accumulate_t<T>> scales,
                                  accumulate_t<T> slope, accumulate_t<T>* by_run,
                                  accumulate_t<T>* by_element) {
  using A = accumulate_t<T>;
  InputTile<T> grad_input, y_input, low_input;
  OutputTile<T> high_output, low_output;
  for (int64_t r = 0; r < tile.runs; ++r) {
    A sum_of_run = 0;
    for (int64_t start = 0; start < tile.length; start += kTile) {
      const int64_t count = smaller(kTile, tile.length - start), at = r * tile.stride + start;
      const A* __restrict grads = grad_input(grad + at, count);
      const A* __restrict ys = y_input(y + at, count);
      const A* __restrict lows = low_input(low + at, count);
      const A* __restrict of_element = scales.of_element + start;
      A* __restrict highs_out = high_output(grad_high + at);
      A* __restrict lows_out = low_output(grad_low + at);
      A* __restrict sums = by_element + start;
      const A of_run = scales.of_run[r];
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < count; ++i) {
        const A mixed = ys[i] > 0 ? grads[i] : slope * grads[i];
        const A product = mixed * lows[i];
        highs_out[i] = mixed;
        lows_out[i] = mixed * (of_run + of_element[i]);
        sums[i] += product;
        sum += product;
      }
      high_output.commit(grad_high + at, count);
      low_output.commit(grad_low + at, count);
      sum_of_run += sum;
    }
    by_run[r] = sum_of_run;
  }
}

#define TORCHEXT_INSTANTIATE(T)                                                                   \
  template void run_sums<T>(const T*, TileRuns, double*);                                         \
  template void element_sums<T>(const T*, TileRuns, accumulate_t<T>*);                            \
  template void dual_attention_tile<T>(const T*, const T*, T*, TileRuns, Scales<accumulate_t<T>>, \
                                       accumulate_t<T>);                                          \
  template void dual_attention_backward_tile<T>(const T*, const T*, const T*, T*, T*, TileRuns,   \
                                                Scales<accumulate_t<T>>, accumulate_t<T>,         \
                                                accumulate_t<T>*, accumulate_t<T>*);

TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
