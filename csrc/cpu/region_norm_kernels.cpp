// Region normalisation, vectorised (compiled once per SIMD level, see simd.h).
//
// Statistics are taken tile by tile, as deviations from the region's mean so far, and merged into
// double. So they are right for |mean| >> deviation, in any region.
// A pixel's region is chosen by selection, never by multiplying with a mask: what a region holds
// (NaN, infinity) cannot reach another.
#include "region_norm_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline void merge(int64_t count, double mean, double squares, Moments& into) {
  const int64_t total = into.count + count;
  const double delta = mean - into.mean;
  const double share = static_cast<double>(count) / static_cast<double>(total);
  into.mean += delta * share;
  into.squares += squares + delta * delta * share * static_cast<double>(into.count);
  into.count = total;
}

// Loops over a tile's pixels are written once, over an index that stands for one pixel or, with
// AVX-512, for sixteen: `get`, `put` and the lookups below answer with a number or a vector, and
// arithmetic is the same. On its own the compiler widens the byte labels anew for every constant
// that it selects; as a vector, one comparison gives a mask register that serves them all.
struct Pixel {
  int64_t i;
};
template <class A>
inline A get(const A* from, Pixel at) {
  return from[at.i];
}
template <class A>
inline void put(A* to, Pixel at, A value) {
  to[at.i] = value;
}
// Around the cache, where the machine can: for results too large to stay there, it saves reading
// the lines that are about to be overwritten.
template <class A>
inline void put_around_cache(A* to, Pixel at, A value) {
  to[at.i] = value;
}
template <class A>
inline A nonzero_only(A keep, A value) {
  return keep != A(0) ? value : A(0);
}
template <class A>
inline A where_equal(const int32_t* index, int32_t wanted, Pixel at, A value) {
  return index[at.i] == wanted ? value : A(0);
}
template <class A>
inline A chosen(const uint8_t* labels, uint8_t second, A first_value, A second_value, Pixel at) {
  return labels[at.i] == second ? second_value : first_value;
}
template <class A>
inline A looked_up(const A* table, const uint8_t* labels, Pixel at) {
  return table[labels[at.i]];
}
template <class A>
inline A everywhere(A value, Pixel) {
  return value;
}

#if defined(__AVX512BW__)
struct Sixteen {
  int64_t i;
};
inline __m512 get(const float* from, Sixteen at) {
  return _mm512_loadu_ps(from + at.i);
}
inline void put(float* to, Sixteen at, __m512 value) {
  _mm512_storeu_ps(to + at.i, value);
}
inline void put_around_cache(float* to, Sixteen at, __m512 value) {
  _mm512_stream_ps(to + at.i, value);
}
inline __m512 nonzero_only(__m512 keep, __m512 value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(keep, _mm512_setzero_ps(), _CMP_NEQ_UQ), value);
}
inline __m512 where_equal(const int32_t* index, int32_t wanted, Sixteen at, __m512 value) {
  const __m512i found = _mm512_loadu_si512(index + at.i);
  return _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(found, _mm512_set1_epi32(wanted)), value);
}
inline __m128i sixteen_labels(const uint8_t* labels, Sixteen at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(labels + at.i));
}
inline __m512 chosen(const uint8_t* labels, uint8_t second, float first_value, float second_value,
                     Sixteen at) {
  const __m128i wanted = _mm_set1_epi8(static_cast<char>(second));
  const __mmask16 mask = _mm_cmpeq_epi8_mask(sixteen_labels(labels, at), wanted);
  return _mm512_mask_blend_ps(mask, _mm512_set1_ps(first_value), _mm512_set1_ps(second_value));
}
inline __m512 looked_up(const float* table, const uint8_t* labels, Sixteen at) {
  return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(sixteen_labels(labels, at)), table, 4);
}
inline __m512 everywhere(float value, Sixteen) {
  return _mm512_set1_ps(value);
}

template <class Body>
inline void for_each_pixel(float, int64_t count, Body body) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) body(Sixteen{i});
  for (; i < count; ++i) body(Pixel{i});
}
#endif
template <class A, class Body>
inline void for_each_pixel(A, int64_t count, Body body) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) body(Pixel{i});
}

// Streamed stores take whole, aligned vectors, and wait to be seen by other threads.
inline bool can_stream(const void* to) {
  return reinterpret_cast<uintptr_t>(to) % 64 == 0;
}
inline void finish_streaming() {
#if defined(__AVX512BW__)
  _mm_sfence();
#endif
}

// Writes value(i) for every pixel.
template <class A, class Value>
inline void put_each(A* to, int64_t count, bool stream, Value value) {
  if (stream && can_stream(to))
    for_each_pixel(A{}, count, [&](auto i) { put_around_cache(to, i, value(i)); });
  else
    for_each_pixel(A{}, count, [&](auto i) { put(to, i, value(i)); });
}

