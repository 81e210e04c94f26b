// The functions that device code calls: warp collectives, barriers, atomics, bit and math
// intrinsics. Atomics are plain because all threads of a grid share one OS thread and switch only
// at barriers and collectives.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "emulator/scheduler.h"

namespace emulator {

// A shuffle's value travels as 8 bytes.
template <typename T>
uint64_t pack(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(Wait kind, unsigned mask, T value, int source, int width, bool own) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) {
    scheduler.fail("a shuffle's width must be a power of two up to 32");
  }
  const unsigned from = own ? scheduler.lane() : static_cast<unsigned>(source);
  return unpack<T>(scheduler.collective(kind, mask, pack(value), from));
}

}  // namespace emulator

// Warp collectives. A lane whose source lies outside its segment of width lanes keeps its value.

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = static_cast<int>(emulator::scheduler.lane()) & -width;
  return emulator::shuffle(emulator::Wait::kShfl, mask, value, first + (source & (width - 1)),
                           width, false);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(emulator::scheduler.lane());
  const int source = lane - static_cast<int>(delta);
  return emulator::shuffle(emulator::Wait::kShflUp, mask, value, source, width,
                           source < (lane & -width));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(emulator::scheduler.lane());
  const int source = lane + static_cast<int>(delta);
  return emulator::shuffle(emulator::Wait::kShflDown, mask, value, source, width,
                           source >= (lane & -width) + width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = static_cast<int>(emulator::scheduler.lane());
  const int source = lane ^ lane_mask;
  return emulator::shuffle(emulator::Wait::kShflXor, mask, value, source, width,
                           source >= (lane & -width) + width);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::scheduler.collective(emulator::Wait::kSyncwarp, mask);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      emulator::scheduler.collective(emulator::Wait::kBallot, mask, predicate != 0));
}

inline int __any_sync(unsigned mask, int predicate) {
  return emulator::scheduler.collective(emulator::Wait::kAny, mask, predicate != 0) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return emulator::scheduler.collective(emulator::Wait::kAll, mask, predicate != 0) == mask;
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(
      emulator::scheduler.collective(emulator::Wait::kMatchAny, mask, emulator::pack(value)));
}

template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* equal) {
  const uint64_t same =
      emulator::scheduler.collective(emulator::Wait::kMatchAll, mask, emulator::pack(value));
  *equal = same == mask;
  return *equal ? mask : 0;
}

inline unsigned __activemask() {
  return emulator::scheduler.active_lanes();
}

// Barriers of the block.

inline void __syncthreads() {
  emulator::scheduler.barrier(emulator::Wait::kSyncthreads);
}

inline int __syncthreads_count(int predicate) {
  return static_cast<int>(
      emulator::scheduler.barrier(emulator::Wait::kSyncthreadsCount, predicate != 0));
}

inline int __syncthreads_and(int predicate) {
  return emulator::scheduler.barrier(emulator::Wait::kSyncthreadsAnd, predicate != 0) ==
         uint64_t{blockDim.x} * blockDim.y * blockDim.z;
}

inline int __syncthreads_or(int predicate) {
  return emulator::scheduler.barrier(emulator::Wait::kSyncthreadsOr, predicate != 0) != 0;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() {
  emulator::scheduler.fail("__trap");
}

// Atomics: each returns the old value.

namespace emulator {

template <typename T, typename F>
T update(T* address, F&& next) {
  const T old = *address;
  *address = next(old);
  return old;
}

}  // namespace emulator

// The value's type is the address's, so that a literal converts as it does in CUDA.
#define EMULATOR_ATOMIC(name, expression)                                   \
  template <typename T>                                                     \
  T name(T* address, std::common_type_t<T> value) {                         \
    return emulator::update(address, [=](T old) { return T(expression); }); \
  }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicExch, value)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
EMULATOR_ATOMIC(atomicAnd, old& value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef EMULATOR_ATOMIC

template <typename T>
T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  return emulator::update(address, [=](T old) { return old == compare ? value : old; });
}

