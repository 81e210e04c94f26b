// The oriented filters, vectorised (compiled once per SIMD level, see simd.h).
#include "gabor_orientation_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectors = 1;
#else
constexpr int kVectorBytes = 16, kVectors = 1;
#endif

// GCC and Clang's own vectors: sums in registers must stay there, which loops do not promise.
template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
  typedef double vector __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class A>
constexpr int64_t kLanes = kVectorBytes / sizeof(A);
// Columns that are filtered at a time.
template <class A>
constexpr int64_t kColumns = kVectors * kLanes<A>;

template <class A>
using Vector = typename Lanes<A>::vector;

// A few pixels side by side.
template <class A>
struct Pixels {
  Vector<A> v[kVectors];
};
template <class A>
inline Pixels<A> load(const A* from) {
  Pixels<A> result;
  for (int i = 0; i < kVectors; ++i)
    result.v[i] = *reinterpret_cast<const Vector<A>*>(from + i * kLanes<A>);
  return result;
}
template <class A>
inline void store(A* to, const Pixels<A>& pixels) {
  for (int i = 0; i < kVectors; ++i)
    *reinterpret_cast<Vector<A>*>(to + i * kLanes<A>) = pixels.v[i];
}
template <class A>
inline Pixels<A> operator+(const Pixels<A>& a, const Pixels<A>& b) {
  Pixels<A> result;
  for (int i = 0; i < kVectors; ++i) result.v[i] = a.v[i] + b.v[i];
  return result;
}
template <class A>
inline Pixels<A> operator-(const Pixels<A>& a, const Pixels<A>& b) {
  Pixels<A> result;
  for (int i = 0; i < kVectors; ++i) result.v[i] = a.v[i] - b.v[i];
  return result;
}

// out[filter] = sum over points of weights[point][filter] * folded[point]
template <class A, int kFilters>
void sum_block(const A* folded, int64_t points, const A* weights, A* out) {
  Vector<A> sums[kFilters][kVectors] = {};
  for (int64_t point = 0; point < points; ++point) {
    const Pixels<A> pixels = load(folded + point * kColumns<A>);
    for (int f = 0; f < kFilters; ++f)
      for (int i = 0; i < kVectors; ++i) sums[f][i] += weights[f] * pixels.v[i];
    weights += kFilters;
  }
  for (int f = 0; f < kFilters; ++f)
    for (int i = 0; i < kVectors; ++i)
      *reinterpret_cast<Vector<A>*>(out + f * kColumns<A> + i * kLanes<A>) = sums[f][i];
}

template <class A, int kFilters = kFilterBlock>
void sum_block(int64_t filters, const A* folded, int64_t points, const A* weights, A* out) {
  if (filters == kFilters)
    sum_block<A, kFilters>(folded, points, weights, out);
  else if constexpr (kFilters > 1)
    sum_block<A, kFilters - 1>(filters, folded, points, weights, out);
}

template <class A>
void sum_group(const FilterGroup<A>& group, const A* folded, A* out) {
  const A* weights = group.weights;
  for (int64_t first = 0; first < group.filters; first += kFilterBlock) {
    const int64_t filters =
        group.filters - first < kFilterBlock ? group.filters - first : kFilterBlock;
    sum_block(filters, folded, group.points, weights, out + first * kColumns<A>);
    weights += group.points * filters;
  }
}

// The window as it is.
template <class A>
void copy_window(const A* window, int64_t stride, int64_t size, A* folded) {
  for (int64_t u = 0; u < size; ++u)
    for (int64_t v = 0; v < size; ++v, folded += kColumns<A>)
      store(folded, load(window + u * stride + v));
}

// Pairs of the window's pixels under point reflection: the upper half, row by row, and the centre.
template <class A>
void fold_even(const A* window, int64_t stride, int64_t size, A* folded) {
  const A* last = window + (size - 1) * (stride + 1);
  for (int64_t u = 0; u <= size / 2; ++u)
    for (int64_t v = 0; v < (u < size / 2 ? size : size / 2); ++v, folded += kColumns<A>)
      store(folded, load(window + u * stride + v) + load(last - u * stride - v));
  store(folded, load(window + size / 2 * (stride + 1)));
}

