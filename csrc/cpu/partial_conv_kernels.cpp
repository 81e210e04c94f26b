// Partial convolution's mask window, product and epilogue, vectorised (compiled once per SIMD
// level, see simd.h).
#include "partial_conv_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

// Sums are kept in this many lanes, so that they vectorise and do not depend on the SIMD level.
constexpr int64_t kLanes = 16;

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class A>
inline A rescaled(A raw, A scale, A updated, A bias) {
  const A value = raw * scale + bias * updated;
  return updated == A(0) ? A(0) : value;
}

template <class A>
inline A finished(A value, A weight, A shift, A slope) {
  value = value * weight + shift;
  return value > A(0) ? value : value * slope;
}

template <class A>
inline A masked(A value, A mask) {
  return mask == A(0) ? A(0) : value * mask;
}

// 0 in a hole, whatever the value is.
template <class A>
inline A outside_holes(A value, A mask) {
  return mask == A(0) ? A(0) : value;
}

// The gradient before mask_output and activation; y is the result, of whatever sign with slope 1.
template <class A>
inline A pulled_back(A grad, A y, A updated, A slope, bool remask) {
  const A value = masked(grad, remask ? updated : A(1));
  return y > A(0) ? value : value * slope;
}

// Loops of a fixed length, for the elements that are accumulated in their own type.
template <class A>
inline void multiply_lanes(const A* __restrict x, const A* __restrict mask, A* __restrict y) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) y[l] = masked(x[l], mask[l]);
}

template <class A>
inline void rescale_row(const A* __restrict raw, const A* __restrict scale,
                        const A* __restrict updated, A bias, A* __restrict y) {
#pragma omp simd
  for (int64_t i = 0; i < kTileSide; ++i) y[i] = rescaled(raw[i], scale[i], updated[i], bias);
}

}  // namespace

template <class T>
void add_scaled(const T* values, accumulate_t<T> factor, int64_t count, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t n = smaller(kTile, count - first);
    const A* __restrict in = input(values + first, n);
    A* __restrict out = sums + first;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += factor * in[i];
  }
}

template <class T>
void sum_channels(const T* values, const accumulate_t<T>* factors, int64_t pixels, int64_t channels,
                  accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  for (int64_t p = 0; p < pixels; ++p) {
    A lanes[kLanes] = {};
    for (int64_t first = 0; first < channels; first += kTile) {
      const int64_t n = smaller(kTile, channels - first);
      const A* __restrict in = input(values + p * channels + first, n);
      const int64_t whole = n / kLanes * kLanes;
      for (int64_t c = 0; c < whole; c += kLanes)
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l)
          lanes[l] += (factors ? factors[first + c + l] : A(1)) * in[c + l];
      for (int64_t c = whole; c < n; ++c)
        lanes[c - whole] += (factors ? factors[first + c] : A(1)) * in[c];
    }
    A sum = 0;
    for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
    sums[p] = sum;
  }
}

template <class A>
void window_row(const A* columns, int64_t kernel, int64_t stride, int64_t dilation, int64_t width,
                const WindowRule<A>& rule, A* sums, A* scale, A* updated) {
  for (int64_t i = 0; i < width; ++i) sums[i] = columns[i * stride];
  for (int64_t k = 1; k < kernel; ++k) {
    const A* __restrict shifted = columns + k * dilation;
    A* __restrict out = sums;
    if (stride == 1) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[i] += shifted[i];
    } else {
      for (int64_t i = 0; i < width; ++i) out[i] += shifted[i * stride];
    }
  }
  const A* __restrict in = sums;
  A* __restrict scales = scale;
  A* __restrict masks = updated;
  if (rule.ratio) {
    const A window = rule.window, eps = rule.eps;
    const bool bias = rule.bias;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const A s = in[i];
      const A u = s < A(0) ? A(0) : s > A(1) ? A(1) : s;
      const A r = window / (s + eps) * u;
      scales[i] = bias ? r * u : r;
      masks[i] = u;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const A s = in[i];
      const A inverse = A(1) / (s == A(0) ? A(1) : s);
      scales[i] = s == A(0) ? A(0) : inverse;
      masks[i] = s == A(0) ? A(0) : A(1);
    }
  }
}

template <class T>
void multiply_mask(const T* x, const T* mask, int64_t count, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input, mask_input;
  OutputTile<T> output;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t n = smaller(kTile, count - first);
    const A* in = input(x + first, n);
    const A* __restrict m = mask_input(mask + first, n);
    A* out = output(y + first);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = masked(in[i], m[i]);
    output.commit(y + first, n);
  }
}

