// Interleaving of the phases of an up-sampling convolution, vectorised (compiled once per SIMD
// level, see simd.h).
#include "upsample_conv_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

constexpr int64_t kColumns = kTile / 2;  // low-resolution columns of a tile of output

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace

template <class T>
void interleave_row(const T* even, const T* odd, accumulate_t<T> bias, const T* addend,
                    int64_t columns, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> even_input, odd_input, addend_input;
  OutputTile<T> output;
  for (int64_t first = 0; first < columns; first += kColumns) {
    const int64_t n = smaller(kColumns, columns - first);
    const A* __restrict left = even_input(even + first, n);
    const A* __restrict right = odd_input(odd + first, n);
    A* __restrict out = output(y + 2 * first);
    if (addend != nullptr) {
      const A* __restrict more = addend_input(addend + 2 * first, 2 * n);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        out[2 * j] = left[j] + bias + more[2 * j];
        out[2 * j + 1] = right[j] + bias + more[2 * j + 1];
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        out[2 * j] = left[j] + bias;
        out[2 * j + 1] = right[j] + bias;
      }
    }
    output.commit(y + 2 * first, 2 * n);
  }
}

template <class T>
void add_row(const T* x, const accumulate_t<T>* bias, const T* addend, int64_t count, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input, addend_input;
  OutputTile<T> output;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t n = smaller(kTile, count - first);
    const A* __restrict in = input(x + first, n);
    A* __restrict out = output(y + first);
    for (int64_t c = 0; c < n; ++c) out[c] = bias ? in[c] + bias[first + c] : in[c];
    if (addend != nullptr) {
      const A* __restrict more = addend_input(addend + first, n);
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) out[c] += more[c];
    }
    output.commit(y + first, n);
  }
}

template <class T>
void deinterleave_row(const T* grad, int64_t columns, T* even, T* odd) {
  for (int64_t j = 0; j < columns; ++j) {
    even[j] = grad[2 * j];
    odd[j] = grad[2 * j + 1];
  }
}

#define TORCHEXT_INSTANTIATE(T)                                                                \
  template void interleave_row<T>(const T*, const T*, accumulate_t<T>, const T*, int64_t, T*); \
  template void add_row<T>(const T*, const accumulate_t<T>*, const T*, int64_t, T*);           \
  template void deinterleave_row<T>(const T*, int64_t, T*, T*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
