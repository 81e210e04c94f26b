// What the kernels of both devices know of an op's arguments: the most that is taken (torchext/ops
// says the same in the user's words; a test compares) and the choices there are.
#pragma once

#include <cstdint>

namespace torchext {

constexpr int kMaxRegions = 64;          // of a region normalisation
constexpr int kMaxMaskChannels = 64;     // that stand for several channels of x each
constexpr int kMaxFilterSize = 63;       // of an oriented filter
constexpr int kMaxFilters = 1024;        // of a bank
constexpr int kMaxSelfAwareKernel = 15;  // of the self-aware affine's convolutions
constexpr int kMaxLabelKernel = 7;       // of a label map's convolution
constexpr int kMaxSteps = 255;           // of a diversity map: a ring is a byte
constexpr int kMaxWindow = 255;          // of a diversity map: distances fit 16 bits

// What a modulated norm's gamma stands for in the scale: 1 + gamma, gamma, 1 + sigmoid(gamma).
enum class Gain { kOnePlus, kPlain, kSigmoid };

}  // namespace torchext