template <class T>
void multiply_mask_value(const T* x, T mask, int64_t count, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input, mask_input;
  OutputTile<T> output;
  const A m = *mask_input(&mask, 1);
  if (m == A(0)) {
    memset(y, 0, count * sizeof(T));
  } else if (m == A(1)) {
    if (y != x) memcpy(y, x, count * sizeof(T));
  } else {
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t n = smaller(kTile, count - first);
      const A* in = input(x + first, n);
      A* out = output(y + first);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = in[i] * m;
      output.commit(y + first, n);
    }
  }
}

template <class T>
void epilogue_plane(const T* raw, const accumulate_t<T>* scale, const accumulate_t<T>* updated,
                    int64_t count, int64_t c, const ChannelEpilogue<accumulate_t<T>>& epilogue,
                    T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  OutputTile<T> output;
  const A bias = epilogue.bias ? epilogue.bias[c] : A(0);
  const A weight = epilogue.norm_weight ? epilogue.norm_weight[c] : A(1);
  const A shift = epilogue.norm_bias ? epilogue.norm_bias[c] : A(0);
  const A slope = epilogue.negative_slope;
  const bool plain = !epilogue.norm_weight && slope == A(1);
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t n = smaller(kTile, count - first);
    const A* in = input(raw + first, n);
    const A* __restrict k = scale + first;
    const A* __restrict u = updated + first;
    A* out = output(y + first);
    if (plain) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = rescaled(in[i], k[i], u[i], bias);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        out[i] = finished(rescaled(in[i], k[i], u[i], bias), weight, shift, slope);
    }
    if (epilogue.mask_output)
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = masked(out[i], u[i]);
    output.commit(y + first, n);
  }
}

template <class T>
void epilogue_pixels(const T* raw, const accumulate_t<T>* scale, const accumulate_t<T>* updated,
                     int64_t pixels, int64_t channels,
                     const ChannelEpilogue<accumulate_t<T>>& epilogue, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  OutputTile<T> output;
  const A slope = epilogue.negative_slope;
  for (int64_t p = 0; p < pixels; ++p) {
    const A k = scale[p], u = updated[p];
    for (int64_t first = 0; first < channels; first += kTile) {
      const int64_t n = smaller(kTile, channels - first);
      const int64_t at = p * channels + first;
      const A* in = input(raw + at, n);
      A* out = output(y + at);
      if (u == A(0)) {
        for (int64_t c = 0; c < n; ++c) out[c] = A(0);
      } else if (epilogue.bias) {
        const A* __restrict bias = epilogue.bias + first;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = in[c] * k + bias[c] * u;
      } else {
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = in[c] * k;
      }
      if (epilogue.norm_weight) {
        const A* __restrict weight = epilogue.norm_weight + first;
        const A* __restrict shift = epilogue.norm_bias + first;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = out[c] * weight[c] + shift[c];
      }
      if (slope != A(1))
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = out[c] > A(0) ? out[c] : out[c] * slope;
      if (epilogue.mask_output)
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = masked(out[c], u);
      output.commit(y + at, n);
    }
  }
}

// A window of a plane, zero outside of it, times the mask (if any).
template <class T>
inline void gather_tile(const T* plane, const T* mask, int64_t height, int64_t width, int64_t top,
                        int64_t left, int64_t rows, int64_t columns, T* tile) {
  using A = accumulate_t<T>;
  int64_t r = 0;
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    // Rows are short: inside of the plane they are taken in whole vectors. What is too much, the
    // next row overwrites; the last ones, which may not write beyond the tile, are left for below.
    const int64_t whole = (columns + kLanes - 1) / kLanes * kLanes;
    const bool inside = top >= 0 && top + rows <= height && left >= 0 && left + whole <= width;
    for (; inside && r * columns + whole <= rows * columns; ++r) {
      const int64_t at = (top + r) * width + left;
      for (int64_t i = 0; i < whole; i += kLanes) {
        if (mask != nullptr)
          multiply_lanes(plane + at + i, mask + at + i, tile + r * columns + i);
        else
          memcpy(tile + r * columns + i, plane + at + i, kLanes * sizeof(T));
      }
    }
  }
  const int64_t before = left < 0 ? smaller(-left, columns) : 0;
  const int64_t end = smaller(columns, width - left);
  const int64_t count = end > before ? end - before : 0;
  for (; r < rows; ++r) {
    T* out = tile + r * columns;
    const int64_t row = top + r;
    if (row < 0 || row >= height || count == 0) {
      memset(out, 0, columns * sizeof(T));
      continue;
    }
    const int64_t at = row * width + left + before;
    memset(out, 0, before * sizeof(T));
    if (mask != nullptr)
      multiply_mask(plane + at, mask + at, count, out + before);
    else
      memcpy(out + before, plane + at, count * sizeof(T));
    memset(out + before + count, 0, (columns - before - count) * sizeof(T));
  }
}

