// A stand-in for the CUDA runtime: with this folder first on the include path and
// -DTORCHEXT_EMULATED, g++ compiles csrc/cuda/*.cu unchanged into functions that run on the CPU.
//
//   emulator/fiber.h      stacks and switches
//   emulator/race.h       accesses that no barrier separates, in builds that ask for them
//   emulator/image.h      kernel names and static shared memory, from the library's own file
//   emulator/scheduler.h  grids, blocks, warps, barriers, deadlocks
//   emulator/ledger.h     bytes and sectors of global memory
//   emulator/requests.h   sectors of each warp's instruction, in builds that ask for them
//   device_functions.h    what device code calls
//   this file             qualifiers, the runtime's host functions, the exported controls
//
// Everything is synchronous. Not there: textures, cooperative groups, dynamic parallelism,
// clusters, tensor cores, inline PTX, threads that spin on memory until another thread writes it.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "device_functions.h"
#include "emulator/ledger.h"
#include "emulator/scheduler.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

// A shared variable is a static one, since one block runs at a time. The marker beside it tells
// image.h that this function's static variables are shared memory (a section would be simpler, but
// g++ 12 forgets a variable's section in templates). It must not stand behind an alignas.
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)
#define EMULATOR_JOIN_(a, b) a##b
#define __shared__                                                                \
  static char EMULATOR_JOIN(emulated_shared_, __COUNTER__) __attribute__((used)); \
  static __attribute__((aligned(16)))

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaError = cudaError_t;
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

struct cudaLaunchAttribute {
  int id;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulator {
// Beyond 48 KiB by request; other devices than an H100 have less.
inline size_t shared_memory_per_block = 227 << 10;
}  // namespace emulator

// An H100's figures.
struct cudaDeviceProp {
  char name[256] = "emulated";
  size_t totalGlobalMem = size_t{80} << 30;
  size_t sharedMemPerBlock = 48 << 10;
  size_t sharedMemPerBlockOptin = emulator::shared_memory_per_block;
  size_t sharedMemPerMultiprocessor = 228 << 10;
  int regsPerBlock = 65536;
  int regsPerMultiprocessor = 65536;
  int warpSize = 32;
  int maxThreadsPerBlock = 1024;
  int maxThreadsPerMultiProcessor = 2048;
  int maxBlocksPerMultiProcessor = 32;
  int multiProcessorCount = 132;
  int l2CacheSize = 50 << 20;
  int major = 9;
  int minor = 0;
};

namespace emulator {

struct Runtime {
  std::mutex mutex;  // launches from several OS threads take turns
  cudaError_t last_error = cudaSuccess;
  std::string failure;                             // the words of the last launch failure
  std::map<const void*, size_t> shared_allowance;  // beyond 48 KiB, by kernel

  Runtime() {
    const char* order = std::getenv("TORCHEXT_EMULATOR_ORDER");
    if (order != nullptr && !scheduler.orders.set(order)) {
      std::fprintf(stderr, "TORCHEXT_EMULATOR_ORDER: unknown order %s\n", order);
      std::abort();
    }
  }