// Of each row of a window: the centre; then for v = 1 ... half the sum and the difference of the
// pixels v to the right and to the left. All pixels below share it.
template <class A>
void mirror_row(const A* row, int64_t half, A* mirrored) {
  store(mirrored, load(row + half));
  for (int64_t v = 1; v <= half; ++v) {
    const Pixels<A> right = load(row + half + v), left = load(row + half - v);
    store(mirrored + v * kColumns<A>, right + left);
    store(mirrored + (half + v) * kColumns<A>, right - left);
  }
}

// The four signed combinations of a window under the square's symmetries, group after group, from
// the mirrored rows around the pixel's own (`centre`). Points of a group, in the order of the
// weights: u = 1 ... half, for each v = 0 ... u as far as the group has them; group 0 ends with the
// centre. On the axes (v = 0) the mirror's odd part vanishes, on the diagonal the transposition's.
template <class A>
void fold_square(const A* centre, int64_t size, A* folded, const FilterBank<A>& bank) {
  const int64_t half = size / 2, row = size * kColumns<A>;
  A* out[4];
  out[0] = folded;
  for (int g = 1; g < 4; ++g) out[g] = out[g - 1] + bank.group[g - 1].points * kColumns<A>;
  const auto put = [&](int g, const Pixels<A>& pixels) {
    store(out[g], pixels);
    out[g] += kColumns<A>;
  };
  // sums over the pixels (+-u, +-v), even and odd under mirroring
  const auto even = [&](int64_t u, int64_t v) {
    const A* at = centre + v * kColumns<A>;
    return u == 0 ? load(at) : load(at + u * row) + load(at - u * row);
  };
  const auto odd = [&](int64_t u, int64_t v) {
    const A* at = centre + (half + v) * kColumns<A>;
    return load(at + u * row) - load(at - u * row);
  };
  for (int64_t u = 1; u <= half; ++u) {
    const Pixels<A> column = even(u, 0), across = even(0, u);
    put(0, column + across);
    put(1, column - across);
    for (int64_t v = 1; v < u; ++v) {
      const Pixels<A> e = even(u, v), e_transposed = even(v, u);
      const Pixels<A> o = odd(u, v), o_transposed = odd(v, u);
      put(0, e + e_transposed);
      put(1, e - e_transposed);
      put(2, o + o_transposed);
      put(3, o - o_transposed);
    }
    put(0, even(u, u));
    put(2, odd(u, u));
  }
  put(0, load(centre));
}

// The bank's responses from the four groups' sums.
template <class A>
void unfold_square(const A* sums, int64_t count, A* responses) {
  const int64_t quarter = count / 4;
  const A* plus_plus = sums;
  const A* plus_minus = plus_plus + (quarter + 1) * kColumns<A>;
  const A* minus_plus = plus_minus + quarter * kColumns<A>;
  const A* minus_minus = minus_plus + quarter * kColumns<A>;
  const auto at = [](const A* from, int64_t i) { return load(from + i * kColumns<A>); };
  const auto put = [&](int64_t k, const Pixels<A>& r) { store(responses + k * kColumns<A>, r); };
  put(0, at(plus_plus, 0) + at(plus_minus, 0));
  put(2 * quarter, at(plus_plus, 0) - at(plus_minus, 0));
  put(quarter, at(plus_plus, quarter) + at(minus_plus, quarter - 1));
  put(3 * quarter, at(plus_plus, quarter) - at(minus_plus, quarter - 1));
  for (int64_t i = 1; i < quarter; ++i) {
    const Pixels<A> a = at(plus_plus, i), b = at(plus_minus, i);
    const Pixels<A> c = at(minus_plus, i - 1), d = at(minus_minus, i - 1);
    const Pixels<A> even = a + b, odd = a - b, mirrored_even = c + d, mirrored_odd = c - d;
    put(i, even + mirrored_even);              // its own
    put(count - i, even - mirrored_even);      // mirrored
    put(2 * quarter - i, odd + mirrored_odd);  // transposed
    put(2 * quarter + i, odd - mirrored_odd);  // both
  }
}