// The epilogue of `rows` by `columns` of a tile of channel c.
template <class T>
inline void epilogue_tile(const T* tile, const accumulate_t<T>* scale,
                          const accumulate_t<T>* updated, int64_t rows, int64_t columns,
                          int64_t width, int64_t c,
                          const ChannelEpilogue<accumulate_t<T>>& epilogue, T* plane) {
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    const bool plain =
        !epilogue.norm_weight && epilogue.negative_slope == 1 && !epilogue.mask_output;
    if (plain && rows == kTileSide && columns == kTileSide) {
      const T bias = epilogue.bias ? epilogue.bias[c] : T(0);
      for (int64_t r = 0; r < kTileSide; ++r)
        rescale_row(tile + r * kTileSide, scale + r * width, updated + r * width, bias,
                    plane + r * width);
      return;
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    epilogue_plane(tile + r * kTileSide, scale + r * width, updated + r * width, columns, c,
                   epilogue, plane + r * width);
}

template <class T>
void gather_row(const T* plane, const T* mask, const PlaneWindows& windows, int64_t top,
                const int32_t* slots, int64_t count, int64_t pitch, T* tiles) {
  for (int64_t i = 0; i < windows.tiles; ++i)
    if (slots[i] >= 0 && slots[i] < count)
      gather_tile(plane, mask, windows.height, windows.width, top, windows.left + i * windows.step,
                  windows.rows, windows.columns, tiles + slots[i] * pitch);
}

template <class T>
void scatter_row(const T* tiles, const int32_t* slots, int64_t count, int64_t pitch,
                 const accumulate_t<T>* scale, const accumulate_t<T>* updated, int64_t rows,
                 int64_t width, int64_t c, const ChannelEpilogue<accumulate_t<T>>& epilogue,
                 T* plane) {
  const T nothing[kTileSide * kTileSide] = {};
  for (int64_t i = 0, left = 0; left < width; ++i, left += kTileSide)
    epilogue_tile(slots[i] >= 0 && slots[i] < count ? tiles + slots[i] * pitch : nothing,
                  scale + left, updated + left, rows, smaller(kTileSide, width - left), width, c,
                  epilogue, plane + left);
}

template <class T>
void epilogue_backward_plane(const EpilogueGradient<T>& of, int64_t count, int64_t c, T* grad_raw,
                             accumulate_t<T>* sums, int64_t stride) {
  using A = accumulate_t<T>;
  InputTile<T> input, y_input, raw_input;
  OutputTile<T> output;
  const A weight = of.norm_weight ? of.norm_weight[c] : A(1);
  const A slope = of.negative_slope;
  const bool remask = of.mask_output;
  const A span = remask ? A(1) : A(0), least = A(1) - span;  // of the mask over the output
  A of_bias[kLanes] = {}, of_shift[kLanes] = {}, of_weight[kLanes] = {};
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t n = smaller(kTile, count - first);
    const A* __restrict g = input(of.grad + first, n);
    const A* y = of.y ? y_input(of.y + first, n) : g;
    const A* __restrict k = of.scale + first;
    const A* __restrict u = of.updated + first;
    A* __restrict out = output(grad_raw + first);
    const int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      // A loop for each, or the compiler joins their conditions to branches.
      A a[kLanes];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) a[l] = masked(g[i + l], least + span * u[i + l]);
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) a[l] = y[i + l] > A(0) ? a[l] : a[l] * slope;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) of_bias[l] += masked(a[l], u[i + l]);
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) of_shift[l] += a[l];
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) out[i + l] = outside_holes(a[l] * k[i + l], u[i + l]);
    }
    for (int64_t i = whole; i < n; ++i) {
      const A a = pulled_back(g[i], y[i], u[i], slope, remask);
      of_bias[i - whole] += masked(a, u[i]);
      of_shift[i - whole] += a;
      out[i] = outside_holes(a * k[i], u[i]);
    }
    if (of.raw) {
      const A* __restrict raw = raw_input(of.raw + first, n);
      for (int64_t i = 0; i < whole; i += kLanes)
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l)
          of_weight[l] += outside_holes(out[i + l] * raw[i + l], u[i + l]);
      for (int64_t i = whole; i < n; ++i)
        of_weight[i - whole] += outside_holes(out[i] * raw[i], u[i]);
    }
    if (of.norm_weight)
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] *= weight;
    output.commit(grad_raw + first, n);
  }
  const A* const lanes[] = {of_bias, of_shift, of_weight};
  for (int64_t s = 0; s < 3; ++s) {
    A sum = 0;
    for (int64_t l = 0; l < kLanes; ++l) sum += lanes[s][l];
    sums[s * stride] = sum;
  }
}

