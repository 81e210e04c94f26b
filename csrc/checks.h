// Argument checks of the C++ entry points. The Python layer raises the user's errors; what stands
// here is what memory safety needs when an op is called directly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace torchext {

// std::invalid_argument reaches Python as ValueError, without file and line in front.
inline void expects(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// How many channels of x each mask channel stands for; none where each stands for one. Python
// writes the ones out, since an exported program loses the type of an empty list.
inline std::vector<int64_t> grouped(const std::vector<int64_t>& mask_channels) {
  const bool single = std::all_of(mask_channels.begin(), mask_channels.end(),
                                  [](int64_t channels) { return channels == 1; });
  return single ? std::vector<int64_t>() : mask_channels;
}

}  // namespace torchext
