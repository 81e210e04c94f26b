// PD-GAN's diversity maps on the CPU: "PD-GAN: Probabilistic Diverse GAN for Image Inpainting"
// (CVPR 2021).
//
// The hard map, base^-min(ceil(d / r), n) with d the chessboard distance to the nearest known pixel
// and r half the window, is a distance transform in two directions: rings above and below each
// pixel (a running distance down and up), then the least of max(rings aside, rings of that column).
// Labels are read, and the map written, once; what lies between are bytes in the cache. The units
// of parallel work are bands of rows; a band sees the rows around it that can matter.
//
// The soft map reads the logits and writes the map (2T, the floor); its backward 3T (the floor).
#include "diversity_map_kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBandRows = 64;
constexpr int64_t kMaxSteps = 255;   // a ring is a byte
constexpr int64_t kMaxWindow = 255;  // so that distances fit 16 bits

struct Band {
  int64_t map, image, begin, end;  // rows [begin, end) of an image of a map
};

struct HardMap {
  int64_t steps, radius, height, width, offset;  // offset: of the map in the output

  int64_t reach() const { return (steps - 1) * radius; }  // pixels further away are all alike
};

// The known pixels of a row of the map, which is the labels resized by nearest neighbour.
void resized_row(const uint8_t* labels, int64_t height, int64_t width, const HardMap& map,
                 int64_t y, uint8_t* known) {
  const uint8_t* row = labels + y * height / map.height * width;
  if (width == map.width)
    std::copy_n(row, width, known);
  else
    for (int64_t x = 0; x < map.width; ++x) known[x] = row[x * width / map.width];
}

template <class A>
void write_band(const uint8_t* labels, int64_t height, int64_t width, const HardMap& map,
                int64_t begin, int64_t end, const A* levels, A* out) {
  const int64_t reach = map.reach(), W = map.width;
  const int64_t top = std::max<int64_t>(0, begin - reach);
  const int64_t bottom = std::min(map.height, end + reach);
  const uint16_t cap = static_cast<uint16_t>(reach + 1);
  const uint8_t steps = static_cast<uint8_t>(map.steps);
  std::vector<uint8_t> known((bottom - top) * W);
  for (int64_t y = top; y < bottom; ++y)
    resized_row(labels, height, width, map, y, &known[(y - top) * W]);

  std::vector<uint16_t> above((end - begin) * W), running(W, cap);
  for (int64_t y = top; y < end; ++y) {
    TORCHEXT_AT_SIMD_LEVEL(next_distances)(&known[(y - top) * W], running.data(), W, cap,
                                           running.data());
    if (y >= begin) std::copy_n(running.data(), W, &above[(y - begin) * W]);
  }
  std::fill(running.begin(), running.end(), cap);
  std::vector<uint8_t> vertical(W + 2 * reach, steps), rings(W);
  for (int64_t y = bottom - 1; y >= begin; --y) {
    TORCHEXT_AT_SIMD_LEVEL(next_distances)(&known[(y - top) * W], running.data(), W, cap,
                                           running.data());
    if (y >= end) continue;
    uint8_t* const inner = vertical.data() + reach;
    TORCHEXT_AT_SIMD_LEVEL(vertical_rings)(&above[(y - begin) * W], running.data(), W, map.radius,
                                           steps, inner);
    TORCHEXT_AT_SIMD_LEVEL(spread_rings)(inner, W, map.radius, steps, rings.data());
    for (int64_t x = 0; x < W; ++x) out[y * W + x] = levels[rings[x]];
  }
}

