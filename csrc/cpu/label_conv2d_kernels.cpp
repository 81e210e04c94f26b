// The label convolution, vectorised (compiled once per SIMD level, see simd.h).
//
// Neighbouring pixels that see the same labels have the same result: a row is walked by such runs.
#include "label_conv2d_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The end of the run of equal windows that begins at x, at most `end`.
inline int64_t run_end(const uint8_t* same, int64_t x, int64_t end) {
  ++x;
  while (x < end && same[x] != 0) ++x;
  return x;
}

// Calls body(tap, row of the table) for the window of pixel x.
template <class Body>
inline void for_each_tap(const LabelRows& labels, int64_t x, Body body) {
  for (int64_t ky = 0; ky < labels.kernel; ++ky)
    for (int64_t kx = 0; kx < labels.kernel; ++kx)
      body((ky * labels.kernel + kx) * labels.tap_stride +
           static_cast<int64_t>(labels.rows[ky][x + kx]) * labels.channels);
}

}  // namespace

void same_windows(const LabelRows& labels, uint8_t* changed, uint8_t* same) {
  const int64_t columns = labels.width + labels.kernel - 1;
  for (int64_t x = 0; x < columns; ++x) changed[x] = 0;
  for (int64_t ky = 0; ky < labels.kernel; ++ky) {
    const int32_t* __restrict row = labels.rows[ky];
    for (int64_t x = 1; x < columns; ++x)
      changed[x] = static_cast<uint8_t>(changed[x] | (row[x] != row[x - 1]));
  }
  for (int64_t x = 0; x < labels.width; ++x) same[x] = 1;
  for (int64_t kx = 0; kx < labels.kernel; ++kx) {
    const uint8_t* __restrict from = changed + kx;
    for (int64_t x = 0; x < labels.width; ++x)
      same[x] = static_cast<uint8_t>(same[x] & (from[x] ^ 1));
  }
  same[0] = 0;
}

template <class T>
void label_conv_row(const LabelRows& labels, const uint8_t* same, const accumulate_t<T>* table,
                    const accumulate_t<T>* bias, int64_t channel_stride, accumulate_t<T>* scratch,
                    T* out) {
  using A = accumulate_t<T>;
  const int64_t C = labels.channels;
  A* __restrict sums = scratch;
  A* __restrict gathered = scratch + C;  // (channels, kLabelStride)
  bool fresh = false;                    // whether `sums` belongs to the run that goes on
  for (int64_t begin = 0; begin < labels.width; begin += kLabelPixels) {
    const int64_t end = smaller(begin + kLabelPixels, labels.width), pixels = end - begin;
    for (int64_t x = begin; x < end;) {
      const int64_t stop = run_end(same, x, end);
      if (!fresh || same[x] == 0) {
        for (int64_t c = 0; c < C; ++c) sums[c] = bias != nullptr ? bias[c] : A(0);
        for_each_tap(labels, x, [&](int64_t at) {
          const A* __restrict row = table + at;
          for (int64_t c = 0; c < C; ++c) sums[c] += row[c];
        });
        fresh = true;
      }
      for (int64_t c = 0; c < C; ++c) {
        A* __restrict to = gathered + c * kLabelStride;
        const A value = sums[c];
        for (int64_t i = x - begin; i < stop - begin; ++i) to[i] = value;
      }
      x = stop;
    }
    for (int64_t c = 0; c < C; ++c) {
      OutputTile<T> tile;
      T* to = out + c * channel_stride + begin;
      A* __restrict values = tile(to);
      const A* __restrict from = gathered + c * kLabelStride;
      if (pixels == kLabelPixels)
        for (int64_t i = 0; i < kLabelPixels; ++i) values[i] = from[i];
      else
        for (int64_t i = 0; i < pixels; ++i) values[i] = from[i];
      tile.commit(to, pixels);
    }
  }
}

template <class T>
void label_conv_gradient_row(const LabelRows& labels, const uint8_t* same, const T* grad,
                             int64_t channel_stride, accumulate_t<T>* scratch,
                             accumulate_t<T>* table) {
  using A = accumulate_t<T>;
  const int64_t C = labels.channels;
  A* __restrict sums = scratch;
  A* __restrict gathered = scratch + C;  // (channels, kLabelStride)
  InputTile<T> input;
  for (int64_t begin = 0; begin < labels.width; begin += kLabelPixels) {
    const int64_t end = smaller(begin + kLabelPixels, labels.width), pixels = end - begin;
    for (int64_t c = 0; c < C; ++c) {
      const A* __restrict from = input(grad + c * channel_stride + begin, pixels);
      A* __restrict to = gathered + c * kLabelStride;
      for (int64_t i = 0; i < pixels; ++i) to[i] = from[i];
    }
    for (int64_t x = begin; x < end;) {
      const int64_t stop = run_end(same, x, end);
      const int64_t length = stop - x;
      const A* from = gathered + (x - begin);
      if (length == 1)
        for (int64_t c = 0; c < C; ++c) sums[c] = from[c * kLabelStride];
      else
        for (int64_t c = 0; c < C; ++c) {
          const A* values = from + c * kLabelStride;
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < length; ++i) sum += values[i];
          sums[c] = sum;
        }
      for_each_tap(labels, x, [&](int64_t at) {
        A* __restrict row = table + at;
        for (int64_t c = 0; c < C; ++c) row[c] += sums[c];
      });
      x = stop;
    }
  }
}

#define TORCHEXT_INSTANTIATE(T)                                                                 \
  template void label_conv_row<T>(const LabelRows&, const uint8_t*, const accumulate_t<T>*,     \
                                  const accumulate_t<T>*, int64_t, accumulate_t<T>*, T*);       \
  template void label_conv_gradient_row<T>(const LabelRows&, const uint8_t*, const T*, int64_t, \
                                           accumulate_t<T>*, accumulate_t<T>*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
