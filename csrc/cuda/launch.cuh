// What every CUDA op file needs on the host side: launching a kernel, the stream and device of a
// tensor, the choice of an instantiation, registration. The files of this folder compile unchanged
// with nvcc and, with -DTORCHEXT_EMULATED, with g++ against tests/cuda_emulator/include; this
// header and vec.cuh are the only places that know the difference.
#pragma once

#include <utility>

#include "../tensors.h"
#include "vec.cuh"

// Schemas live in torchext/schema.py; a library only implements. The emulated library has its
// own namespace and takes CPU tensors.
#ifdef TORCHEXT_EMULATED
#define TORCHEXT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(torchext_emulated, CPU, m)
#else
#define TORCHEXT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(torchext, CUDA, m)
#endif

// Declares `type* name`, the block's dynamic shared memory. Declared as bytes because two kernel
// templates may not declare the same extern array with different types.
#ifdef TORCHEXT_EMULATED
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared())
#else
#define DYNAMIC_SHARED(type, name)                                         \
  extern __shared__ __align__(16) unsigned char torchext_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(torchext_dynamic_shared)
#endif

namespace torchext {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears a launch error so that it is not reported a second time
  throw std::runtime_error(std::string("CUDA ") + what + " failed: " + cudaGetErrorString(status));
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(arguments...) and checks the launch.
// An empty grid (an empty batch) is no work, where CUDA would call it an error.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kSharedWithoutOptIn = 48 * 1024;
  if (shared_bytes > kSharedWithoutOptIn) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory request");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "kernel launch");
}

// The one dimension of a grid; more blocks than a launch can have are an error.
inline dim3 grid_of(int64_t blocks) {
  expects(blocks < (int64_t{1} << 31), "tensor too large for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

// About two for each multiprocessor of a large device. A constant: results that depend on how the
// work is cut are the same on every device.
constexpr int64_t kEnoughBlocks = 256;
// What memory is read in at least.
constexpr int kSectorBytes = 32;

// PyTorch's current stream on the tensor's device.
inline cudaStream_t current_stream(const Tensor& tensor) {
#ifdef TORCHEXT_EMULATED
  (void)tensor;
  return nullptr;
#else
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
#endif
}

// Makes the tensor's device current for the lifetime of the guard.
class DeviceGuard {
 public:
#ifdef TORCHEXT_EMULATED
  explicit DeviceGuard(const Tensor&) {}
#else
  explicit DeviceGuard(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline int multiprocessor_count() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "device query");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device query");
  return count;
}

// Bytes that a block of the current device may ask for, beside a few of static shared memory.
inline size_t shared_memory_limit() {
  constexpr size_t kStatic = 128;
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "device query");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "device query");
  return static_cast<size_t>(bytes) - kStatic;
}

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the kernel type of a floating dtype.
template <typename F>
void dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::Double:
      return f(Type<double>{});
    case ScalarType::Half:
      return f(Type<__half>{});
    case ScalarType::BFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      throw std::invalid_argument("expected a floating-point tensor");
  }
}

// Calls f(Type<A>{}) for float32 or float64.
template <typename F>
void dispatch_accumulate(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Double) return f(Type<double>{});
  expects(dtype == ScalarType::Float, "expected a float32 or float64 tensor");
  f(Type<float>{});
}

// Calls f(width tag, channels-last tag) with accesses of 128 bits, of one element or, for halves
// along planes, of 64 bits: the pixels of a square of even side are a multiple of 4, often not
// of 8. width: as vector_width gives it.
template <typename T, typename F>
void dispatch_access(int width, bool channels_last, F&& f) {
  constexpr int kWidest = kMaxAccessBytes / sizeof(T);
  auto with_format = [&](auto width) {
    if (channels_last) {
      f(width, std::true_type{});
    } else {
      f(width, std::false_type{});
    }
  };
  if (width == kWidest) return with_format(std::integral_constant<int, kWidest>{});
  if constexpr (kWidest == 8) {
    if (width == 4 && !channels_last) {
      return f(std::integral_constant<int, 4>{}, std::false_type{});
    }
  }
  with_format(std::integral_constant<int, 1>{});
}

}  // namespace torchext
