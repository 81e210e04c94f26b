// torchext._C: what this build holds. Ops live in Python-free libraries; nothing else is bound
// here.
#include <pybind11/pybind11.h>

#include "cpu/simd_level.h"

#ifndef TORCHEXT_BUILT_WITH_TORCH
#error "setup.py defines TORCHEXT_BUILT_WITH_TORCH, _CUDA_ARCHITECTURES and _CUDA_VERSION"
#endif

PYBIND11_MODULE(_C, module) {
  module.def("build_info", [] {
    pybind11::dict info;
    info["built_with_torch"] = TORCHEXT_BUILT_WITH_TORCH;
    info["stable_abi"] = "2.10";
    info["compiler"] = __VERSION__;
    info["cuda_version"] = TORCHEXT_CUDA_VERSION;
    info["cuda_architectures"] = TORCHEXT_CUDA_ARCHITECTURES;
    info["simd_highest"] = torchext::name(torchext::highest_simd_level());
    info["simd"] = torchext::name(torchext::simd_level());
    return info;
  });
}
