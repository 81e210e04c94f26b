#pragma once

#include "cuda_runtime.h"
#include "emulator/half.h"

using __half = emulator::Half<emulator::HalfFormat>;
using __half2 = emulator::Half2<__half>;
using half = __half;
using half2 = __half2;

inline float __half2float(__half v) {
  return v;
}
inline __half __float2half(float v) {
  return __half(v);
}
inline __half __float2half_rn(float v) {
  return __half(v);
}
inline __half __double2half(double v) {
  return __half(v);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __half2 __float22half2_rn(float2 v) {
  return __floats2half2_rn(v.x, v.y);
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline float2 __half22float2(__half2 v) {
  return {v.x, v.y};
}
inline __half __low2half(__half2 v) {
  return v.x;
}
inline __half __high2half(__half2 v) {
  return v.y;
}
inline float __low2float(__half2 v) {
  return v.x;
}
inline float __high2float(__half2 v) {
  return v.y;
}
inline unsigned short __half_as_ushort(__half v) {
  return v.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  return __half::from_bits(bits);
}
