// Argument checks of the C++ entry points. The Python layer raises the user's errors; what stands
// here is what memory safety needs when an op is called directly.
#pragma once

#include <stdexcept>

namespace torchext {

// std::invalid_argument reaches Python as ValueError, without file and line in front.
inline void expects(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace torchext
