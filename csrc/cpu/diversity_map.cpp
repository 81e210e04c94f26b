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
#include "../diversity_map.h"

#include <cmath>

#include "diversity_map_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

constexpr int64_t kBandRows = 64;

struct Band {
  int64_t map, image, begin, end;  // rows [begin, end) of an image of a map
};

// Pixels further from the known ones than this are all alike.
int64_t reach_of(const HardMap& map) {
  return (map.steps - 1) * map.radius;
}

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
  const int64_t reach = reach_of(map), W = map.width;
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

void compute(const DiversityMaps& call) {
  const int64_t N = call.labels.size(0), H = call.labels.size(2), W = call.labels.size(3);
  std::vector<Band> bands;
  for (size_t i = 0; i < call.maps.size(); ++i)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t height = call.maps[i].height, y = 0; y < height; y += kBandRows)
        bands.push_back({static_cast<int64_t>(i), n, y, std::min(y + kBandRows, height)});
  dispatch_accumulate(call.y.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    std::vector<A> levels(kMaxSteps + 1);
    for (size_t i = 0; i < levels.size(); ++i)
      levels[i] = static_cast<A>(std::pow(call.base, -static_cast<double>(i)));
    A* to = data<A>(call.y);
    // Bands are cheap: several make a unit worth a thread.
    parallel_for(0, static_cast<int64_t>(bands.size()), 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Band& band = bands[i];
        const HardMap& map = call.maps[band.map];
        write_band(data<const uint8_t>(call.labels) + band.image * H * W, H, W, map, band.begin,
                   band.end, levels.data(), to + map.offset + band.image * map.height * map.width);
      }
    });
  });
}

// The rows of a feature map: pixels of a channel, or channels of a pixel in channels last. Calls
// body(offset, count, label) with the label of the row's first pixel, in parallel.
template <class Body>
void for_each_row(const Tensor& x, const Tensor& labels, bool channels_last, Body body) {
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const bool shared = labels.size(0) == 1;
  const uint8_t* all = data<const uint8_t>(labels);
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

void compute(const SoftDiversityMap& call) {
  dispatch_floating(call.y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<const T>(call.logits);
    T* out = data<T>(call.y);
    const auto row = [&](int64_t i, int64_t count, const uint8_t* known) {
      if (call.channels_last)
        TORCHEXT_AT_SIMD_LEVEL(soft_map_channels<T>)(in + i, *known != 0, count, out + i);
      else
        TORCHEXT_AT_SIMD_LEVEL(soft_map_pixels<T>)(in + i, known, count, out + i);
    };
    for_each_row(call.y, call.labels, call.channels_last, row);
  });
}

void compute(const SoftDiversityMapBackward& call) {
  dispatch_floating(call.y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* g = data<const T>(call.grad);
    const T* s = data<const T>(call.y);
    T* out = data<T>(call.grad_logits);
    const auto row = [&](int64_t i, int64_t count, const uint8_t* known) {
      if (call.channels_last)
        TORCHEXT_AT_SIMD_LEVEL(soft_map_gradient_channels<T>)(g + i, s + i, *known != 0, count,
                                                              out + i);
      else
        TORCHEXT_AT_SIMD_LEVEL(soft_map_gradient_pixels<T>)(g + i, s + i, known, count, out + i);
    };
    for_each_row(call.y, call.labels, call.channels_last, row);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
