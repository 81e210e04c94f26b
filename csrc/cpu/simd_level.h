// The SIMD levels that a build holds, and the one in use.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

// The levels that are compiled: 0 portable, 1 with avx2, 2 with avx512. setup.py lowers it for a
// compiler that rejects a level's flags.
#if !defined(TORCHEXT_SIMD_LEVELS)
#if defined(__x86_64__)
#define TORCHEXT_SIMD_LEVELS 2
#else
#define TORCHEXT_SIMD_LEVELS 0
#endif
#endif

namespace torchext {

enum class SimdLevel : int { portable = 0, avx2 = 1, avx512 = 2 };

inline const char* name(SimdLevel level) {
  switch (level) {
    case SimdLevel::avx512:
      return "avx512";
    case SimdLevel::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

inline SimdLevel highest_simd_level() {
#if TORCHEXT_SIMD_LEVELS >= 2
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return SimdLevel::avx512;
#endif
#if TORCHEXT_SIMD_LEVELS >= 1
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return SimdLevel::avx2;
#endif
  return SimdLevel::portable;
}

// TORCHEXT_SIMD=portable|avx2|avx512 lowers the level; one that the machine lacks is not taken.
// Read at each call (tens of nanoseconds), so that a level can be forced within a process.
inline SimdLevel simd_level() {
  static const SimdLevel highest = highest_simd_level();
  const char* forced = std::getenv("TORCHEXT_SIMD");
  if (forced == nullptr) return highest;
  for (SimdLevel level : {SimdLevel::portable, SimdLevel::avx2, SimdLevel::avx512})
    if (std::strcmp(forced, name(level)) == 0 && level <= highest) return level;
  return highest;
}

}  // namespace torchext

// Calls a function of the namespace of the level in use.
#if TORCHEXT_SIMD_LEVELS >= 2
#define TORCHEXT_AT_SIMD_LEVEL(...)                                                      \
  (torchext::simd_level() == torchext::SimdLevel::avx512 ? torchext::avx512::__VA_ARGS__ \
   : torchext::simd_level() == torchext::SimdLevel::avx2 ? torchext::avx2::__VA_ARGS__   \
                                                         : torchext::portable::__VA_ARGS__)
#elif TORCHEXT_SIMD_LEVELS == 1
#define TORCHEXT_AT_SIMD_LEVEL(...)                                                  \
  (torchext::simd_level() == torchext::SimdLevel::avx2 ? torchext::avx2::__VA_ARGS__ \
                                                       : torchext::portable::__VA_ARGS__)
#else
#define TORCHEXT_AT_SIMD_LEVEL(...) torchext::portable::__VA_ARGS__
#endif