template <class T>
void epilogue_backward_pixels(const EpilogueGradient<T>& of, int64_t pixels, int64_t channels,
                              T* grad_raw, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  InputTile<T> input, y_input, raw_input;
  OutputTile<T> output;
  const A slope = of.negative_slope;
  const bool remask = of.mask_output;
  for (int64_t p = 0; p < pixels; ++p) {
    const A u = of.updated[p], k = of.scale[p];
    for (int64_t first = 0; first < channels; first += kTile) {
      const int64_t n = smaller(kTile, channels - first);
      const int64_t at = p * channels + first;
      const A* __restrict g = input(of.grad + at, n);
      const A* y = of.y ? y_input(of.y + at, n) : g;
      A* __restrict out = output(grad_raw + at);
      A* __restrict of_bias = sums + first;
      A* __restrict of_shift = sums + channels + first;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) {
        const A a = pulled_back(g[c], y[c], u, slope, remask);
        of_bias[c] += masked(a, u);
        of_shift[c] += a;
        out[c] = u == A(0) ? A(0) : a * k;
      }
      if (of.raw && u != A(0)) {
        const A* __restrict raw = raw_input(of.raw + at, n);
        A* __restrict of_weight = sums + 2 * channels + first;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) of_weight[c] += out[c] * raw[c];
      }
      if (of.norm_weight) {
        const A* __restrict weight = of.norm_weight + first;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] *= weight[c];
      }
      output.commit(grad_raw + at, n);
    }
  }
}

#define TORCHEXT_INSTANTIATE(T)                                                                    \
  template void add_scaled<T>(const T*, accumulate_t<T>, int64_t, accumulate_t<T>*);               \
  template void sum_channels<T>(const T*, const accumulate_t<T>*, int64_t, int64_t,                \
                                accumulate_t<T>*);                                                 \
  template void multiply_mask<T>(const T*, const T*, int64_t, T*);                                 \
  template void multiply_mask_value<T>(const T*, T, int64_t, T*);                                  \
  template void epilogue_plane<T>(const T*, const accumulate_t<T>*, const accumulate_t<T>*,        \
                                  int64_t, int64_t, const ChannelEpilogue<accumulate_t<T>>&, T*);  \
  template void epilogue_pixels<T>(const T*, const accumulate_t<T>*, const accumulate_t<T>*,       \
                                   int64_t, int64_t, const ChannelEpilogue<accumulate_t<T>>&, T*); \
  template void gather_row<T>(const T*, const T*, const PlaneWindows&, int64_t, const int32_t*,    \
                              int64_t, int64_t, T*);                                               \
  template void scatter_row<T>(const T*, const int32_t*, int64_t, int64_t, const accumulate_t<T>*, \
                               const accumulate_t<T>*, int64_t, int64_t, int64_t,                  \
                               const ChannelEpilogue<accumulate_t<T>>&, T*);                       \
  template void epilogue_backward_plane<T>(const EpilogueGradient<T>&, int64_t, int64_t, T*,       \
                                           accumulate_t<T>*, int64_t);                             \
  template void epilogue_backward_pixels<T>(const EpilogueGradient<T>&, int64_t, int64_t, T*,      \
                                            accumulate_t<T>*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

template void window_row<float>(const float*, int64_t, int64_t, int64_t, int64_t,
                                const WindowRule<float>&, float*, float*, float*);
template void window_row<double>(const double*, int64_t, int64_t, int64_t, int64_t,
                                 const WindowRule<double>&, double*, double*, double*);

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