// How a tile's pixels look up a per-region constant: the tile lies in one region, in two, or more.
template <class A>
struct OneRegion {
  struct Lookup {
    A value;
    template <class Index>
    auto operator()(Index at) const {
      return everywhere(value, at);
    }
  };
  uint8_t region;
  Lookup operator()(const A* table) const { return {table[region]}; }
};
template <class A>
struct TwoRegions {
  struct Lookup {
    const uint8_t* labels;
    uint8_t second;
    A first_value, second_value;
    template <class Index>
    auto operator()(Index at) const {
      return chosen(labels, second, first_value, second_value, at);
    }
  };
  const uint8_t* labels;
  uint8_t first, second;
  Lookup operator()(const A* table) const { return {labels, second, table[first], table[second]}; }
};
template <class A>
struct ManyRegions {
  struct Lookup {
    const uint8_t* labels;
    const A* table;
    template <class Index>
    auto operator()(Index at) const {
      return looked_up(table, labels, at);
    }
  };
  const uint8_t* labels;
  Lookup operator()(const A* table) const { return {labels, table}; }
};

// Calls body(begin, count, lookup) for every tile of the plane.
template <class A, class Body>
inline void for_each_tile(const LabelPlane& plane, Body body) {
  for (int64_t tile = 0, begin = 0; begin < plane.pixels; ++tile, begin += kTile) {
    const int64_t count = smaller(kTile, plane.pixels - begin);
    const TileRegion* present = plane.present + plane.first[tile];
    switch (plane.first[tile + 1] - plane.first[tile]) {
      case 1:
        body(begin, count, OneRegion<A>{present[0].region});
        break;
      case 2:
        body(begin, count,
             TwoRegions<A>{plane.labels + begin, present[0].region, present[1].region});
        break;
      default:
        body(begin, count, ManyRegions<A>{plane.labels + begin});
    }
  }
}

// 1 for a region that is normalised, 0 for the ignored one: a table like the constants' own.
template <class A>
struct Kept {
  A table[kMaxRegions];
  Kept(int64_t num_regions, bool ignore_holes) {
    for (int64_t k = 0; k < num_regions; ++k) table[k] = A(1);
    if (ignore_holes) table[0] = A(0);
  }
};

// Sums of d and d^2 over a region of a tile, d = x - centre.
template <class A>
struct Deviations {
  A sum, squares;
  // The centre is more than 8 deviations off the mean.
  bool cancels(A count) const { return sum * sum > squares * count * (A(63) / A(64)); }
};
// The sums of one region's tiles around the same centre: no tile waits for the one before.
template <class A>
struct RunningSums {
  A centre;
  double sum = 0, squares = 0;
  int64_t count = 0;

