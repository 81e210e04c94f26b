// Global memory: kernels touch it only through load and store below, one access of up to 128 bits
// each, so that the emulator's ledger sees every byte.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace torchext {

constexpr int kMaxAccessBytes = 16;

template <typename T, int V>
struct alignas(sizeof(T) * V < kMaxAccessBytes ? sizeof(T) * V : kMaxAccessBytes) Vec {
  T v[V];
  __host__ __device__ T& operator[](int i) { return v[i]; }
  __host__ __device__ const T& operator[](int i) const { return v[i]; }
};

namespace detail {

template <int Bytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// The machine word that carries a Vec: struct copies of __half are split by the compiler, words
// are not. A Vec wider than 128 bits takes several words.
template <typename T, int V>
using word_t =
    typename Word<(sizeof(T) * V < kMaxAccessBytes ? sizeof(T) * V : kMaxAccessBytes)>::type;

template <typename Word>
__device__ __forceinline__ void store_word(Word* address, const Word& word) {
  *address = word;
}
#ifndef TORCHEXT_EMULATED
// One instruction for certain: nvcc splits the copy of a word that comes from several branches.
__device__ __forceinline__ void store_word(uint4* address, const uint4& word) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(address)), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
               : "memory");
}
#endif

}  // namespace detail

// V consecutive elements. The address must be aligned to the access (see vector_width).
template <int V, typename T>
__device__ __forceinline__ Vec<T, V> load(const T* address) {
  using Word = detail::word_t<T, V>;
  constexpr int kWords = sizeof(Vec<T, V>) / sizeof(Word);
#ifdef TORCHEXT_EMULATED
  emulator::count_load(address, sizeof(Vec<T, V>), sizeof(Word));
#endif
  Word words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(address)[i];
  Vec<T, V> result;
  memcpy(&result, words, sizeof(result));
  return result;
}

template <int V, typename T>
__device__ __forceinline__ void store(T* address, const Vec<T, V>& value) {
  using Word = detail::word_t<T, V>;
  constexpr int kWords = sizeof(Vec<T, V>) / sizeof(Word);
#ifdef TORCHEXT_EMULATED
  emulator::count_store(address, sizeof(Vec<T, V>), sizeof(Word));
#endif
  Word words[kWords];
  memcpy(words, &value, sizeof(value));
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    detail::store_word(reinterpret_cast<Word*>(address) + i, words[i]);
  }
}

template <typename T>
__device__ __forceinline__ T load(const T* address) {
#ifdef TORCHEXT_EMULATED
  emulator::count_load(address, sizeof(T), sizeof(T));
#endif
  return *address;
}

template <typename T>
__device__ __forceinline__ void store(T* address, T value) {
#ifdef TORCHEXT_EMULATED
  emulator::count_store(address, sizeof(T), sizeof(T));
#endif
  *address = value;
}

// The type that sums and statistics are formed in: float, or double for double.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

__device__ __forceinline__ float to_accumulate(float value) {
  return value;
}
__device__ __forceinline__ double to_accumulate(double value) {
  return value;
}
__device__ __forceinline__ float to_accumulate(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float to_accumulate(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T from_accumulate(accumulate_t<T> value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// The largest V, a power of two with V * sizeof(T) <= 16 bytes, that divides extent (the length of
// a contiguous run) and to which every pointer is aligned when it too is read V elements at a
// time. Null pointers (absent tensors) do not limit it.
template <typename T, typename... Others>
int vector_width(int64_t extent, const T* pointer, const Others*... others) {
  auto fits = [](const void* address, int64_t bytes) {
    const int64_t access = bytes < kMaxAccessBytes ? bytes : kMaxAccessBytes;
    return reinterpret_cast<uintptr_t>(address) % access == 0;
  };
  int width = kMaxAccessBytes / static_cast<int>(sizeof(T));
  while (width > 1 && !(extent % width == 0 && fits(pointer, width * sizeof(T)) &&
                        (fits(others, width * sizeof(Others)) && ... && true))) {
    width /= 2;
  }
  return width;
}

// Calls f(std::integral_constant<int, V>{}) for the run-time width of vector_width<T>.
template <typename T, typename F>
void dispatch_width(int width, F&& f) {
  constexpr int kWidest = kMaxAccessBytes / sizeof(T);
  if constexpr (kWidest >= 8) {
    if (width == 8) return f(std::integral_constant<int, 8>{});
  }
  if constexpr (kWidest >= 4) {
    if (width == 4) return f(std::integral_constant<int, 4>{});
  }
  if (width == 2) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
}

}  // namespace torchext
