// The oriented filters, vectorised (compiled once per SIMD level, see simd.h).
#include "gabor_orientation_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

// Vectors' length, and how many sums of filters the registers hold: of one vector of pixels, and of
// two, which share the weights.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kSums = 18, kBlockFilters = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kSums = 10, kBlockFilters = 6;
#else
constexpr int kVectorBytes = 16, kSums = 10, kBlockFilters = 6;
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
using Vector = typename Lanes<A>::vector;
template <class A>
using Mask = typename Lanes<A>::mask;
template <class A>
constexpr int64_t kLanes = kVectorBytes / sizeof(A);

template <class A>
inline Vector<A> load(const A* from) {
  return *reinterpret_cast<const Vector<A>*>(from);
}
template <class A>
inline void store(A* to, Vector<A> values) {
  *reinterpret_cast<Vector<A>*>(to) = values;
}

// The sums of a few filters at kLanes pixels.
template <class A, int kFilters>
struct Sums {
  Vector<A> v[kFilters > 0 ? kFilters : 1] = {};

  void add(const A* weights, Vector<A> pixels) {
#pragma GCC unroll 32
    for (int f = 0; f < kFilters; ++f) v[f] += weights[f] * pixels;
  }
  void write(A* out) const {
#pragma GCC unroll 32
    for (int f = 0; f < kFilters; ++f) store(out + f * kLanes<A>, v[f]);
  }
};

// ---- banks without the square's symmetry --------------------------------------------------------

template <class A, int kFilters>
void sum_plain(const A* window, int64_t stride, int64_t size, bool even, const A* weights,
               int64_t pitch, A* out) {
  Sums<A, kFilters> sums;
  if (!even) {
    for (int64_t u = 0; u < size; ++u)
      for (int64_t v = 0; v < size; ++v, weights += pitch)
        sums.add(weights, load(window + u * stride + v));
  } else {
    // pairs under point reflection: the upper half, row by row, and the centre
    const A* last = window + (size - 1) * (stride + 1);
    for (int64_t u = 0; u <= size / 2; ++u)
      for (int64_t v = 0; v < (u < size / 2 ? size : size / 2); ++v, weights += pitch)
        sums.add(weights, load(window + u * stride + v) + load(last - u * stride - v));
    sums.add(weights, load(window + size / 2 * (stride + 1)));
  }
  sums.write(out);
}

template <class A, int kFilters = kSums>
void sum_plain(int64_t filters, const A* window, int64_t stride, int64_t size, bool even,
               const A* weights, int64_t pitch, A* out) {
  if (filters == kFilters)
    sum_plain<A, kFilters>(window, stride, size, even, weights, pitch, out);
  else if constexpr (kFilters > 1)
    sum_plain<A, kFilters - 1>(filters, window, stride, size, even, weights, pitch, out);
}

// The largest rectified response so far.
template <class A>
struct Best {
  Vector<A> strength = {}, response = {};
  Mask<A> index = {};

  // `later`: equals win too. A NaN wins and stays.
  template <bool kAbsolute, bool kLater>
  void add(Vector<A> r, int32_t k) {
    const Vector<A> s = kAbsolute ? (r < 0 ? -r : r) : r;
    const Mask<A> ahead = kLater ? (Mask<A>)(s < strength) : (Mask<A>)(s <= strength);
    const Mask<A> better = ~ahead & (Mask<A>)(strength == strength);
    strength = better ? s : strength;
    if (kAbsolute) response = better ? r : response;
    index = better ? Mask<A>{} + k : index;
  }
  // What holds larger indices.
  void merge(const Best& other) {
    const Mask<A> better = ~(Mask<A>)(other.strength <= strength) & (Mask<A>)(strength == strength);
    strength = better ? other.strength : strength;
    response = better ? other.response : response;
    index = better ? other.index : index;
  }
  template <bool kAbsolute>
  void write(int32_t* to_index, A* to_response) {
    index &= (Mask<A>)(strength == strength);
    store(to_response, kAbsolute ? response : strength);
    for (int64_t lane = 0; lane < kLanes<A>; ++lane)
      to_index[lane] = static_cast<int32_t>(index[lane]);
  }
};