  void add(const Deviations<A>& tile, int64_t members) {
    sum += static_cast<double>(tile.sum);
    squares += static_cast<double>(tile.squares);
    count += members;
  }
  void merge_into(Moments& moments) const {
    if (count == 0) return;
    const double offset = sum / static_cast<double>(count);
    merge(count, static_cast<double>(centre) + offset, squares - sum * offset, moments);
  }
};
template <class A>
inline Deviations<A> deviations(const A* x, A centre, int64_t count) {
  constexpr int64_t lanes = vector_lanes<A>;
  vector_t<A> s[4] = {}, q[4] = {};  // one sum's additions would wait for each other
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes)
    for (int64_t u = 0; u < 4; ++u) {
      const vector_t<A> d = load_vector(x + i + u * lanes) - centre;
      s[u] += d;
      q[u] += d * d;
    }
  A tail_sum = 0, tail_squares = 0;
  for (; i < count; ++i) {
    const A d = x[i] - centre;
    tail_sum += d;
    tail_squares += d * d;
  }
  return {add_lanes<A>((s[0] + s[1]) + (s[2] + s[3])) + tail_sum,
          add_lanes<A>((q[0] + q[1]) + (q[2] + q[3])) + tail_squares};
}
template <class A>
inline Deviations<A> deviations(const A* x, const uint8_t* labels, uint8_t region, A centre,
                                int64_t count) {
  A s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
  for (int64_t i = 0; i < count; ++i) {
    const A d = labels[i] == region ? x[i] - centre : A(0);
    s += d;
    q += d * d;
  }
  return {s, q};
}
#if defined(__AVX512BW__)
// A tile of two regions in one sweep: the comparison's result is a mask register, which the
// compiler does not find on its own (half the time of two sweeps of the loop above, and more).
inline void deviations_of_two(const float* x, const uint8_t* labels, const TileRegion* present,
                              const float* centre, int64_t count, Deviations<float>* out) {
  const __m128i second = _mm_set1_epi8(static_cast<char>(present[1].region));
  const __m512 c0 = _mm512_set1_ps(centre[0]), c1 = _mm512_set1_ps(centre[1]);
  __m512 s0 = _mm512_setzero_ps(), q0 = s0, s1 = s0, q1 = s0;
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 tail = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    const __m128i at = _mm_maskz_loadu_epi8(tail, labels + i);
    const __mmask16 in_second = _mm_mask_cmpeq_epi8_mask(tail, at, second);
    const __m512 v = _mm512_maskz_loadu_ps(tail, x + i);
    const __m512 d0 = _mm512_maskz_sub_ps(tail & ~in_second, v, c0);
    const __m512 d1 = _mm512_maskz_sub_ps(in_second, v, c1);
    s0 = _mm512_add_ps(s0, d0);
    s1 = _mm512_add_ps(s1, d1);
    q0 = _mm512_fmadd_ps(d0, d0, q0);
    q1 = _mm512_fmadd_ps(d1, d1, q1);
  }
  out[0] = {_mm512_reduce_add_ps(s0), _mm512_reduce_add_ps(q0)};
  out[1] = {_mm512_reduce_add_ps(s1), _mm512_reduce_add_ps(q1)};
}
#endif
template <class A>
inline void deviations_of_two(const A* x, const uint8_t* labels, const TileRegion* present,
                              const A* centre, int64_t count, Deviations<A>* out) {
  const uint8_t second = present[1].region;
  const A c0 = centre[0], c1 = centre[1];
  A s0 = 0, q0 = 0, s1 = 0, q1 = 0;
#pragma omp simd reduction(+ : s0, q0, s1, q1)
  for (int64_t i = 0; i < count; ++i) {
    const bool in_second = labels[i] == second;
    const A d0 = in_second ? A(0) : x[i] - c0, d1 = in_second ? x[i] - c1 : A(0);
    s0 += d0;
    q0 += d0 * d0;
    s1 += d1;
    q1 += d1 * d1;
  }
  out[0] = {s0, q0};
  out[1] = {s1, q1};
}

// Sums of g and g * (x - mean) over a region of a tile.
template <class A>
struct GradientSums {
  A sum, product;
};
template <class A>
inline GradientSums<A> gradient_sums(const A* g, const A* x, A mean, int64_t count) {
  constexpr int64_t lanes = vector_lanes<A>;
  vector_t<A> s[4] = {}, p[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes)
    for (int64_t u = 0; u < 4; ++u) {
      const vector_t<A> gradient = load_vector(g + i + u * lanes);
      s[u] += gradient;
      p[u] += gradient * (load_vector(x + i + u * lanes) - mean);
    }
  A tail_sum = 0, tail_product = 0;
  for (; i < count; ++i) {
    tail_sum += g[i];
    tail_product += g[i] * (x[i] - mean);
  }
  return {add_lanes<A>((s[0] + s[1]) + (s[2] + s[3])) + tail_sum,
          add_lanes<A>((p[0] + p[1]) + (p[2] + p[3])) + tail_product};
}
template <class A>
inline GradientSums<A> gradient_sums(const A* g, const A* x, const uint8_t* labels, uint8_t region,
                                     A mean, int64_t count) {
  A s = 0, p = 0;
#pragma omp simd reduction(+ : s, p)
  for (int64_t i = 0; i < count; ++i) {
    const bool inside = labels[i] == region;
    s += inside ? g[i] : A(0);
    p += inside ? g[i] * (x[i] - mean) : A(0);
  }
  return {s, p};
}
#if defined(__AVX512BW__)
inline void gradient_sums_of_two(const float* g, const float* x, const uint8_t* labels,
                                 const TileRegion* present, const float* mean, int64_t count,
                                 GradientSums<float>* out) {
  const __m128i second = _mm_set1_epi8(static_cast<char>(present[1].region));
  const __m512 c0 = _mm512_set1_ps(mean[present[0].region]);
  const __m512 c1 = _mm512_set1_ps(mean[present[1].region]);
  __m512 s0 = _mm512_setzero_ps(), p0 = s0, s1 = s0, p1 = s0;
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 tail = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    const __m128i at = _mm_maskz_loadu_epi8(tail, labels + i);
    const __mmask16 in_second = _mm_mask_cmpeq_epi8_mask(tail, at, second);
    const __mmask16 in_first = tail & ~in_second;
    const __m512 v = _mm512_maskz_loadu_ps(tail, x + i);
    const __m512 gradient = _mm512_maskz_loadu_ps(tail, g + i);
    const __m512 g0 = _mm512_maskz_mov_ps(in_first, gradient);
    const __m512 g1 = _mm512_maskz_mov_ps(in_second, gradient);
    s0 = _mm512_add_ps(s0, g0);
    s1 = _mm512_add_ps(s1, g1);
    p0 = _mm512_fmadd_ps(g0, _mm512_maskz_sub_ps(in_first, v, c0), p0);
    p1 = _mm512_fmadd_ps(g1, _mm512_maskz_sub_ps(in_second, v, c1), p1);
  }
  out[0] = {_mm512_reduce_add_ps(s0), _mm512_reduce_add_ps(p0)};
  out[1] = {_mm512_reduce_add_ps(s1), _mm512_reduce_add_ps(p1)};
}
#endif
template <class A>
inline void gradient_sums_of_two(const A* g, const A* x, const uint8_t* labels,
                                 const TileRegion* present, const A* mean, int64_t count,
                                 GradientSums<A>* out) {
  const uint8_t second = present[1].region;
  const A c0 = mean[present[0].region], c1 = mean[present[1].region];
  A s0 = 0, p0 = 0, s1 = 0, p1 = 0;
#pragma omp simd reduction(+ : s0, p0, s1, p1)
  for (int64_t i = 0; i < count; ++i) {
    const bool in_second = labels[i] == second;
    const A g0 = in_second ? A(0) : g[i], g1 = in_second ? g[i] : A(0);
    const A d0 = in_second ? A(0) : x[i] - c0, d1 = in_second ? x[i] - c1 : A(0);
    s0 += g0;
    p0 += g0 * d0;
    s1 += g1;
    p1 += g1 * d1;
  }
  out[0] = {s0, p0};
  out[1] = {s1, p1};
}

}  // namespace

