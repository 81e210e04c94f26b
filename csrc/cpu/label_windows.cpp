// The distinct windows of a map on the CPU (torchext.label_windows).
//
// Every pixel's window is looked up in a hash table of those that were met before, and compared
// with what it finds there: exact whatever the hash. A window like its left neighbour's, which most
// are, needs no look-up. The map is read once per tap, from the cache; what is written is an index
// per pixel and the distinct windows.
#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

constexpr int64_t kMaxKernel = 15;
constexpr int32_t kOutside = -1;

uint64_t hash_of(const int32_t* window, int64_t length) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0; i < length; ++i) {
    hash = (hash ^ static_cast<uint32_t>(window[i])) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

// The windows that were met, numbered in that order.
class Windows {
 public:
  explicit Windows(int64_t length) : length_(length), slots_(1024, kFree) {}

  int32_t number(const int32_t* window) {
    if (2 * count_ >= static_cast<int64_t>(slots_.size())) grow();
    const size_t mask = slots_.size() - 1;
    for (size_t slot = hash_of(window, length_) & mask;; slot = (slot + 1) & mask) {
      const int32_t found = slots_[slot];
      if (found == kFree) {
        slots_[slot] = static_cast<int32_t>(count_);
        met_.insert(met_.end(), window, window + length_);
        return static_cast<int32_t>(count_++);
      }
      if (std::memcmp(&met_[found * length_], window, length_ * sizeof(int32_t)) == 0) return found;
    }
  }
  int64_t count() const { return count_; }
  const std::vector<int32_t>& met() const { return met_; }

 private:
  static constexpr int32_t kFree = -1;

  void grow() {
    slots_.assign(4 * slots_.size(), kFree);
    const size_t mask = slots_.size() - 1;
    for (int64_t i = 0; i < count_; ++i) {
      size_t slot = hash_of(&met_[i * length_], length_) & mask;
      while (slots_[slot] != kFree) slot = (slot + 1) & mask;
      slots_[slot] = static_cast<int32_t>(i);
    }
  }

  int64_t length_, count_ = 0;
  std::vector<int32_t> slots_, met_;
};

// values (N, C, H, W) to each pixel's window (N, H, W), the windows (count, C * k * k), channels
// outermost, and their count. Outside the map everything is -1.
std::tuple<Tensor, Tensor, Tensor> number_windows(const Tensor& values, int64_t kernel_size) {
  expects(values.dim() == 4 && values.scalar_type() == ScalarType::Int && values.is_contiguous(),
          "values: expected contiguous int32 (N, C, H, W)");
  expects(kernel_size % 2 == 1 && kernel_size >= 1 && kernel_size <= kMaxKernel,
          "kernel_size: expected an odd number up to 15");
  const int64_t N = values.size(0), C = values.size(1), H = values.size(2), W = values.size(3);
  const int64_t half = kernel_size / 2, length = C * kernel_size * kernel_size;
  expects(N * H * W < (int64_t{1} << 31), "values: expected fewer than 2^31 pixels");
  Tensor index = new_tensor(values, {N, H, W}, ScalarType::Int);
  Windows windows(length);
  const int32_t* from = data<const int32_t>(values);
  int32_t* to = data<int32_t>(index);
  // A row's surroundings, columns outermost, so that a window is one run.
  const int64_t column = C * kernel_size;
  std::vector<int32_t> around((W + 2 * half) * column, kOutside);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t y = 0; y < H; ++y) {
      for (int64_t c = 0; c < C; ++c)
        for (int64_t k = 0; k < kernel_size; ++k) {
          const int64_t row = y + k - half;
          const bool inside = row >= 0 && row < H;
          const int32_t* line = from + ((n * C + c) * H + row) * W;
          int32_t* at = &around[half * column + c * kernel_size + k];
          for (int64_t x = 0; x < W; ++x) at[x * column] = inside ? line[x] : kOutside;
        }
      int32_t* out = to + (n * H + y) * W;
      for (int64_t x = 0; x < W; ++x) {
        const int32_t* window = &around[x * column];
        const bool same = x > 0 && std::memcmp(window - column, window,
                                               kernel_size * column * sizeof(int32_t)) == 0;
        out[x] = same ? out[x - 1] : windows.number(window);
      }
    }
  Tensor met = new_tensor(values, {windows.count(), length}, ScalarType::Int);
  int32_t* rows = data<int32_t>(met);
  // From (kx, c, ky) to (c, ky, kx), the order of a convolution's weight.
  for (int64_t i = 0; i < windows.count(); ++i)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t ky = 0; ky < kernel_size; ++ky)
        for (int64_t kx = 0; kx < kernel_size; ++kx)
          rows[i * length + (c * kernel_size + ky) * kernel_size + kx] =
              windows.met()[i * length + kx * column + c * kernel_size + ky];
  Tensor count = new_tensor(values, {1}, ScalarType::Int);
  *data<int32_t>(count) = static_cast<int32_t>(windows.count());
  return {index, met, count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  TORCHEXT_IMPLEMENT(m, number_windows);
}

}  // namespace torchext