template <class A, bool kAbsolute>
void filter_plain(const FilterBank<A>& bank, const A* window, int64_t stride, A* scratch,
                  int32_t* index, A* response) {
  const FilterGroup<A>& group = bank.group[0];
  Best<A> best;
  for (int64_t first = 0; first < group.filters; first += kSums) {
    const int64_t filters = group.filters - first < kSums ? group.filters - first : kSums;
    sum_plain(filters, window, stride, bank.size, bank.symmetry == Symmetry::even,
              group.weights + first, group.filters, scratch);
    for (int64_t f = 0; f < filters; ++f)
      best.template add<kAbsolute, false>(load(scratch + f * kLanes<A>),
                                          static_cast<int32_t>(first + f));
  }
  best.template write<kAbsolute>(index, response);
}

// ---- banks with it ------------------------------------------------------------------------------

// Of a row of the image: the pixel; then for v = 1 ... half the sum and the difference of those v
// to its right and to its left. All rows of pixels whose windows meet it share them.
template <class A>
void mirror_row(const A* row, int64_t half, A* mirrored, int64_t shift = 0) {
  store(mirrored, load(row + half));
  for (int64_t v = 1; v <= half; ++v) {
    const Vector<A> right = load(row + half + v), left = load(row + half + shift - v);
    store(mirrored + v * kLanes<A>, right + left);
    store(mirrored + (half + v) * kLanes<A>, right - left);
  }
}

// Two groups of the same sign under mirroring, even (kEven) or odd, from the mirrored rows around
// the pixel's own (`centre`): for u = 1 ... half and v = 0 ... u the sum and the difference of the
// pixels (+-u, +-v) and their transposes (+-v, +-u), where they do not vanish; at last the centre.
template <class A, bool kEven, int kPlus, int kMinus>
void sum_square(const A* centre, int64_t size, const A* plus_weights, int64_t plus_pitch,
                const A* minus_weights, int64_t minus_pitch, A* plus_out, A* minus_out) {
  const int64_t half = size / 2, row = size * kLanes<A>;
  const A* origin = kEven ? centre : centre + half * kLanes<A>;
  Sums<A, kPlus> plus;
  Sums<A, kMinus> minus;
  const auto add_plus = [&](Vector<A> pixels) {
    plus.add(plus_weights, pixels);
    plus_weights += plus_pitch;
  };
  const auto add_minus = [&](Vector<A> pixels) {
    minus.add(minus_weights, pixels);
    minus_weights += minus_pitch;
  };
  const auto folded = [&](int64_t u, int64_t v) {
    const A* at = origin + v * kLanes<A>;
    const Vector<A> below = load(at + u * row), above = load(at - u * row);
    return kEven ? below + above : below - above;
  };
  for (int64_t u = 1; u <= half; ++u) {
    if (kEven) {
      const Vector<A> column = folded(u, 0), across = load(origin + u * kLanes<A>);
      add_plus(column + across);
      add_minus(column - across);
    }
    for (int64_t v = 1; v < u; ++v) {
      const Vector<A> own = folded(u, v), transposed = folded(v, u);
      add_plus(own + transposed);
      add_minus(own - transposed);
    }
    add_plus(folded(u, u));
  }
  if (kEven) add_plus(load(centre));
  plus.write(plus_out);
  minus.write(minus_out);
}

