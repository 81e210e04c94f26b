// What every vectorised kernel file shares: the namespace of its SIMD level, the element types and
// their conversion to the accumulate type.
//
// A kernel file is compiled once per level, each time with that level's compiler flags and with
// TORCHEXT_SIMD set to its name, and touches neither torch nor the standard library's templates: an
// inline function compiled here with AVX-512 could otherwise be the copy that the linker keeps for
// the whole library. Loops are plain and leave the vectorising to the compiler.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace torchext {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

// Declares what stands in the brackets in the namespace of every level of this machine's kind.
#if defined(__x86_64__)
#define TORCHEXT_DECLARE_FOR_SIMD_LEVELS(...) \
  namespace portable {                        \
  __VA_ARGS__                                 \
  }                                           \
  namespace avx2 {                            \
  __VA_ARGS__                                 \
  }                                           \
  namespace avx512 {                          \
  __VA_ARGS__                                 \
  }
#else
#define TORCHEXT_DECLARE_FOR_SIMD_LEVELS(...) \
  namespace portable {                        \
  __VA_ARGS__                                 \
  }
#endif

// Elements that are converted, or reduced, at a time: a float32 tile is 4 KiB, so two operands and
// their labels stay in the first-level cache.
constexpr int64_t kTile = 1024;

#if defined(TORCHEXT_SIMD)
namespace TORCHEXT_SIMD {

// A vector register, for sums that a plain loop's vectorisation would fold lane by lane too often.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using vector_t = typename VectorOf<A>::type;
template <class A>
constexpr int64_t vector_lanes = kVectorBytes / sizeof(A);

static inline vector_t<float> load_vector(const float* from) {
  vector_t<float> value;
  memcpy(&value, from, sizeof value);
  return value;
}
static inline vector_t<double> load_vector(const double* from) {
  vector_t<double> value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class A>
static inline A add_lanes(vector_t<A> value) {
  A lanes[vector_lanes<A>];
  memcpy(lanes, &value, sizeof lanes);
  for (int64_t width = vector_lanes<A> / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float widen(BFloat16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}
static inline BFloat16 narrow_bfloat16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

// Half to float: moved into the float's exponent field, a half is the float times 2^-112 (also when
// subnormal), except for infinity and NaN, whose exponent is then set to all ones.
static inline float widen(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t finite = bits_from_float(float_from_bits(magnitude) * 0x1p112f);
  return float_from_bits((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite) | sign);
}
// Float to half: a subnormal half is the integer part of value * 2^24, which adding 2^-1 * 2^24
// rounds to nearest even in the float's own adder; a normal half rounds on the integer.
static inline Half narrow_half(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x477ff000u) result = 0x7c00u;  // rounds past 65504
  if (magnitude > 0x7f800000u) result = 0x7e00u;   // NaN
  return {static_cast<uint16_t>(result | sign)};
}

static inline void widen(const BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}
static inline void narrow(const float* from, BFloat16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow_bfloat16(from[i]);
}
static inline void widen(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = widen(from[i]);
}
static inline void narrow(const float* from, Half* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) to[i] = narrow_half(from[i]);
}

// A tile of the input in the accumulate type: the input itself where it already is, else a copy.
template <class T>
class InputTile {
 public:
  const float* operator()(const T* from, int64_t count) {
    widen(from, buffer_, count);
    return buffer_;
  }

 private:
  float buffer_[kTile];
};
// A tile of the output: written in place, or narrowed from a buffer by `commit`.
template <class T>
class OutputTile {
 public:
  float* operator()(T*) { return buffer_; }
  void commit(T* to, int64_t count) { narrow(buffer_, to, count); }

 private:
  float buffer_[kTile];
};
template <>
class InputTile<float> {
 public:
  const float* operator()(const float* from, int64_t) { return from; }
};
template <>
class InputTile<double> {
 public:
  const double* operator()(const double* from, int64_t) { return from; }
};
template <>
class OutputTile<float> {
 public:
  float* operator()(float* to) { return to; }
  void commit(float*, int64_t) {}
};
template <>
class OutputTile<double> {
 public:
  double* operator()(double* to) { return to; }
  void commit(double*, int64_t) {}
};

}  // namespace TORCHEXT_SIMD
#endif

}  // namespace torchext