int32_t tile_regions(const uint8_t* labels, int64_t count, int64_t num_regions,
                     TileRegion* present) {
  int32_t ones = 0;
  uint8_t highest = 0;
#pragma omp simd reduction(+ : ones) reduction(max : highest)
  for (int64_t i = 0; i < count; ++i) {
    ones += labels[i] == 1;
    highest = labels[i] > highest ? labels[i] : highest;
  }
  if (highest >= num_regions) return -1;
  int32_t counts[kMaxRegions] = {};
  if (highest <= 1) {
    counts[0] = static_cast<int32_t>(count) - ones;
    counts[1] = ones;
  } else {
    for (int64_t i = 0; i < count; ++i) ++counts[labels[i]];
  }
  int32_t found = 0;
  for (int region = 0; region <= highest; ++region)
    if (counts[region] > 0) present[found++] = {static_cast<uint8_t>(region), counts[region]};
  return found;
}

template <class T>
void plane_moments(const T* x, const LabelPlane& plane, bool ignore_holes, Moments* moments) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  RunningSums<A> running[kMaxRegions];
  bool seen[kMaxRegions] = {};
  A centre[kMaxRegions];
  Deviations<A> found[kMaxRegions];
  for (int64_t tile = 0, begin = 0; begin < plane.pixels; ++tile, begin += kTile) {
    const int64_t count = smaller(kTile, plane.pixels - begin);
    const A* values = input(x + begin, count);
    const uint8_t* labels = plane.labels + begin;
    const TileRegion* present = plane.present + plane.first[tile];
    const int32_t regions = plane.first[tile + 1] - plane.first[tile];
    const auto ignored = [&](int32_t i) { return ignore_holes && present[i].region == 0; };
    for (int32_t i = 0; i < regions; ++i) {
      const uint8_t region = present[i].region;
      if (!seen[region]) running[region] = {static_cast<A>(moments[region].mean)};
      seen[region] = true;
      centre[i] = running[region].centre;
    }
    // One sweep around the region's centre; again around the tile's own mean where the centre is so
    // far off that squares - sum^2 / count would cancel.
    for (int attempt = 0; attempt < 3; ++attempt) {
      if (regions == 1) {
        if (!ignored(0)) found[0] = deviations(values, centre[0], count);
      } else if (regions == 2) {
        deviations_of_two(values, labels, present, centre, count, found);
      } else {
        for (int32_t i = 0; i < regions; ++i)
          if (!ignored(i))
            found[i] = deviations(values, labels, present[i].region, centre[i], count);
      }
      bool again = false;
      for (int32_t i = 0; i < regions && attempt < 2; ++i) {
        const A members = static_cast<A>(present[i].count);
        if (ignored(i) || !found[i].cancels(members)) continue;
        centre[i] += found[i].sum / members;
        again = true;
      }
      if (!again) break;
    }
    for (int32_t i = 0; i < regions; ++i) {
      if (ignored(i)) continue;
      const uint8_t region = present[i].region;
      if (centre[i] != running[region].centre) {
        running[region].merge_into(moments[region]);
        running[region] = {centre[i]};
      }
      running[region].add(found[i], present[i].count);
    }
  }
  for (int64_t region = 0; region < kMaxRegions; ++region)
    if (seen[region]) running[region].merge_into(moments[region]);
}

