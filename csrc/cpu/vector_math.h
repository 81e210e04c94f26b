// Elementary functions that loops can vectorise, for the kernel files (see simd.h).
#pragma once

#include "simd.h"

#if defined(TORCHEXT_SIMD)
namespace torchext {
namespace TORCHEXT_SIMD {

// exp to about one unit in the last place: 2^k * e^r with |r| <= ln(2) / 2, a Taylor polynomial of
// degree 7 for e^r. Saturates instead of overflowing; NaN stays.
static inline float exponential(float x) {
  const float clamped = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to an integer
  const float k = shifted - 12582912.0f;
  const float r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = (bits_from_float(shifted) - 0x4b400000u + 127u) << 23;
  return p * float_from_bits(exponent);
}
static inline double exponential(double x) {
  return exp(x);
}

template <class A>
static inline A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
#endif
