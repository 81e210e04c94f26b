// What __half and __nv_bfloat16 have in common: 16 bits, arithmetic in float, rounding to nearest
// even. Format::encode and Format::decode convert between float and the bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector_types.h"

namespace emulator {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct HalfFormat {
  static uint16_t encode(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;  // NaN, as the hardware gives it
    if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 2^16
    if (magnitude < 0x38800000u) {
      // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is worth 2^-24,
      // rounds to one.
      const float rounded = bits_float(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (float_bits(rounded) - float_bits(0.5f)));
    }
    // Rebias the exponent and round the 13 bits that go; a carry runs into the exponent, and from
    // the largest half to infinity, as it should.
    const uint32_t rebiased = magnitude - (uint32_t{127 - 15} << 23);
    return static_cast<uint16_t>(sign | (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
  }

  static float decode(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t magnitude = (bits & 0x7fffu) << 13;
    if (magnitude >= 0x7c00u << 13) return bits_float(sign | 0x7f800000u | magnitude);
    // 2^112 puts the exponent right, for subnormals too.
    return bits_float(sign | float_bits(bits_float(magnitude) * 0x1p112f));
  }
};

struct Bfloat16Format {
  static uint16_t encode(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  static float decode(uint16_t bits) { return bits_float(uint32_t{bits} << 16); }
};

template <typename Format>
struct Half {
  uint16_t bits;

  Half() = default;
  Half(float value) : bits(Format::encode(value)) {}
  // Through float, as CUDA does for integers; a double is rounded twice only if it needs more than
  // float's 24 bits.
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  Half(T value) : Half(static_cast<float>(value)) {}
  operator float() const { return Format::decode(bits); }

  Half& operator+=(Half b) { return *this = *this + b; }
  Half& operator-=(Half b) { return *this = *this - b; }
  Half& operator*=(Half b) { return *this = *this * b; }
  Half& operator/=(Half b) { return *this = *this / b; }
  friend Half operator+(Half a, Half b) { return Half(float(a) + float(b)); }
  friend Half operator-(Half a, Half b) { return Half(float(a) - float(b)); }
  friend Half operator*(Half a, Half b) { return Half(float(a) * float(b)); }
  friend Half operator/(Half a, Half b) { return Half(float(a) / float(b)); }
  friend Half operator-(Half a) { return from_bits(static_cast<uint16_t>(a.bits ^ 0x8000u)); }
  friend bool operator==(Half a, Half b) { return float(a) == float(b); }
  friend bool operator!=(Half a, Half b) { return float(a) != float(b); }
  friend bool operator<(Half a, Half b) { return float(a) < float(b); }
  friend bool operator>(Half a, Half b) { return float(a) > float(b); }
  friend bool operator<=(Half a, Half b) { return float(a) <= float(b); }
  friend bool operator>=(Half a, Half b) { return float(a) >= float(b); }

  static Half from_bits(uint16_t bits) {
    Half value;
    value.bits = bits;
    return value;
  }
};

template <typename T>
struct alignas(4) Half2 {
  T x, y;
};

}  // namespace emulator