template <class A, bool kEven, int kPlus = kSums / 2>
void sum_square(int64_t plus_filters, int64_t minus_filters, const A* centre, int64_t size,
                const FilterGroup<A>& plus, const FilterGroup<A>& minus, int64_t first, A* plus_out,
                A* minus_out) {
  const auto run = [&](auto function) {
    function(centre, size, plus.weights + first, plus.filters, minus.weights + first, minus.filters,
             plus_out + first * kLanes<A>, minus_out + first * kLanes<A>);
  };
  if (plus_filters == kPlus && minus_filters == kPlus)
    run(sum_square<A, kEven, kPlus, kPlus>);
  else if (plus_filters == kPlus)
    run(sum_square<A, kEven, kPlus, kPlus - 1>);
  else if constexpr (kPlus > 1)
    sum_square<A, kEven, kPlus - 1>(plus_filters, minus_filters, centre, size, plus, minus, first,
                                    plus_out, minus_out);
}

// Both groups have their filters in the same order, the second one less at the end.
template <class A, bool kEven>
void sum_square(const A* centre, int64_t size, const FilterGroup<A>& plus,
                const FilterGroup<A>& minus, A* plus_out, A* minus_out) {
  constexpr int64_t kBlock = kSums / 2;
  for (int64_t first = 0; first < plus.filters; first += kBlock) {
    const auto left = [&](int64_t filters) {
      return filters - first < kBlock ? filters - first : kBlock;
    };
    sum_square<A, kEven>(left(plus.filters), left(minus.filters), centre, size, plus, minus, first,
                         plus_out, minus_out);
  }
}

template <class A, bool kAbsolute>
void filter_square(const FilterBank<A>& bank, const A* centre, A* scratch, int32_t* index,
                   A* response) {
  const int64_t quarter = bank.count / 4;
  A* plus_plus = scratch;
  A* plus_minus = plus_plus + (quarter + 1) * kLanes<A>;
  A* minus_plus = plus_minus + quarter * kLanes<A>;
  A* minus_minus = minus_plus + quarter * kLanes<A>;
  sum_square<A, true>(centre, bank.size, bank.group[0], bank.group[1], plus_plus, plus_minus);
  sum_square<A, false>(centre, bank.size, bank.group[2], bank.group[3], minus_plus, minus_minus);

  // An orbit's four filters lie in four ranges of indices: rising with i, falling, rising, falling.
  const auto at = [](const A* from, int64_t i) { return load(from + i * kLanes<A>); };
  const int32_t q = static_cast<int32_t>(quarter);
  Best<A> own, transposed, both, mirrored;
  own.template add<kAbsolute, false>(at(plus_plus, 0) + at(plus_minus, 0), 0);
  both.template add<kAbsolute, false>(at(plus_plus, 0) - at(plus_minus, 0), 2 * q);
  for (int32_t i = 1; i < q; ++i) {
    const Vector<A> a = at(plus_plus, i), b = at(plus_minus, i);
    const Vector<A> c = at(minus_plus, i - 1), d = at(minus_minus, i - 1);
    const Vector<A> sum = a + b, difference = a - b, odd_sum = c + d, odd_difference = c - d;
    own.template add<kAbsolute, false>(sum + odd_sum, i);
    transposed.template add<kAbsolute, true>(difference + odd_difference, 2 * q - i);
    both.template add<kAbsolute, false>(difference - odd_difference, 2 * q + i);
    mirrored.template add<kAbsolute, true>(sum - odd_sum, 4 * q - i);
  }
  own.template add<kAbsolute, false>(at(plus_plus, q) + at(minus_plus, q - 1), q);
  both.template add<kAbsolute, false>(at(plus_plus, q) - at(minus_plus, q - 1), 3 * q);
  own.merge(transposed);
  own.merge(both);
  own.merge(mirrored);
  own.template write<kAbsolute>(index, response);
}

template <class A, bool kAbsolute>
void filter_tile(const FilterBank<A>& bank, const A* window, int64_t rows, A* scratch,
                 int32_t* index, A* response) {
  const int64_t size = bank.size, stride = TileShape{size}.stride(), row = size * kLanes<A>;
  A* mirrored = scratch + (bank.count + kSums) * kLanes<A>;
  for (int64_t column = 0; column < kTileColumns; column += kLanes<A>) {
    if (bank.symmetry == Symmetry::square)
      for (int64_t y = 0; y < rows + size - 1; ++y)
        mirror_row(window + y * stride + column, size / 2, mirrored + y * row);
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t at = y * kTileColumns + column;
      if (bank.symmetry == Symmetry::square)
        filter_square<A, kAbsolute>(bank, mirrored + (y + size / 2) * row, scratch, index + at,
                                    response + at);
      else
        filter_plain<A, kAbsolute>(bank, window + y * stride + column, stride, scratch, index + at,
                                   response + at);
    }
  }
}

