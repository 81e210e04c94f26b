// PD-GAN's diversity maps: "PD-GAN: Probabilistic Diverse GAN for Image Inpainting" (CVPR 2021).
//
//   hard   base^-min(ceil(d / r), n), d the chessboard distance to the nearest known pixel
//   soft   1 where known, else sigmoid(logits)
//
// Passes over memory and launches: all hard maps of a call in 1, reading labels (of one byte) and
// writing the maps; the rows around a pixel come from the cache. The soft map 2T in 1, its backward
// 3T in 1: the floors.
//
// Launch: hard, 256 threads per 256 pixels of a row: rings above and below each column that can
// matter into shared memory, then the least of max(rings aside, rings of that column). Soft, 256
// threads across the pixels of a channel (contiguous) or the elements of an image (channels last).
#include "../diversity_map.h"

#include <cmath>

#include "launch.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kMapsPerLaunch = 16;

// ---- hard ---------------------------------------------------------------------------------------

// A HardMap in the launch, its rings in 32 bits.
struct PlacedMap {
  int64_t height, width, offset;
  int64_t first_block;
  int steps, radius;

  __host__ __device__ int reach() const { return (steps - 1) * radius; }
  __device__ int ring(int distance) const { return (distance + radius - 1) / radius; }
  __host__ __device__ int64_t row_blocks() const { return (width + kThreads - 1) / kThreads; }
};

struct PlacedMaps {
  PlacedMap maps[kMapsPerLaunch];
  int count;
};

template <typename A>
__global__ void __launch_bounds__(kThreads)
    diversity_maps_kernel(PlacedMaps maps, const uint8_t* labels, int64_t height, int64_t width,
                          A base, A* out) {
  DYNAMIC_SHARED(uint8_t, rings);  // of the block's columns and `reach` more on each side
  int which = 0;
  while (which + 1 < maps.count && blockIdx.x >= maps.maps[which + 1].first_block) ++which;
  const PlacedMap map = maps.maps[which];
  const int reach = map.reach();
  const int64_t block = blockIdx.x - map.first_block;
  const int64_t row = block / map.row_blocks();
  const int64_t image = row / map.height;
  const int64_t y = row - image * map.height;
  const int64_t first = block % map.row_blocks() * kThreads;
  const uint8_t* plane = labels + image * height * width;

  auto known = [&](int64_t at_y, int64_t column) {
    return load(plane + at_y * height / map.height * width + column) != 0;
  };
  for (int i = threadIdx.x; i < kThreads + 2 * reach; i += kThreads) {
    const int64_t x = first - reach + i;
    int ring = map.steps;
    if (x >= 0 && x < map.width) {
      const int64_t column = x * width / map.width;
      for (int dy = 0; dy <= reach; ++dy) {
        if ((y >= dy && known(y - dy, column)) || (y + dy < map.height && known(y + dy, column))) {
          ring = map.ring(dy);
          break;
        }
      }
    }
    rings[i] = static_cast<uint8_t>(ring);
  }
  __syncthreads();

  const int64_t x = first + threadIdx.x;
  if (x >= map.width) return;
  const uint8_t* own = rings + reach + threadIdx.x;
  int best = own[0];
  for (int k = 1; k <= reach; ++k) {
    const int aside = map.ring(k);
    if (aside >= best) break;
    const int nearest = own[-k] < own[k] ? own[-k] : own[k];
    const int reached = nearest > aside ? nearest : aside;
    best = reached < best ? reached : best;
  }
  store(out + map.offset + row * map.width + x, static_cast<A>(pow(base, static_cast<A>(-best))));
}

void compute(const DiversityMaps& call) {
  const DeviceGuard guard(call.labels);
  const int64_t N = call.labels.size(0);
  for (size_t first = 0; first < call.maps.size(); first += kMapsPerLaunch) {
    PlacedMaps maps{};
    int64_t blocks = 0;
    int reach = 0;
    for (size_t i = first; i < call.maps.size() && i < first + kMapsPerLaunch; ++i) {
      const HardMap& of = call.maps[i];
      PlacedMap& map = maps.maps[maps.count++];
      map = {of.height,
             of.width,
             of.offset,
             blocks,
             static_cast<int>(of.steps),
             static_cast<int>(of.radius)};
      blocks += N * map.height * map.row_blocks();
      reach = std::max(reach, map.reach());
    }
    dispatch_accumulate(call.y.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      launch(diversity_maps_kernel<A>, grid_of(blocks), dim3(kThreads), kThreads + 2 * reach,
             current_stream(call.labels), maps, data<const uint8_t>(call.labels),
             call.labels.size(2), call.labels.size(3), static_cast<A>(call.base), data<A>(call.y));
    });
  }
}

// ---- soft ---------------------------------------------------------------------------------------

