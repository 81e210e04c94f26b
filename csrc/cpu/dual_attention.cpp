// The tail of DAGAN on the CPU: "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020).
//
//   y = leaky(high + low * (gate + attention)),  gate per channel, attention per pixel
//
// Passes over memory (T = one feature map), each the floor:
//   dual_attention_pools      2T: a tile of low is in the cache for its second reader.
//   dual_attention            3T.
//   dual_attention_backward   5T: reads grad, y and low, writes both gradients, sums on the way.
//
// A unit of parallel work is a tile of an image's pixels with all their channels; a tile's sums are
// added up in the tiles' order.
#include <algorithm>
#include <tuple>
#include <vector>

#include "../dual_attention.h"

#include "dual_attention_kernels.h"
#include "self_aware_affine_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

struct Tiling {
  bool channels_last;
  int64_t images, channels, pixels, tile, tiles;

  explicit Tiling(const Tensor& x)
      : channels_last(is_channels_last(x)),
        images(x.size(0)),
        channels(x.size(1)),
        pixels(x.size(2) * x.size(3)) {
    // All channels of a tile fit the second-level cache; enough tiles for many threads.
    constexpr int64_t kElements = 1 << 15;
    tile = std::clamp<int64_t>(kElements / channels, 64, kTile);
    tile = std::min(tile, std::max<int64_t>(64, pixels / 16));
    tiles = (pixels + tile - 1) / tile;
  }

  // Runs body(unit, image, first pixel, pixels) for every tile.
  template <class Body>
  void for_each(Body body) const {
    parallel_for(0, images * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % tiles * tile;
        body(unit, unit / tiles, first, std::min(tile, pixels - first));
      }
    });
  }
  // Of a tile's first element.
  int64_t offset(int64_t image, int64_t first) const {
    return channels_last ? (image * pixels + first) * channels : image * channels * pixels + first;
  }
  TileRuns runs(int64_t count) const {
    return channels_last ? TileRuns{count, channels, channels} : TileRuns{channels, count, pixels};
  }
};

// Sums over the tiles of an image, in order: out[image][from + c], of `row` values for each image.
template <class A, class S>
void add_tiles(const Tiling& tiling, const std::vector<S>& parts, A* out, int64_t row, int64_t from,
               double factor) {
  for (int64_t n = 0; n < tiling.images; ++n)
    for (int64_t c = 0; c < tiling.channels; ++c) {
      double sum = 0;
      for (int64_t t = 0; t < tiling.tiles; ++t)
        sum += static_cast<double>(parts[(n * tiling.tiles + t) * tiling.channels + c]);
      out[n * row + from + c] = static_cast<A>(sum * factor);
    }
}

void compute(const DualAttentionPools& call) {
  const Tiling tiling(call.low);
  const int64_t N = tiling.images, C = tiling.channels, P = tiling.pixels;
  dispatch_floating(call.low.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    std::vector<double> sums[2];
    for (auto& parts : sums) parts.resize(N * tiling.tiles * C);
    tiling.for_each([&](int64_t unit, int64_t n, int64_t first, int64_t count) {
      const int64_t at = tiling.offset(n, first);
      A* mean = data<A>(call.pooled) + 2 * n * P + first;
      int32_t* index = data<int32_t>(call.argmax) + n * P + first;
      const T* lows = data<const T>(call.low) + at;
      if (tiling.channels_last)
        TORCHEXT_AT_SIMD_LEVEL(pixels_mean_max<T>)(lows, count, C, mean, mean + P, index);
      else
        TORCHEXT_AT_SIMD_LEVEL(plane_mean_max<T>)(lows, count, C, P, mean, mean + P, index);
      const T* maps[2] = {data<const T>(call.high) + at, lows};
      std::vector<A> by_channel(tiling.channels_last ? C : 0);
      for (int m = 0; m < 2; ++m) {
        double* out = &sums[m][unit * C];
        if (tiling.channels_last) {
          std::fill(by_channel.begin(), by_channel.end(), A(0));
          TORCHEXT_AT_SIMD_LEVEL(element_sums<T>)(maps[m], tiling.runs(count), by_channel.data());
          std::copy(by_channel.begin(), by_channel.end(), out);
        } else {
          TORCHEXT_AT_SIMD_LEVEL(run_sums<T>)(maps[m], tiling.runs(count), out);
        }
      }
    });
    for (int m = 0; m < 2; ++m)
      add_tiles(tiling, sums[m], data<A>(call.averages), 2 * C, m * C, 1.0 / P);
  });
}

// Gate and attention of an image, by what a run and an element stand for.
template <class A>
Scales<A> scales_of(const Tiling& tiling, const Tensor& gate, const Tensor& attention, int64_t n,
                    int64_t first) {
  const A* by_channel = data<const A>(gate) + n * tiling.channels;
  const A* by_pixel = data<const A>(attention) + n * tiling.pixels + first;
  return tiling.channels_last ? Scales<A>{by_pixel, by_channel} : Scales<A>{by_channel, by_pixel};
}

void compute(const DualAttention& call) {
  const Tiling tiling(call.low);
  dispatch_floating(call.low.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    T* out = data<T>(call.y);
    tiling.for_each([&](int64_t, int64_t n, int64_t first, int64_t count) {
      const int64_t at = tiling.offset(n, first);
      TORCHEXT_AT_SIMD_LEVEL(dual_attention_tile<T>)(
          data<const T>(call.high) + at, data<const T>(call.low) + at, out + at, tiling.runs(count),
          scales_of<A>(tiling, call.gate, call.attention, n, first), static_cast<A>(call.slope));
    });
  });
}

void compute(const DualAttentionBackward& call) {
  const Tiling tiling(call.low);
  const int64_t C = tiling.channels, P = tiling.pixels;
  dispatch_floating(call.low.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    std::vector<A> gates(tiling.images * tiling.tiles * C);
    tiling.for_each([&](int64_t unit, int64_t n, int64_t first, int64_t count) {
      const int64_t at = tiling.offset(n, first);
      A* by_channel = &gates[unit * C];
      A* by_pixel = data<A>(call.grad_attention) + n * P + first;
      if (!tiling.channels_last) std::fill_n(by_pixel, count, A(0));
      TORCHEXT_AT_SIMD_LEVEL(dual_attention_backward_tile<T>)(
          data<const T>(call.grad) + at, data<const T>(call.y) + at, data<const T>(call.low) + at,
          data<T>(call.grad_high) + at, data<T>(call.grad_low) + at, tiling.runs(count),
          scales_of<A>(tiling, call.gate, call.attention, n, first), static_cast<A>(call.slope),
          tiling.channels_last ? by_pixel : by_channel,
          tiling.channels_last ? by_channel : by_pixel);
    });
    add_tiles(tiling, gates, data<A>(call.grad_gate), C, 0, 1);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