template <class T>
void plane_apply(const T* x, const LabelPlane& plane, const RegionConstants<accumulate_t<T>>& k,
                 int64_t num_regions, const PixelMaps<accumulate_t<T>>& maps, bool ignore_holes,
                 bool stream, T* y) {
  using A = accumulate_t<T>;
  if (ignore_holes) stream = false;  // the result is read again
  InputTile<T> input;
  OutputTile<T> output;
  const Kept<A> kept(num_regions, ignore_holes);
  for_each_tile<A>(plane, [&](int64_t begin, int64_t count, auto lookup) {
    const A* __restrict in = input(x + begin, count);
    A* __restrict out = output(y + begin);
    const auto mean = lookup(k.mean), scale = lookup(k.scale), offset = lookup(k.offset);
    if (maps.weight != nullptr) {
      const A* __restrict weight = maps.weight + begin;
      const A* __restrict bias = maps.bias + begin;
      put_each(out, count, stream, [&](auto i) {
        const auto normal = (get(in, i) - mean(i)) * scale(i) + offset(i);
        return normal * get(weight, i) + get(bias, i);
      });
    } else {
      put_each(out, count, stream,
               [&](auto i) { return (get(in, i) - mean(i)) * scale(i) + offset(i); });
    }
    if (ignore_holes) {
      const auto keep = lookup(kept.table);
      for_each_pixel(A{}, count, [&](auto i) { put(out, i, nonzero_only(keep(i), get(out, i))); });
    }
    output.commit(y + begin, count);
  });
  if (stream) finish_streaming();
}

template <class T>
void plane_gradient_sums(const T* grad, const T* x, const LabelPlane& plane,
                         const accumulate_t<T>* mean, const accumulate_t<T>* rstd,
                         int64_t num_regions, const accumulate_t<T>* weight_map, bool ignore_holes,
                         double* sums, accumulate_t<T>* weight_gradient,
                         accumulate_t<T>* bias_gradient) {
  using A = accumulate_t<T>;
  InputTile<T> x_input, grad_input;
  A weighted[kTile];
  const Kept<A> kept(num_regions, ignore_holes);
  int64_t tile = 0;
  for_each_tile<A>(plane, [&](int64_t begin, int64_t count, auto lookup) {
    const A* __restrict in = x_input(x + begin, count);
    const A* __restrict g = grad_input(grad + begin, count);
    const uint8_t* labels = plane.labels + begin;
    if (weight_map != nullptr) {
      const A* __restrict weight = weight_map + begin;
      A* __restrict weight_sum = weight_gradient + begin;
      A* __restrict bias_sum = bias_gradient + begin;
      const auto centre = lookup(mean), scale = lookup(rstd), keep = lookup(kept.table);
      for_each_pixel(A{}, count, [&](auto i) {
        const auto gradient = get(g, i);
        const auto product = gradient * ((get(in, i) - centre(i)) * scale(i));
        put(weight_sum, i, get(weight_sum, i) + nonzero_only(keep(i), product));
        put(bias_sum, i, get(bias_sum, i) + nonzero_only(keep(i), gradient));
        put(weighted, i, gradient * get(weight, i));
      });
      g = weighted;
    }
    const TileRegion* present = plane.present + plane.first[tile];
    const int32_t regions = plane.first[tile + 1] - plane.first[tile];
    ++tile;
    GradientSums<A> found[kMaxRegions];
    if (regions == 2) gradient_sums_of_two(g, in, labels, present, mean, count, found);
    for (int32_t i = 0; i < regions; ++i) {
      const uint8_t region = present[i].region;
      if (ignore_holes && region == 0) continue;
      if (regions == 1)
        found[i] = gradient_sums(g, in, mean[region], count);
      else if (regions > 2)
        found[i] = gradient_sums(g, in, labels, region, mean[region], count);
      sums[2 * region] += static_cast<double>(found[i].sum);
      sums[2 * region + 1] += static_cast<double>(found[i].product) * rstd[region];
    }
  });
}