Tensor diversity_maps_cpu(const Tensor& labels, std::vector<int64_t> steps,
                          std::vector<int64_t> windows, std::vector<int64_t> heights,
                          std::vector<int64_t> widths, double base, ScalarType dtype) {
  expects(labels.dim() == 4 && labels.size(1) == 1 && labels.size(2) > 0 && labels.size(3) > 0,
          "labels: expected the shape (N, 1, H, W)");
  expects_plain(labels, ScalarType::Byte, labels.numel(), "labels: expected contiguous uint8");
  expects(dtype == ScalarType::Float || dtype == ScalarType::Double,
          "dtype: expected float32 or float64");
  const size_t count = steps.size();
  expects(windows.size() == count && heights.size() == count && widths.size() == count,
          "steps, windows, heights, widths: expected lists of one length");
  const int64_t N = labels.size(0), H = labels.size(2), W = labels.size(3);
  std::vector<HardMap> maps;
  std::vector<Band> bands;
  int64_t elements = 0;
  for (size_t i = 0; i < count; ++i) {
    expects(steps[i] >= 1 && steps[i] <= kMaxSteps, "steps: expected 1 to 255");
    expects(windows[i] >= 3 && windows[i] <= kMaxWindow && windows[i] % 2 == 1,
            "windows: expected odd numbers from 3 to 255");
    expects(heights[i] > 0 && widths[i] > 0, "heights, widths: expected positive numbers");
    maps.push_back({steps[i], windows[i] / 2, heights[i], widths[i], elements});
    for (int64_t n = 0; n < N; ++n)
      for (int64_t y = 0; y < heights[i]; y += kBandRows)
        bands.push_back({static_cast<int64_t>(i), n, y, std::min(y + kBandRows, heights[i])});
    elements += N * heights[i] * widths[i];
  }
  Tensor out = empty(labels, {elements}, dtype);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    std::vector<A> levels(kMaxSteps + 1);
    for (size_t i = 0; i < levels.size(); ++i)
      levels[i] = static_cast<A>(std::pow(base, -static_cast<double>(i)));
    A* to = mutable_data<A>(out);
    // Bands are cheap: several make a unit worth a thread.
    parallel_for(0, static_cast<int64_t>(bands.size()), 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Band& band = bands[i];
        const HardMap& map = maps[band.map];
        write_band(data<uint8_t>(labels) + band.image * H * W, H, W, map, band.begin, band.end,
                   levels.data(), to + map.offset + band.image * map.height * map.width);
      }
    });
  };
  if (dtype == ScalarType::Double)
    run(double{});
  else
    run(float{});
  return out;
}

// The rows of a feature map: pixels of a channel, or channels of a pixel in channels last. Calls
// body(offset, count, label) with the label of the row's first pixel, in parallel.
template <class Body>
void for_each_row(const Tensor& x, const Tensor& labels, Body body) {
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const bool channels_last = is_channels_last(x);
  const bool shared = labels.size(0) == 1;
  expects(labels.dim() == 4 && (shared || labels.size(0) == N), "labels: expected (N, 1, H, W)");
  expects_plain(labels, ScalarType::Byte, labels.size(0) * P, "labels: expected contiguous uint8");
  const uint8_t* all = data<uint8_t>(labels);
  const int64_t rows = channels_last ? N * P : N * C, length = channels_last ? C : P;
  const int64_t grain = std::max<int64_t>(1, 16 * kTile / length);
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / (channels_last ? P : C);
      const uint8_t* known = all + (shared ? 0 : image * P) + (channels_last ? row % P : 0);
      for (int64_t i = 0; i < length; i += kTile)
        body(row * length + i, std::min(kTile, length - i), known + (channels_last ? 0 : i));
    }
  });
}

Tensor soft_diversity_map_cpu(const Tensor& logits, const Tensor& labels) {
  Tensor y = torch::stable::empty_like(logits);
  const bool channels_last = is_channels_last(logits);
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<T>(logits);
    T* out = mutable_data<T>(y);
    for_each_row(logits, labels, [&](int64_t offset, int64_t count, const uint8_t* known) {
      if (channels_last)
        TORCHEXT_AT_SIMD_LEVEL(soft_map_channels<T>)(in + offset, *known != 0, count, out + offset);
      else
        TORCHEXT_AT_SIMD_LEVEL(soft_map_pixels<T>)(in + offset, known, count, out + offset);
    });
  });
  return y;
}

Tensor soft_diversity_map_backward_cpu(const Tensor& grad, const Tensor& y, const Tensor& labels) {
  const bool channels_last = is_channels_last(y);
  expects(grad.scalar_type() == y.scalar_type() && grad.numel() == y.numel() &&
              is_channels_last(grad) == channels_last,
          "grad: expected the dtype, shape and memory format of y");
  Tensor grad_logits = torch::stable::empty_like(y);
  dispatch_floating(y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* g = data<T>(grad);
    const T* s = data<T>(y);
    T* out = mutable_data<T>(grad_logits);
    for_each_row(y, labels, [&](int64_t i, int64_t count, const uint8_t* known) {
      if (channels_last)
        TORCHEXT_AT_SIMD_LEVEL(soft_map_gradient_channels<T>)(g + i, s + i, *known != 0, count,
                                                              out + i);
      else
        TORCHEXT_AT_SIMD_LEVEL(soft_map_gradient_pixels<T>)(g + i, s + i, known, count, out + i);
    });
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("diversity_maps", TORCH_BOX(&diversity_maps_cpu));
  m.impl("soft_diversity_map", TORCH_BOX(&soft_diversity_map_cpu));
  m.impl("soft_diversity_map_backward", TORCH_BOX(&soft_diversity_map_backward_cpu));
}

}  // namespace torchext