// ---- statistics of all filters ------------------------------------------------------------------

// Values of two vectors of pixels lie side by side: those of one point, or of one filter.
template <class A>
constexpr int64_t kPair = 2 * kLanes<A>;

template <class A, int kFilters>
void sum_block(const FilterBlock<A>& block, const A* source, int64_t unit, A* sums) {
  Vector<A> left[kFilters] = {}, right[kFilters] = {};
  const A* weights = block.weights;
  for (int64_t point = 0; point < block.points; ++point, weights += kFilters) {
    const A* at = source + block.places[point] * unit;
    const Vector<A> a = load(at), b = load(at + kLanes<A>);
#pragma GCC unroll 32
    for (int f = 0; f < kFilters; ++f) {
      left[f] += weights[f] * a;
      right[f] += weights[f] * b;
    }
  }
#pragma GCC unroll 32
  for (int f = 0; f < kFilters; ++f) {
    A* to = sums + (block.slot + f * block.step) * kPair<A>;
    store(to, left[f]);
    store(to + kLanes<A>, right[f]);
  }
}

template <class A, int kFilters = kBlockFilters>
void sum_blocks(const FilterBlock<A>& block, const A* source, int64_t unit, A* sums) {
  if (block.filters == kFilters)
    sum_block<A, kFilters>(block, source, unit, sums);
  else if constexpr (kFilters > 1)
    sum_blocks<A, kFilters - 1>(block, source, unit, sums);
}

// Pairs under point reflection: the upper half, row by row, and the centre.
template <class A>
void fold_even(const A* window, int64_t stride, int64_t size, A* folded) {
  const A* last = window + (size - 1) * (stride + 1);
  for (int64_t u = 0; u <= size / 2; ++u)
    for (int64_t v = 0; v < (u < size / 2 ? size : size / 2); ++v, folded += kPair<A>)
      store(folded, load(window + u * stride + v) + load(last - u * stride - v));
  store(folded, load(window + size / 2 * (stride + 1)));
}

// Two groups of the same sign under mirroring, their points as in sum_square; with a shift there
// are none on the axes.
template <class A, bool kEven>
void fold_square(const A* centre, int64_t size, int64_t shift, A* plus, A* minus) {
  const int64_t half = size / 2, row = size * kLanes<A>;
  const A* origin = kEven ? centre : centre + half * kLanes<A>;
  const auto add_plus = [&](Vector<A> pixels) {
    store(plus, pixels);
    plus += kPair<A>;
  };
  const auto add_minus = [&](Vector<A> pixels) {
    store(minus, pixels);
    minus += kPair<A>;
  };
  const auto folded = [&](int64_t u, int64_t v) {
    const A* at = origin + v * kLanes<A>;
    const Vector<A> below = load(at + u * row), above = load(at + (shift - u) * row);
    return kEven ? below + above : below - above;
  };
  for (int64_t u = 1; u <= half; ++u) {
    if (kEven && shift == 0) {
      const Vector<A> column = folded(u, 0), across = load(origin + u * kLanes<A>);
      add_plus(column + across);
      add_minus(column - across);
    }
    for (int64_t v = 1; v < u; ++v) {
      const Vector<A> own = folded(u, v), transposed = folded(v, u);
      add_plus(own + transposed);
      add_minus(own - transposed);
    }
    add_plus(folded(u, u));
  }
  if (kEven && shift == 0) add_plus(load(centre));
}

template <class A>
inline Vector<A> absolute(Vector<A> value) {
  return value < 0 ? -value : value;
}

