// The sums that region normalisation's gradients are formed from, where they also run over
// channels, and the adding up of partial results.
#pragma once

#include "region_norm_apply.cuh"

namespace torchext {
namespace {

// The sums of a spatial affine: over the pixels of each region per channel (of grad * weight) and
// over the channels per pixel (of grad), from one pass. A warp takes tiles of 32 pixels by 32
// channels through shared memory: first a lane is a channel and walks along the pixels, whose
// region is then the same for the whole warp; then a lane is a pixel and adds up the channels. The
// warps of a block share their pixels' channels as far as there are any, and add up their parts.
constexpr int kTile = 32;
constexpr int kTilePitch = kTile + 1;  // rows and columns both fall into different banks

struct SpatialSplit {
  int64_t image_tiles;     // tiles of pixels per image
  int64_t slices, length;  // the group's tiles are cut into slices, length in steps of the block
  int channel_warps;       // warps that share a tile of pixels; the others take further tiles
  unsigned splits;         // blocks that share a tile of pixels
};

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(128, 4)
    spatial_sums_kernel(RegionView view, SpatialSplit split, const T* grad, const T* x,
                        const uint8_t* labels, const accumulate_t<T>* mean,
                        const accumulate_t<T>* rstd, const accumulate_t<T>* spatial_weight,
                        Partials<accumulate_t<T>> partials, accumulate_t<T>* weight_parts,
                        accumulate_t<T>* bias_parts) {
  using A = accumulate_t<T>;
  constexpr int kAccesses = kTile / V;     // per row of the tile; also per lane and tensor
  constexpr int kUnroll = V == 8 ? 2 : 4;  // accesses to each of two tensors in flight
  DYNAMIC_SHARED(A, shared);
  const int warps = blockDim.x / kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;

  A* const tile_grad = shared + warp * 2 * kTile * kTilePitch;
  A* const tile_x = tile_grad + kTile * kTilePitch;
  A* const pixel_sums = shared + warps * 2 * kTile * kTilePitch;  // [warp][2][pixel]
  A* const all_sums = pixel_sums + warps * 2 * kTile;             // [warp][2][region][channel]
  const int warp_sums = 2 * view.regions * kTile;
  A* const first = all_sums + warp * warp_sums;
  A* const second = first + view.regions * kTile;
  for (int region = 0; region < view.regions; ++region) {
    first[region * kTile + lane] = second[region * kTile + lane] = A(0);
  }

  const unsigned channel_split = blockIdx.x % split.splits;
  const unsigned rest = blockIdx.x / split.splits;
  const int64_t slice = rest % static_cast<unsigned>(split.slices);
  const int64_t group = rest / static_cast<unsigned>(split.slices);
  const int warps_along_pixels = warps / split.channel_warps;
  const int64_t first_channel =
      (static_cast<int64_t>(channel_split) * split.channel_warps + warp % split.channel_warps) *
      kTile;
  const int64_t channel = first_channel + lane;
  const int64_t statistics = group * view.regions * view.channels + channel;

  const int64_t tiles = split.image_tiles * view.images_per_group;
  const int64_t first_tile = slice * split.length * warps_along_pixels + warp / split.channel_warps;
  for (int64_t step = 0; step < split.length; ++step) {
    const int64_t tile = first_tile + step * warps_along_pixels;
    const bool inside = tile < tiles;
    const int64_t image = group * view.images_per_group + tile / split.image_tiles;
    const int64_t first_pixel = tile % split.image_tiles * kTile;
    const int64_t pixel = first_pixel + lane;
    const bool pixel_inside = inside && pixel < view.pixels;
    const int64_t map_index = image * view.pixels + pixel;

#pragma unroll 1
    for (int base = 0; base < kAccesses; base += kUnroll) {
      Vec<T, V> gradients[kUnroll], values[kUnroll];
      bool present[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int row = ((base + u) * kWarpSize + lane) / kAccesses;
        const int column = ((base + u) * kWarpSize + lane) % kAccesses * V;
        const int64_t p = first_pixel + (kChannelsLast ? row : column);
        const int64_t c = first_channel + (kChannelsLast ? column : row);
        present[u] = inside && p < view.pixels && c < view.channels;
        if (present[u]) {
          const int64_t offset = kChannelsLast ? (image * view.pixels + p) * view.channels + c
                                               : (image * view.channels + c) * view.pixels + p;
          gradients[u] = load<V>(grad + offset);
          values[u] = load<V>(x + offset);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int row = ((base + u) * kWarpSize + lane) / kAccesses;
        const int column = ((base + u) * kWarpSize + lane) % kAccesses * V;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const int at =
              kChannelsLast ? (column + j) * kTilePitch + row : row * kTilePitch + column + j;
          tile_grad[at] = present[u] ? to_accumulate(gradients[u][j]) : A(0);
          tile_x[at] = present[u] ? to_accumulate(values[u][j]) : A(0);
        }
      }
    }
    const int label =
        pixel_inside ? view.region(load(labels + (view.shared_labels ? pixel : map_index))) : 0;
    const A weight = pixel_inside ? load(spatial_weight + map_index) : A(0);
    __syncwarp();

    A sum_grad = A(0), sum_product = A(0), channel_mean = A(0), channel_rstd = A(0);
    int current = -1;
    const int pixels =
        inside ? static_cast<int>(min(static_cast<int64_t>(kTile), view.pixels - first_pixel)) : 0;
    for (int i = 0; i < pixels; ++i) {
      const int region = __shfl_sync(kFullMask, label, i);
      const A pixel_weight = __shfl_sync(kFullMask, weight, i);
      if (region != current) {
        if (current >= 0) {
          first[current * kTile + lane] += sum_grad;
          second[current * kTile + lane] += sum_product;
        }
        current = region;
        sum_grad = sum_product = A(0);
        if (channel < view.channels) {
          channel_mean = load(mean + statistics + region * view.channels);
          channel_rstd = load(rstd + statistics + region * view.channels);
        }
      }
      const int at = lane * kTilePitch + i;
      if (view.is_hole(region)) {
        tile_grad[at] = tile_x[at] = A(0);
        continue;
      }
      const A gradient = tile_grad[at];
      const A normal = channel < view.channels ? (tile_x[at] - channel_mean) * channel_rstd : A(0);
      tile_x[at] = gradient * normal;
      sum_grad += gradient * pixel_weight;
      sum_product += gradient * pixel_weight * normal;
    }
    if (current >= 0) {
      first[current * kTile + lane] += sum_grad;
      second[current * kTile + lane] += sum_product;
    }
    __syncwarp();

    A weight_part = A(0), bias_part = A(0);
#pragma unroll 8
    for (int c = 0; c < kTile; ++c) {
      weight_part += tile_x[c * kTilePitch + lane];
      bias_part += tile_grad[c * kTilePitch + lane];
    }
    if (split.channel_warps > 1) {
      pixel_sums[(2 * warp) * kTile + lane] = weight_part;
      pixel_sums[(2 * warp + 1) * kTile + lane] = bias_part;
      __syncthreads();
      weight_part = bias_part = A(0);
      if (warp % split.channel_warps == 0) {
        for (int w = warp; w < warp + split.channel_warps; ++w) {
          weight_part += pixel_sums[(2 * w) * kTile + lane];
          bias_part += pixel_sums[(2 * w + 1) * kTile + lane];
        }
      }
      __syncthreads();
    } else {
      __syncwarp();
    }
    if (pixel_inside && warp % split.channel_warps == 0) {
      const int64_t at = channel_split * view.images * view.pixels + map_index;
      store(weight_parts + at, weight_part);
      store(bias_parts + at, bias_part);
    }
  }
  __syncthreads();

  const int64_t plane = partials.plane(view);
  const int sums = split.channel_warps * view.regions * kTile;
  for (int i = threadIdx.x; i < sums; i += blockDim.x) {
    const int first_warp = i / (view.regions * kTile);
    const int within = i % (view.regions * kTile);
    const int64_t c =
        (static_cast<int64_t>(channel_split) * split.channel_warps + first_warp) * kTile +
        within % kTile;
    if (c >= view.channels) continue;
    A total_grad = A(0), total_product = A(0);
    for (int w = first_warp; w < warps; w += split.channel_warps) {
      total_grad += all_sums[w * warp_sums + within];
      total_product += all_sums[w * warp_sums + view.regions * kTile + within];
    }
    const int64_t at = partials.index(view, group, within / kTile, c) + slice;
    store(partials.planes + at, total_grad);
    store(partials.planes + plane + at, total_product);
  }
}

// Totals of sums over pixels (blocks below row_blocks) and over channels (the others). A null
// parts pointer: there are no maps.
template <typename A>
__global__ void __launch_bounds__(kApplyThreads)
    combine_sums_kernel(int64_t results, int slices, const A* partials, A* sums,
                        unsigned row_blocks, int64_t pixels, int splits, const A* weight_parts,
                        const A* bias_parts, A* grad_spatial_weight, A* grad_spatial_bias) {
  if (blockIdx.x < row_blocks) {
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kApplyThreads / kWarpSize;
    reduce_rows<SumPair<A>>(
        static_cast<int>(min(results - first_row, int64_t{kApplyThreads / kWarpSize})), slices,
        [&](int row, int slice) -> SumPair<A> {
          const int64_t at = (first_row + row) * slices + slice;
          return {load(partials + at), load(partials + results * slices + at)};
        },
        [&](int row, const SumPair<A>& total) {
          store(sums + first_row + row, total.first);
          store(sums + results + first_row + row, total.second);
        });
  } else {
    const int64_t pixel =
        static_cast<int64_t>(blockIdx.x - row_blocks) * kApplyThreads + threadIdx.x;
    if (pixel >= pixels) return;
    A weight = A(0), bias = A(0);
    for (int split = 0; split < splits; ++split) {
      weight += load(weight_parts + split * pixels + pixel);
      bias += load(bias_parts + split * pixels + pixel);
    }
    store(grad_spatial_weight + pixel, weight);
    store(grad_spatial_bias + pixel, bias);
  }
}

}  // namespace
}  // namespace torchext