// The first of the largest rectified responses; NaN counts as the largest, with index 0.
template <class A>
void select(const A* responses, int64_t count, bool absolute, int32_t* index, A* response) {
  using Mask = typename Lanes<A>::mask;
  for (int i = 0; i < kVectors; ++i) {
    Vector<A> best = {}, signed_best = {};
    Mask place = {};
    for (int64_t k = 0; k < count; ++k) {
      const Vector<A> r =
          *reinterpret_cast<const Vector<A>*>(responses + k * kColumns<A> + i * kLanes<A>);
      const Vector<A> strength = absolute ? (r < 0 ? -r : r) : r;
      const Mask better = ~(Mask)(strength <= best) & (Mask)(best == best);
      best = better ? strength : best;
      signed_best = better ? r : signed_best;
      place = better ? place * 0 + static_cast<int32_t>(k) : place;
    }
    place &= (Mask)(best == best);
    *reinterpret_cast<Vector<A>*>(response + i * kLanes<A>) = signed_best;
    for (int64_t lane = 0; lane < kLanes<A>; ++lane)
      index[i * kLanes<A> + lane] = static_cast<int32_t>(place[lane]);
  }
}

inline void convert(const float* from, float* to, int64_t count) {
  memcpy(to, from, count * sizeof(float));
}
inline void convert(const double* from, double* to, int64_t count) {
  memcpy(to, from, count * sizeof(double));
}
inline void convert(const int32_t* from, int32_t* to, int64_t count) {
  memcpy(to, from, count * sizeof(int32_t));
}
inline void convert(const Half* from, float* to, int64_t count) {
  widen(from, to, count);
}
inline void convert(const BFloat16* from, float* to, int64_t count) {
  widen(from, to, count);
}

}  // namespace

template <class T, class A>
void fill_tile(const T* map, int64_t height, int64_t width, int64_t row, int64_t column,
               int64_t rows, int64_t columns, A* tile, int64_t stride) {
  const int64_t begin = column < 0 ? -column : 0;
  const int64_t end = width - column < columns ? width - column : columns;
  for (int64_t i = 0; i < rows; ++i, tile += stride) {
    const int64_t y = row + i;
    if (y < 0 || y >= height || begin >= end) {
      memset(tile, 0, stride * sizeof(A));
      continue;
    }
    memset(tile, 0, begin * sizeof(A));
    convert(map + y * width + column + begin, tile + begin, end - begin);
    memset(tile + end, 0, (stride - end) * sizeof(A));
  }
}

template <class A>
void filter_tile(const FilterBank<A>& bank, const A* window, int64_t rows, bool absolute,
                 A* scratch, int32_t* index, A* response) {
  const TileShape shape{bank.size};
  const int64_t size = bank.size, stride = shape.stride();
  A* mirrored = scratch;
  A* folded = mirrored + shape.rows() * size * kColumns<A>;
  A* sums = folded + size * size * kColumns<A>;
  A* responses = sums + (bank.count + 4) * kColumns<A>;
  for (int64_t column = 0; column < kTileColumns; column += kColumns<A>) {
    if (bank.symmetry == Symmetry::square)
      for (int64_t y = 0; y < rows + size - 1; ++y)
        mirror_row(window + y * stride + column, size / 2, mirrored + y * size * kColumns<A>);
    for (int64_t y = 0; y < rows; ++y) {
      const A* at = window + y * stride + column;
      if (bank.symmetry == Symmetry::square)
        fold_square(mirrored + (y + size / 2) * size * kColumns<A>, size, folded, bank);
      else if (bank.symmetry == Symmetry::even)
        fold_even(at, stride, size, folded);
      else
        copy_window(at, stride, size, folded);
      if (bank.symmetry == Symmetry::square) {
        const A* points = folded;
        A* out = sums;
        for (int g = 0; g < 4; ++g) {
          sum_group(bank.group[g], points, out);
          points += bank.group[g].points * kColumns<A>;
          out += bank.group[g].filters * kColumns<A>;
        }
        unfold_square(sums, bank.count, responses);
      } else {
        sum_group(bank.group[0], folded, responses);
      }
      select(responses, bank.count, absolute, index + y * kTileColumns + column,
             response + y * kTileColumns + column);
    }
  }
}