template <class T>
void plane_gradient_apply(const T* grad, const T* x, const LabelPlane& plane,
                          const RegionGradient<accumulate_t<T>>& k, int64_t num_regions,
                          const PixelMaps<accumulate_t<T>>& maps, int32_t channel,
                          bool ignore_holes, bool stream, T* grad_x) {
  using A = accumulate_t<T>;
  if (ignore_holes || maps.argmax != nullptr) stream = false;  // the result is read again
  InputTile<T> x_input, grad_input;
  OutputTile<T> output;
  const Kept<A> kept(num_regions, ignore_holes);
  for_each_tile<A>(plane, [&](int64_t begin, int64_t count, auto lookup) {
    const A* __restrict in = x_input(x + begin, count);
    const A* __restrict g = grad_input(grad + begin, count);
    A* __restrict out = output(grad_x + begin);
    const auto mean = lookup(k.mean), scale = lookup(k.scale), slope = lookup(k.slope);
    const auto mean_gradient = lookup(k.mean_gradient);
    if (maps.weight != nullptr) {
      const A* __restrict weight = maps.weight + begin;
      put_each(out, count, stream, [&](auto i) {
        return scale(i) * (get(g, i) * get(weight, i) - mean_gradient(i)) -
               (get(in, i) - mean(i)) * slope(i);
      });
    } else {
      put_each(out, count, stream, [&](auto i) {
        return scale(i) * (get(g, i) - mean_gradient(i)) - (get(in, i) - mean(i)) * slope(i);
      });
    }
    if (ignore_holes) {
      const auto keep = lookup(kept.table);
      for_each_pixel(A{}, count, [&](auto i) { put(out, i, nonzero_only(keep(i), get(out, i))); });
    }
    if (maps.argmax != nullptr) {
      const A* __restrict share = maps.mean_gradient + begin;
      const A* __restrict max_gradient = maps.max_gradient + begin;
      const int32_t* __restrict argmax = maps.argmax + begin;
      for_each_pixel(A{}, count, [&](auto i) {
        const auto largest = where_equal(argmax, channel, i, get(max_gradient, i));
        put(out, i, get(out, i) + (get(share, i) + largest));
      });
    }
    output.commit(grad_x + begin, count);
  });
  if (stream) finish_streaming();
}

// Channels last: a pixel's channels are contiguous, so they are the vector, and a pixel's region
// picks one row of each (K, C) table. A block of pixels is reduced in the accumulate type and then
// merged into double, as a tile is above.
namespace {

// Channels handled at a time: bounds the block's working set whatever C is.
constexpr int64_t kChannels = 256;
constexpr int64_t kPixels = 16;

// kPixels rows of at most kChannels elements in the accumulate type.
template <class T>
struct Rows {
  accumulate_t<T> buffer[kPixels * kChannels];
  const accumulate_t<T>* row[kPixels];
  void fill(const T* x, int64_t stride, int64_t rows, int64_t channels) {
    for (int64_t p = 0; p < rows; ++p) {
      widen(x + p * stride, buffer + p * kChannels, channels);
      row[p] = buffer + p * kChannels;
    }
  }
};
template <class A>
struct RowsInPlace {
  const A* row[kPixels];
  void fill(const A* x, int64_t stride, int64_t rows, int64_t) {
    for (int64_t p = 0; p < rows; ++p) row[p] = x + p * stride;
  }
};
template <>
struct Rows<float> : RowsInPlace<float> {};
template <>
struct Rows<double> : RowsInPlace<double> {};

// Calls body(region, members, number of members) for every region among the rows' labels.
template <class Body>
inline void for_each_region(const uint8_t* labels, int64_t rows, bool ignore_holes, Body body) {
  uint64_t seen = ignore_holes ? 1 : 0;
  for (int64_t p = 0; p < rows; ++p) {
    const uint8_t region = labels[p];
    if (seen >> region & 1) continue;
    seen |= uint64_t{1} << region;
    int64_t members[kPixels], count = 0;
    for (int64_t q = p; q < rows; ++q)
      if (labels[q] == region) members[count++] = q;
    body(region, members, count);
  }
}

}  // namespace