struct SoftView {
  int64_t channels, pixels;
  int64_t blocks;  // of a plane if contiguous, of an image in channels last
  bool shared_labels;
};

// This thread's V elements: where they lie, and which pixels they belong to.
template <int V, bool kChannelsLast>
struct SoftPlace {
  int64_t offset, label;
  bool inside;

  __device__ explicit SoftPlace(const SoftView& view) {
    const int64_t outer = blockIdx.x / view.blocks;
    const int64_t inner = (blockIdx.x % view.blocks * kThreads + threadIdx.x) * V;
    if (kChannelsLast) {
      inside = inner < view.channels * view.pixels;
      offset = outer * view.channels * view.pixels + inner;
      label = (view.shared_labels ? 0 : outer * view.pixels) + inner / view.channels;
    } else {
      inside = inner < view.pixels;
      offset = outer * view.pixels + inner;
      label = (view.shared_labels ? 0 : outer / view.channels * view.pixels) + inner;
    }
  }
  __device__ __forceinline__ Vec<uint8_t, V> known(const uint8_t* labels) const {
    if constexpr (!kChannelsLast) return load<V>(labels + label);
    Vec<uint8_t, V> result;  // V divides the channels, so all V are of one pixel
    const uint8_t value = load(labels + label);
#pragma unroll
    for (int j = 0; j < V; ++j) result[j] = value;
    return result;
  }
};

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    soft_diversity_map_kernel(SoftView view, const T* logits, const uint8_t* labels, T* y) {
  using A = accumulate_t<T>;
  const SoftPlace<V, kChannelsLast> where(view);
  if (!where.inside) return;
  const Vec<T, V> in = load<V>(logits + where.offset);
  const Vec<uint8_t, V> known = where.known(labels);
  Vec<T, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A soft = A(1) / (A(1) + exp(-to_accumulate(in[j])));
    result[j] = from_accumulate<T>(known[j] != 0 ? A(1) : soft);
  }
  store<V>(y + where.offset, result);
}

template <typename T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    soft_diversity_map_backward_kernel(SoftView view, const T* grad, const T* y,
                                       const uint8_t* labels, T* grad_logits) {
  using A = accumulate_t<T>;
  const SoftPlace<V, kChannelsLast> where(view);
  if (!where.inside) return;
  const Vec<T, V> g = load<V>(grad + where.offset);
  const Vec<T, V> s = load<V>(y + where.offset);
  const Vec<uint8_t, V> known = where.known(labels);
  Vec<T, V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A soft = to_accumulate(s[j]);
    const A gradient = to_accumulate(g[j]) * soft * (A(1) - soft);
    result[j] = from_accumulate<T>(known[j] != 0 ? A(0) : gradient);
  }
  store<V>(grad_logits + where.offset, result);
}

// Calls body(width tag, format tag, view, grid) for a tensor like `x` and its labels.
template <typename T, typename Body, typename... Pointers>
void for_elements(const Tensor& x, const Tensor& labels, bool channels_last, Body body,
                  const T* first, const Pointers*... pointers) {
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const uint8_t* known = data<const uint8_t>(labels);
  const int access = channels_last ? vector_width(C, first, pointers...)
                                   : vector_width(P, first, known, pointers...);
  dispatch_access<T>(access, channels_last, [&](auto width, auto format) {
    constexpr int V = decltype(width)::value;
    const int64_t inner = channels_last ? C * P : P;
    const int64_t blocks = (inner + kThreads * V - 1) / (kThreads * V);
    const SoftView view{C, P, blocks, labels.size(0) == 1};
    body(width, format, view, grid_of((channels_last ? N : N * C) * blocks));
  });
}

void compute(const SoftDiversityMap& call) {
  const DeviceGuard guard(call.y);
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* in = data<const T>(call.logits);
    T* out = data<T>(call.y);
    const auto run = [&](auto width, auto format, const SoftView& view, dim3 grid) {
      launch(soft_diversity_map_kernel<T, decltype(width)::value, decltype(format)::value>, grid,
             dim3(kThreads), 0, current_stream(call.y), view, in, data<const uint8_t>(call.labels),
             out);
    };
    for_elements(call.y, call.labels, call.channels_last, run, in, out);
  });
}

void compute(const SoftDiversityMapBackward& call) {
  const DeviceGuard guard(call.y);
  dispatch_floating(call.y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* g = data<const T>(call.grad);
    const T* s = data<const T>(call.y);
    T* out = data<T>(call.grad_logits);
    const auto run = [&](auto width, auto format, const SoftView& view, dim3 grid) {
      launch(soft_diversity_map_backward_kernel<T, decltype(width)::value, decltype(format)::value>,
             grid, dim3(kThreads), 0, current_stream(call.y), view, g, s,
             data<const uint8_t>(call.labels), out);
    };
    for_elements(call.y, call.labels, call.channels_last, run, g, s, out);
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