// A response in place of a sum, without its sign.
template <class A, bool kLater>
inline void respond(Best<A>& best, A* sums, int32_t k, Vector<A> response) {
  response = absolute<A>(response);
  store(sums + k * kPair<A>, response);
  best.template add<false, kLater>(response, k);
}

// Sums become responses, one vector of each pair; gives the first of the largest.
template <class A>
Best<A> respond_plain(A* sums, int32_t count) {
  Best<A> best;
  for (int32_t k = 0; k < count; ++k) respond<A, false>(best, sums, k, load(sums + k * kPair<A>));
  return best;
}

template <class A>
Best<A> respond_square(A* sums, int32_t count) {
  const int32_t q = count / 4;
  const auto at = [&](int32_t slot) { return load(sums + slot * kPair<A>); };
  Best<A> own, transposed, both, mirrored;
  const Vector<A> first = at(0), first_minus = at(2 * q);
  respond<A, false>(own, sums, 0, first + first_minus);
  respond<A, false>(both, sums, 2 * q, first - first_minus);
  for (int32_t i = 1; i < q; ++i) {
    const Vector<A> a = at(i), b = at(2 * q - i), c = at(2 * q + i), d = at(4 * q - i);
    const Vector<A> sum = a + b, difference = a - b, odd_sum = c + d, odd_difference = c - d;
    respond<A, false>(own, sums, i, sum + odd_sum);
    respond<A, true>(transposed, sums, 2 * q - i, difference + odd_difference);
    respond<A, false>(both, sums, 2 * q + i, difference - odd_difference);
    respond<A, true>(mirrored, sums, 4 * q - i, sum - odd_sum);
  }
  const Vector<A> last = at(q), last_odd = at(3 * q);
  respond<A, false>(own, sums, q, last + last_odd);
  respond<A, false>(both, sums, 3 * q, last - last_odd);
  own.merge(transposed);
  own.merge(both);
  own.merge(mirrored);
  return own;
}

// From the distances of all filters, around the circle, to the position of the best one.
template <class A, bool kSpread>
Vector<A> confidence_of(const A* responses, int64_t count, A eps, Vector<A> position,
                        Vector<A> strength) {
  const A circle = static_cast<A>(count), step = static_cast<A>(3.14159265358979323846) / circle;
  Vector<A> weighted = {}, total = {}, to_filter = -position;
  for (int64_t k = 0; k < count; ++k, responses += kPair<A>, to_filter += 1) {
    const Vector<A> response = load(responses);
    const Vector<A> direct = absolute<A>(to_filter), around = circle - direct;
    const Vector<A> distance = direct < around ? direct : around;
    if (kSpread) {
      const Vector<A> below = response - strength;
      weighted += distance * (below * below);
    } else {
      weighted += distance * distance * response;
      total += response;
    }
  }
  if (!kSpread) {
    total = total < eps ? Vector<A>{} + eps : total;
    return weighted * (step * step) / total;
  }
  for (int64_t lane = 0; lane < kLanes<A>; ++lane)
    weighted[lane] =
        static_cast<A>(sizeof(A) == 4 ? sqrtf(static_cast<float>(weighted[lane] * step))
                                      : sqrt(weighted[lane] * step));
  return weighted;
}