// Bits.

inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
inline int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
inline int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1u) << (31 - i);
  return reversed;
}
inline int __float_as_int(float v) {
  return emulator::unpack<int>(emulator::pack(v));
}
inline unsigned __float_as_uint(float v) {
  return emulator::unpack<unsigned>(emulator::pack(v));
}
inline float __int_as_float(int v) {
  return emulator::unpack<float>(emulator::pack(v));
}
inline float __uint_as_float(unsigned v) {
  return emulator::unpack<float>(emulator::pack(v));
}
inline long long __double_as_longlong(double v) {
  return emulator::unpack<long long>(emulator::pack(v));
}
inline double __longlong_as_double(long long v) {
  return emulator::unpack<double>(emulator::pack(v));
}
inline int __mul24(int a, int b) {
  return (a << 8 >> 8) * (b << 8 >> 8);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>(int64_t{a} * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

// Cache hints change nothing here.
#define EMULATOR_LOAD(name)  \
  template <typename T>      \
  T name(const T* address) { \
    return *address;         \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#undef EMULATOR_LOAD
#define EMULATOR_STORE(name)                           \
  template <typename T>                                \
  void name(T* address, std::common_type_t<T> value) { \
    *address = value;                                  \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE

// Mathematics. Where CUDA offers an approximate form, this one is exact.

inline float rsqrtf(float v) {
  return 1.0f / std::sqrt(v);
}
inline double rsqrt(double v) {
  return 1.0 / std::sqrt(v);
}
inline float rsqrt(float v) {
  return rsqrtf(v);
}
inline float rcbrtf(float v) {
  return 1.0f / std::cbrt(v);
}
inline float exp10f(float v) {
  return std::pow(10.0f, v);
}
inline float __expf(float v) {
  return std::exp(v);
}
inline float __exp10f(float v) {
  return std::pow(10.0f, v);
}
inline float __logf(float v) {
  return std::log(v);
}
inline float __log2f(float v) {
  return std::log2(v);
}
inline float __log10f(float v) {
  return std::log10(v);
}
inline float __sinf(float v) {
  return std::sin(v);
}
inline float __cosf(float v) {
  return std::cos(v);
}
inline float __tanf(float v) {
  return std::tan(v);
}
inline float __powf(float a, float b) {
  return std::pow(a, b);
}
inline float __saturatef(float v) {
  return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f;
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __frcp_rn(float v) {
  return 1.0f / v;
}
inline float __fsqrt_rn(float v) {
  return std::sqrt(v);
}
inline float __frsqrt_rn(float v) {
  return 1.0f / std::sqrt(v);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline double __drcp_rn(double v) {
  return 1.0 / v;
}
inline double __dsqrt_rn(double v) {
  return std::sqrt(v);
}
inline float __int2float_rn(int v) {
  return static_cast<float>(v);
}
inline float __uint2float_rn(unsigned v) {
  return static_cast<float>(v);
}
inline float __ll2float_rn(long long v) {
  return static_cast<float>(v);
}
inline double __int2double_rn(int v) {
  return v;
}
inline double __ll2double_rn(long long v) {
  return static_cast<double>(v);
}
inline float __double2float_rn(double v) {
  return static_cast<float>(v);
}
inline int __float2int_rn(float v) {
  return static_cast<int>(std::nearbyint(v));
}
inline int __float2int_rz(float v) {
  return static_cast<int>(v);
}
inline int __float2int_rd(float v) {
  return static_cast<int>(std::floor(v));
}
inline int __float2int_ru(float v) {
  return static_cast<int>(std::ceil(v));
}
using std::isfinite;
using std::isinf;
using std::isnan;

// CUDA's global min and max: usual conversions for numbers of two types, and for floating types
// the number where the other is a NaN.
template <typename A, typename B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                           std::common_type_t<A, B>>
min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(a) < T(b) ? T(a) : T(b);
}

template <typename A, typename B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                           std::common_type_t<A, B>>
max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