  cudaError_t fail(cudaError_t code, const std::string& words = "") {
    last_error = code;
    failure = words;
    return code;
  }
};

inline Runtime runtime;

[[noreturn]] inline void fail_assert(const char* condition, const char* file, int line) {
  const std::string words =
      std::string("assertion `") + condition + "` (" + file + ":" + std::to_string(line) + ")";
  if (scheduler.in_kernel()) scheduler.fail(words);
  std::fprintf(stderr, "%s failed\n", words.c_str());
  std::abort();
}

inline void* dynamic_shared() {
  return scheduler.dynamic_shared();
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                          void (*invoke)(void*), void* arguments) {
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const cudaDeviceProp device;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return runtime.fail(cudaErrorInvalidConfiguration);
  }
  const auto allowance = runtime.shared_allowance.find(kernel);
  if (config.dynamicSmemBytes > (allowance == runtime.shared_allowance.end()
                                     ? device.sharedMemPerBlock
                                     : allowance->second)) {
    return runtime.fail(cudaErrorInvalidValue);
  }
  ledger.begin_launch();
#ifdef EMULATOR_RACES
  races.begin_launch();
#endif
  const std::string failure =
      scheduler.run(kernel, grid, block, config.dynamicSmemBytes, invoke, arguments, [] {
#ifdef EMULATOR_RACES
        races.begin_block();
#endif
#ifdef EMULATOR_REQUESTS
        ledger.end_block();  // the one before
#endif
      });
#ifdef EMULATOR_REQUESTS
  ledger.end_block();
#endif
  if (!failure.empty()) return runtime.fail(cudaErrorLaunchFailure, failure);
  if (ledger.enabled) {
    ledger.end_launch(image().kernel_name(kernel), grid, block, config.dynamicSmemBytes);
  }
  return cudaSuccess;
}

}  // namespace emulator

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "a kernel's arguments are copied as bytes");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, {std::forward<Arguments>(arguments)...}};
  return emulator::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* data) {
        auto* call = static_cast<Call*>(data);
        std::apply(call->kernel, call->arguments);
      },
      &call);
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return emulator::runtime.failure.c_str();
  }
  return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() {
  return emulator::runtime.last_error;
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(emulator::runtime.last_error, cudaSuccess);
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > cudaDeviceProp{}.sharedMemPerBlockOptin) {
    return emulator::runtime.fail(cudaErrorInvalidValue);
  }
  const std::lock_guard<std::mutex> lock(emulator::runtime.mutex);
  emulator::runtime.shared_allowance[reinterpret_cast<const void*>(kernel)] =
      static_cast<size_t>(value);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads,
                                                          size_t shared_bytes) {
  const cudaDeviceProp device;
  const int by_threads =
      min(device.maxThreadsPerMultiProcessor / threads, device.maxBlocksPerMultiProcessor);
  // a block's shared memory has 1 KiB of the system's own
  *blocks =
      min(by_threads, static_cast<int>(device.sharedMemPerMultiprocessor / (shared_bytes + 1024)));
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = cudaDeviceProp{};
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cudaDeviceProp device;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = device.maxThreadsPerBlock, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = static_cast<int>(device.sharedMemPerBlock), cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = device.warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = device.multiProcessorCount, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = device.l2CacheSize, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = device.maxThreadsPerMultiProcessor, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = device.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = device.minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = static_cast<int>(device.sharedMemPerMultiprocessor), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(device.sharedMemPerBlockOptin), cudaSuccess;
  }
  return emulator::runtime.fail(cudaErrorInvalidValue);
}

inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  return cudaMemsetAsync(address, value, bytes);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

// The controls, for ctypes. Weak, one copy per library.
#define EMULATOR_EXPORT extern "C" inline __attribute__((used, visibility("default")))

EMULATOR_EXPORT void emulator_set_shared_memory(int64_t bytes) {
  emulator::shared_memory_per_block = static_cast<size_t>(bytes);
}
// 0 if the name is an order (see Orders::set), else 1.
EMULATOR_EXPORT int emulator_set_order(const char* name) {
  return emulator::scheduler.orders.set(name) ? 0 : 1;
}

// Forgets earlier launches; records from here on, or no longer.
EMULATOR_EXPORT void emulator_ledger_enable(int enabled) {
  emulator::ledger.enabled = enabled != 0;
  emulator::ledger.launches.clear();
}

// The launches as a JSON list, valid until the next call.
EMULATOR_EXPORT const char* emulator_ledger_json() {
  static std::string text;
  text = "[";
  for (const std::string& launch : emulator::ledger.launches) {
    text += (text.size() > 1 ? ", " : "") + launch;
  }
  text += "]";
  return text.c_str();
}