template <class T>
void pixels_moments(const T* x, const uint8_t* labels, int64_t pixels, int64_t channels,
                    int64_t num_regions, bool ignore_holes, int64_t* count, double* mean,
                    double* squares) {
  using A = accumulate_t<T>;
  constexpr int64_t kBlock = 256, kWidth = 64;  // pixels and channels of a block
  InputTile<T> input;
  A centre[kMaxRegions * kWidth], sum[kMaxRegions * kWidth], square[kMaxRegions * kWidth];
  for (int64_t begin = 0; begin < pixels; begin += kBlock) {
    const int64_t block = smaller(kBlock, pixels - begin);
    const uint8_t* region = labels + begin;
    int64_t size[kMaxRegions] = {};
    for (int64_t p = 0; p < block; ++p) ++size[region[p]];
    if (ignore_holes) size[0] = 0;
    for (int64_t c0 = 0; c0 < channels; c0 += kWidth) {
      const int64_t width = smaller(kWidth, channels - c0);
      for (int64_t k = 0; k < num_regions; ++k)
        for (int64_t c = 0; c < width && size[k] > 0; ++c)
          centre[k * kWidth + c] = static_cast<A>(mean[k * channels + c0 + c]);
      // As in plane_moments: again where the mean so far is too far off.
      for (int attempt = 0; attempt < 3; ++attempt) {
        for (int64_t i = 0; i < num_regions * kWidth; ++i) sum[i] = square[i] = A(0);
        for (int64_t p = 0; p < block; ++p) {
          if (size[region[p]] == 0) continue;
          const A* __restrict row = input(x + (begin + p) * channels + c0, width);
          const A* __restrict middle = centre + region[p] * kWidth;
          A* __restrict s = sum + region[p] * kWidth;
          A* __restrict q = square + region[p] * kWidth;
#pragma omp simd
          for (int64_t c = 0; c < width; ++c) {
            const A d = row[c] - middle[c];
            s[c] += d;
            q[c] += d * d;
          }
        }
        int32_t again = 0;
        for (int64_t k = 0; k < num_regions && attempt < 2; ++k) {
          if (size[k] == 0) continue;
          const A inverse = A(1) / static_cast<A>(size[k]);
          A* middle = centre + k * kWidth;
          const A *s = sum + k * kWidth, *q = square + k * kWidth;
#pragma omp simd reduction(| : again)
          for (int64_t c = 0; c < width; ++c) {
            const A offset = s[c] * inverse;
            const bool far = q[c] - s[c] * offset < q[c] / 64;
            middle[c] += far ? offset : A(0);
            again |= far;
          }
        }
        if (again == 0) break;
      }
      for (int64_t k = 0; k < num_regions; ++k) {
        if (size[k] == 0) continue;
        const double before = static_cast<double>(count[k]);
        const double share = static_cast<double>(size[k]) / (before + size[k]);
        const double cross = share * before, per_pixel = 1.0 / static_cast<double>(size[k]);
        const A *middle = centre + k * kWidth, *s = sum + k * kWidth, *q = square + k * kWidth;
        double* __restrict means = mean + k * channels + c0;
        double* __restrict total = squares + k * channels + c0;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          const double offset = static_cast<double>(s[c]) * per_pixel;
          const double exact = static_cast<double>(q[c]) - offset * static_cast<double>(s[c]);
          const double delta = static_cast<double>(middle[c]) + offset - means[c];
          means[c] += delta * share;
          total[c] += exact + delta * delta * cross;
        }
      }
    }
    for (int64_t k = 0; k < num_regions; ++k) count[k] += size[k];
  }
}

template <class T>
void pixels_apply(const T* x, const uint8_t* labels, int64_t pixels, int64_t channels,
                  const RegionConstants<accumulate_t<T>>& k, const PixelMaps<accumulate_t<T>>& maps,
                  bool ignore_holes, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  OutputTile<T> output;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
      const int64_t width = smaller(kTile, channels - c0);
      T* to = y + p * channels + c0;
      A* __restrict out = output(to);
      if (ignore_holes && labels[p] == 0) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) out[c] = A(0);
      } else {
        const int64_t table = labels[p] * channels + c0;
        const A* __restrict in = input(x + p * channels + c0, width);
        const A* __restrict mean = k.mean + table;
        const A* __restrict scale = k.scale + table;
        const A* __restrict offset = k.offset + table;
        const A weight = maps.weight != nullptr ? maps.weight[p] : A(1);
        const A bias = maps.weight != nullptr ? maps.bias[p] : A(0);
#pragma omp simd
        for (int64_t c = 0; c < width; ++c)
          out[c] = ((in[c] - mean[c]) * scale[c] + offset[c]) * weight + bias;
      }
      output.commit(to, width);
    }
  }
}

template <class T>
void pixels_gradient_sums(const T* grad, const T* x, const uint8_t* labels, int64_t pixels,
                          int64_t channels, int64_t num_regions, const accumulate_t<T>* mean,
                          const accumulate_t<T>* rstd, const accumulate_t<T>* weight_map,
                          bool ignore_holes, double* sums, accumulate_t<T>* weight_gradient,
                          accumulate_t<T>* bias_gradient) {
  using A = accumulate_t<T>;
  Rows<T> x_rows, grad_rows;
  A sum[kChannels], product[kChannels];
  for (int64_t begin = 0; begin < pixels; begin += kPixels) {
    const int64_t block = smaller(kPixels, pixels - begin);
    for (int64_t c0 = 0; c0 < channels; c0 += kChannels) {
      const int64_t width = smaller(kChannels, channels - c0);
      x_rows.fill(x + begin * channels + c0, channels, block, width);
      grad_rows.fill(grad + begin * channels + c0, channels, block, width);
      for_each_region(
          labels + begin, block, ignore_holes,
          [&](uint8_t region, const int64_t* members, int64_t size) {
            const A* __restrict centre = mean + region * channels + c0;
            const A* __restrict scale = rstd + region * channels + c0;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) sum[c] = product[c] = A(0);
            for (int64_t m = 0; m < size; ++m) {
              const A* __restrict row = x_rows.row[members[m]];
              const A* __restrict g = grad_rows.row[members[m]];
              const A weight = weight_map != nullptr ? weight_map[begin + members[m]] : A(1);
#pragma omp simd
              for (int64_t c = 0; c < width; ++c) {
                const A weighted = g[c] * weight;
                sum[c] += weighted;
                product[c] += weighted * (row[c] - centre[c]);
              }
              if (weight_map != nullptr) {
                A weight_sum = 0, bias_sum = 0;
#pragma omp simd reduction(+ : weight_sum, bias_sum)
                for (int64_t c = 0; c < width; ++c) {
                  weight_sum += g[c] * ((row[c] - centre[c]) * scale[c]);
                  bias_sum += g[c];
                }
                weight_gradient[begin + members[m]] += weight_sum;
                bias_gradient[begin + members[m]] += bias_sum;
              }
            }
            double* __restrict sum_total = sums + region * channels + c0;
            double* __restrict product_total = sums + (num_regions + region) * channels + c0;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
              sum_total[c] += static_cast<double>(sum[c]);
              product_total[c] += static_cast<double>(product[c]) * static_cast<double>(scale[c]);
            }
          });
    }
  }
}