template <class A>
void statistics_of_pair(const StatisticsBank<A>& bank, A* responses, int32_t* index, A* strength,
                        A* confidence) {
  for (int64_t at = 0; at < kPair<A>; at += kLanes<A>) {
    const int32_t count = static_cast<int32_t>(bank.count);
    Best<A> best = bank.symmetry == Symmetry::square ? respond_square(responses + at, count)
                                                     : respond_plain(responses + at, count);
    best.template write<false>(index + at, strength + at);
    A positions[kLanes<A>];
    for (int64_t lane = 0; lane < kLanes<A>; ++lane)
      positions[lane] = bank.positions[index[at + lane]];
    const auto confidence_function = bank.spread ? confidence_of<A, true> : confidence_of<A, false>;
    store(confidence + at, confidence_function(responses + at, bank.count, bank.eps,
                                               load(positions), load(strength + at)));
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
  if (absolute)
    filter_tile<A, true>(bank, window, rows, scratch, index, response);
  else
    filter_tile<A, false>(bank, window, rows, scratch, index, response);
}

int64_t block_filters() {
  return kBlockFilters;
}

template <class A>
void statistics_tile(const StatisticsBank<A>& bank, const A* window, int64_t rows, A* scratch,
                     int32_t* index, A* strength, A* confidence) {
  const int64_t size = bank.size, half = size / 2, stride = TileShape{size}.stride();
  const int64_t row = size * kLanes<A>, mirrored_elements = (kTileRows + size - 1) * row;
  const int64_t octant = half * (half + 1) / 2;  // points of the square's odd-and-even groups
  A* mirrored = scratch;
  A* folded = mirrored + 2 * mirrored_elements;
  A* responses = folded + (size * size / 2 + size) * kPair<A>;
  const bool square = bank.symmetry == Symmetry::square;
  for (int64_t column = 0; column < kTileColumns; column += kPair<A>) {
    if (square)
      for (int64_t vector = 0; vector < 2; ++vector)
        for (int64_t y = 0; y < rows + size - 1; ++y)
          mirror_row(window + y * stride + column + vector * kLanes<A>, half,
                     mirrored + vector * mirrored_elements + y * row, bank.shift);
    for (int64_t y = 0; y < rows; ++y) {
      const A* at = window + y * stride + column;
      for (int64_t vector = 0; vector < 2; ++vector) {
        A* to = folded + vector * kLanes<A>;
        if (square) {
          const A* centre = mirrored + vector * mirrored_elements + (y + half) * row;
          const bool shifted = bank.shift != 0;
          A* even_minus = to + (shifted ? octant : octant + half + 1) * kPair<A>;
          A* odd_plus = even_minus + (shifted ? octant - half : octant) * kPair<A>;
          A* odd_minus = odd_plus + octant * kPair<A>;
          fold_square<A, true>(centre, size, bank.shift, to, even_minus);
          fold_square<A, false>(centre, size, bank.shift, odd_plus, odd_minus);
          if (shifted) {
            A* rest = odd_minus + (octant - half) * kPair<A>;
            const A* corner = at + vector * kLanes<A>;
            for (int64_t v = 0; v < size; ++v) store(rest + v * kPair<A>, load(corner + v));
            rest += (size - 1) * kPair<A>;
            for (int64_t u = 1; u < size; ++u)
              store(rest + u * kPair<A>, load(corner + u * stride));
          }
        } else if (bank.symmetry == Symmetry::even) {
          fold_even(at + vector * kLanes<A>, stride, size, to);
        }
      }
      const bool plain = bank.symmetry == Symmetry::none;
      for (int64_t b = 0; b < bank.num_blocks; ++b)
        sum_blocks(bank.blocks[b], plain ? at : folded, plain ? 1 : kPair<A>, responses);
      const int64_t out = y * kTileColumns + column;
      statistics_of_pair(bank, responses, index + out, strength + out, confidence + out);
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

#define TORCHEXT_INSTANTIATE_FILTERS(A)                                                           \
  template void filter_tile<A>(const FilterBank<A>&, const A*, int64_t, bool, A*, int32_t*, A*);  \
  template void statistics_tile<A>(const StatisticsBank<A>&, const A*, int64_t, A*, int32_t*, A*, \
                                   A*);                                                           \
  template void image_gradient_tile<A>(const A*, const int32_t*, int64_t, const A*, int64_t,      \
                                       int64_t, A*);                                              \
  template void bank_gradient_tile<A>(const A*, const int32_t*, const A*, int64_t, int64_t, A*);
TORCHEXT_INSTANTIATE_FILTERS(float)
TORCHEXT_INSTANTIATE_FILTERS(double)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