#if defined(__AVX512F__)
// A table of 32 filters' taps fits two registers, and a shuffle looks 16 pixels up in it.
static void image_gradient_tile_32(const float* gradient, const int32_t* index, int64_t size,
                                   const float* table, int64_t rows, float* out) {
  const int64_t stride = TileShape{size}.stride();
  constexpr int kRows = 4;
  static_assert(kTileRows % kRows == 0 && kTileColumns == 32, "blocks of 4 x 32 pixels");
  for (int64_t y = 0; y < rows; y += kRows) {
    __m512 sums[kRows][2];
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const float* taps = table;
    for (int64_t u = 0; u < size; ++u)
      for (int64_t v = 0; v < size; ++v, taps += 32) {
        const __m512 low = _mm512_loadu_ps(taps), high = _mm512_loadu_ps(taps + 16);
        const int64_t at = (y + u) * stride + v;
        for (int r = 0; r < kRows; ++r)
          for (int i = 0; i < 2; ++i) {
            const int64_t from = at + r * stride + 16 * i;
            const __m512 weight =
                _mm512_permutex2var_ps(low, _mm512_loadu_si512(index + from), high);
            sums[r][i] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(gradient + from), sums[r][i]);
          }
      }
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < 2; ++i)
        _mm512_storeu_ps(out + (y + r) * kTileColumns + 16 * i, sums[r][i]);
  }
}
#endif

template <class A>
void image_gradient_tile(const A* gradient, const int32_t* index, int64_t size, const A* table,
                         int64_t pitch, int64_t rows, A* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == sizeof(float)) {
    if (pitch == 32) return image_gradient_tile_32(gradient, index, size, table, rows, out);
  }
#endif
  const int64_t stride = TileShape{size}.stride();
  for (int64_t y = 0; y < rows; ++y) {
    A sums[kTileColumns] = {};
    const A* taps = table;
    for (int64_t u = 0; u < size; ++u)
      for (int64_t v = 0; v < size; ++v, taps += pitch) {
        const A* g = gradient + (y + u) * stride + v;
        const int32_t* k = index + (y + u) * stride + v;
        for (int64_t x = 0; x < kTileColumns; ++x) sums[x] += g[x] * taps[k[x]];
      }
    memcpy(out + y * kTileColumns, sums, sizeof sums);
  }
}

template <class A>
void bank_gradient_tile(const A* gradient, const int32_t* index, const A* window, int64_t size,
                        int64_t pitch, A* sums) {
  const int64_t stride = TileShape{size}.stride();
  for (int64_t y = 0; y < kTileRows; ++y)
    for (int64_t x = 0; x < kTileColumns; ++x) {
      const A g = gradient[y * kTileColumns + x];
      if (g == 0) continue;
      const A* from = window + y * stride + x;
      A* to = sums + index[y * kTileColumns + x] * size * pitch;
      for (int64_t u = 0; u < size; ++u, from += stride, to += pitch)
        for (int64_t v = 0; v < pitch; v += kSlack)
          for (int64_t i = 0; i < kSlack; ++i) to[v + i] += g * from[v + i];
    }
}

#define TORCHEXT_INSTANTIATE_FILL(T, A)                                                         \
  template void fill_tile<T, A>(const T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, \
                                A*, int64_t);
TORCHEXT_INSTANTIATE_FILL(float, float)
TORCHEXT_INSTANTIATE_FILL(double, double)
TORCHEXT_INSTANTIATE_FILL(Half, float)
TORCHEXT_INSTANTIATE_FILL(BFloat16, float)
TORCHEXT_INSTANTIATE_FILL(int32_t, int32_t)

#define TORCHEXT_INSTANTIATE_FILTERS(A)                                                          \
  template void filter_tile<A>(const FilterBank<A>&, const A*, int64_t, bool, A*, int32_t*, A*); \
  template void image_gradient_tile<A>(const A*, const int32_t*, int64_t, const A*, int64_t,     \
                                       int64_t, A*);                                             \
  template void bank_gradient_tile<A>(const A*, const int32_t*, const A*, int64_t, int64_t, A*);
TORCHEXT_INSTANTIATE_FILTERS(float)
TORCHEXT_INSTANTIATE_FILTERS(double)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