template <class T>
void pixels_gradient_apply(const T* grad, const T* x, const uint8_t* labels, int64_t pixels,
                           int64_t channels, const RegionGradient<accumulate_t<T>>& k,
                           const PixelMaps<accumulate_t<T>>& maps, bool ignore_holes, T* grad_x) {
  using A = accumulate_t<T>;
  InputTile<T> x_input, grad_input;
  OutputTile<T> output;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
      const int64_t width = smaller(kTile, channels - c0);
      T* to = grad_x + p * channels + c0;
      A* __restrict out = output(to);
      if (ignore_holes && labels[p] == 0) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) out[c] = A(0);
      } else {
        const int64_t table = labels[p] * channels + c0;
        const A* __restrict in = x_input(x + p * channels + c0, width);
        const A* __restrict g = grad_input(grad + p * channels + c0, width);
        const A* __restrict mean = k.mean + table;
        const A* __restrict scale = k.scale + table;
        const A* __restrict mean_gradient = k.mean_gradient + table;
        const A* __restrict slope = k.slope + table;
        const A weight = maps.weight != nullptr ? maps.weight[p] : A(1);
#pragma omp simd
        for (int64_t c = 0; c < width; ++c)
          out[c] = scale[c] * (g[c] * weight - mean_gradient[c]) - (in[c] - mean[c]) * slope[c];
      }
      if (maps.argmax != nullptr) {
        const A share = maps.mean_gradient[p];
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) out[c] += share;
        const int64_t largest = maps.argmax[p] - c0;
        if (largest >= 0 && largest < width) out[largest] += maps.max_gradient[p];
      }
      output.commit(to, width);
    }
  }
}

#define TORCHEXT_INSTANTIATE(T)                                                                  \
  template void plane_moments<T>(const T*, const LabelPlane&, bool, Moments*);                   \
  template void plane_apply<T>(const T*, const LabelPlane&,                                      \
                               const RegionConstants<accumulate_t<T>>&, int64_t,                 \
                               const PixelMaps<accumulate_t<T>>&, bool, bool, T*);               \
  template void plane_gradient_sums<T>(                                                          \
      const T*, const T*, const LabelPlane&, const accumulate_t<T>*, const accumulate_t<T>*,     \
      int64_t, const accumulate_t<T>*, bool, double*, accumulate_t<T>*, accumulate_t<T>*);       \
  template void plane_gradient_apply<T>(                                                         \
      const T*, const T*, const LabelPlane&, const RegionGradient<accumulate_t<T>>&, int64_t,    \
      const PixelMaps<accumulate_t<T>>&, int32_t, bool, bool, T*);                               \
  template void pixels_moments<T>(const T*, const uint8_t*, int64_t, int64_t, int64_t, bool,     \
                                  int64_t*, double*, double*);                                   \
  template void pixels_apply<T>(const T*, const uint8_t*, int64_t, int64_t,                      \
                                const RegionConstants<accumulate_t<T>>&,                         \
                                const PixelMaps<accumulate_t<T>>&, bool, T*);                    \
  template void pixels_gradient_sums<T>(const T*, const T*, const uint8_t*, int64_t, int64_t,    \
                                        int64_t, const accumulate_t<T>*, const accumulate_t<T>*, \
                                        const accumulate_t<T>*, bool, double*, accumulate_t<T>*, \
                                        accumulate_t<T>*);                                       \
  template void pixels_gradient_apply<T>(const T*, const T*, const uint8_t*, int64_t, int64_t,   \
                                         const RegionGradient<accumulate_t<T>>&,                 \
                                         const PixelMaps<accumulate_t<T>>&, bool, T*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
