// The kernels of the self-aware affine; see self_aware_affine.cu.
#pragma once

#include "launch.cuh"
#include "reduce.cuh"

namespace torchext {
namespace {

// ---- the maps -----------------------------------------------------------------------------------

constexpr int kMapThreads = 128;
constexpr int kTileWidth = 16;
constexpr int kTileHeight = 8;
constexpr int kStrip = 4;
constexpr int kStrips = kTileHeight / kStrip;
constexpr int kUnits = kTileWidth * kStrips;  // strips of a tile

static_assert(kUnits == kWarpSize, "a warp takes a map's tile");

// A tile with borders in shared memory: what the second convolution reads (the inner field, one
// border) and what the first reads (the outer field, two). Heights are rounded up to whole strips.
struct Fields {
  int size, half;
  int inner_width, inner_height, outer_width, outer_height;

  __host__ __device__ explicit Fields(int size) : size(size), half(size / 2) {
    inner_width = kTileWidth + 2 * half;
    inner_height = (kTileHeight + 2 * half + kStrip - 1) / kStrip * kStrip;
    outer_width = inner_width + 2 * half;
    outer_height = inner_height + 2 * half;
  }
  __host__ __device__ int inner() const { return inner_width * inner_height; }
  __host__ __device__ int outer() const { return outer_width * outer_height; }
  __host__ __device__ int taps() const { return size * size; }
};

struct MapShape {
  int64_t images, height, width;
  int64_t tile_rows, tile_columns;

  MapShape(int64_t images, int64_t height, int64_t width)
      : images(images),
        height(height),
        width(width),
        tile_rows((height + kTileHeight - 1) / kTileHeight),
        tile_columns((width + kTileWidth - 1) / kTileWidth) {}
  __host__ __device__ int64_t tiles() const { return images * tile_rows * tile_columns; }
  __device__ bool inside(int64_t y, int64_t x) const {
    return y >= 0 && y < height && x >= 0 && x < width;
  }
  __device__ int64_t pixels() const { return height * width; }
};

struct TilePlace {
  int64_t image, y, x;

  __device__ TilePlace(const MapShape& shape, int64_t tile) {
    const int64_t row = tile / shape.tile_columns;
    x = tile % shape.tile_columns * kTileWidth;
    image = row / shape.tile_rows;
    y = row % shape.tile_rows * kTileHeight;
  }
};

// Copies the field whose border is `border` pixels wide; zeros outside the image.
template <typename A>
__device__ __forceinline__ void load_field(A* field, const A* map, const MapShape& shape,
                                           const TilePlace& place, int border, int width,
                                           int height) {
  for (int i = threadIdx.x; i < width * height; i += kMapThreads) {
    const int64_t y = place.y - border + i / width;
    const int64_t x = place.x - border + i % width;
    field[i] = shape.inside(y, x) ? load(map + y * shape.width + x) : A(0);
  }
}

// Adds the correlation of a field with `weights` at kStrip pixels of a column, whose first window
// begins at `field`. kSize is the size, or 0 if it is known at run time only.
template <int kSize, typename A>
__device__ __forceinline__ void correlate(A (&sums)[kStrip], const A* field, int pitch,
                                          const A* weights, int run_time_size) {
  const int size = kSize > 0 ? kSize : run_time_size;
#pragma unroll 1
  for (int column = 0; column < size; ++column) {
    A a = field[column], b = field[pitch + column], c = field[2 * pitch + column];
#pragma unroll
    for (int row = 0; row < size; ++row) {
      const A d = field[(row + kStrip - 1) * pitch + column];
      const A weight = weights[row * size + column];
      sums[0] += a * weight;
      sums[1] += b * weight;
      sums[2] += c * weight;
      sums[3] += d * weight;
      a = b;
      b = c;
      c = d;
    }
  }
}

template <typename A>
__device__ __forceinline__ void load_weights(A* shared, const A* weights, int count,
                                             bool flip = false) {
  for (int i = threadIdx.x; i < count; i += kMapThreads) {
    shared[flip ? count - 1 - i : i] = load(weights + i);
  }
}

template <typename A>
struct MapWeights {
  const A *conv, *gamma, *gamma_bias, *beta, *beta_bias;
};

template <typename A, int kSize>
__global__ void __launch_bounds__(kMapThreads)
    self_aware_maps_kernel(MapShape shape, int run_time_size, const A* pooled,
                           MapWeights<A> weights, A threshold, A* saliency, A* gamma, A* beta,
                           uint8_t* labels) {
  const Fields fields(kSize > 0 ? kSize : run_time_size);
  DYNAMIC_SHARED(A, shared);
  A* const pooled_field = shared;                               // two outer fields
  A* const saliency_field = pooled_field + 2 * fields.outer();  // inner
  A* const conv_weight = saliency_field + fields.inner();
  A* const map_weights = conv_weight + 2 * fields.taps();  // gamma's, beta's

  const TilePlace place(shape, blockIdx.x);
  for (int channel = 0; channel < 2; ++channel) {
    load_field(pooled_field + channel * fields.outer(),
               pooled + (2 * place.image + channel) * shape.pixels(), shape, place, 2 * fields.half,
               fields.outer_width, fields.outer_height);
  }
  load_weights(conv_weight, weights.conv, 2 * fields.taps());
  load_weights(map_weights, weights.gamma, fields.taps());
  load_weights(map_weights + fields.taps(), weights.beta, fields.taps());
  __syncthreads();

  const int strips = fields.inner_width * (fields.inner_height / kStrip);
  for (int i = threadIdx.x; i < strips; i += kMapThreads) {
    const int column = i % fields.inner_width;
    const int row = i / fields.inner_width * kStrip;
    A sums[kStrip] = {};
    for (int channel = 0; channel < 2; ++channel) {
      correlate<kSize>(sums,
                       pooled_field + channel * fields.outer() + row * fields.outer_width + column,
                       fields.outer_width, conv_weight + channel * fields.taps(), fields.size);
    }
#pragma unroll
    for (int s = 0; s < kStrip; ++s) {
      // the convolutions that follow pad the saliency, not the logits, with zeros
      const bool inside =
          shape.inside(place.y - fields.half + row + s, place.x - fields.half + column);
      saliency_field[(row + s) * fields.inner_width + column] =
          inside ? A(1) / (A(1) + exp(-sums[s])) : A(0);
    }
  }
  __syncthreads();

  // a warp each: gamma, beta, and writing out saliency and labels
  const int role = threadIdx.x / kUnits;
  const int column = threadIdx.x % kTileWidth;
  const int row = threadIdx.x % kUnits / kTileWidth * kStrip;
  if (role > 2) return;
  A results[kStrip];
#pragma unroll
  for (int s = 0; s < kStrip; ++s) {
    results[s] =
        role == 0 ? load(weights.gamma_bias)
        : role == 1
            ? load(weights.beta_bias)
            : saliency_field[(row + s + fields.half) * fields.inner_width + column + fields.half];
  }
  if (role < 2) {
    correlate<kSize>(results, saliency_field + row * fields.inner_width + column,
                     fields.inner_width, map_weights + role * fields.taps(), fields.size);
  }
  A* const target = role == 0 ? gamma : role == 1 ? beta : saliency;
#pragma unroll
  for (int s = 0; s < kStrip; ++s) {
    const int64_t y = place.y + row + s;
    const int64_t x = place.x + column;
    if (!shape.inside(y, x)) continue;
    const int64_t at = place.image * shape.pixels() + y * shape.width + x;
    store(target + at, results[s]);
    if (role == 2) store(labels + at, static_cast<uint8_t>(results[s] >= threshold));
  }
}

template <typename A>
struct MapGradients {
  const A *saliency, *gamma, *beta;
};

// A block takes tiles blockIdx.x, blockIdx.x + gridDim.x, ... and writes its share of every
// weight's gradient to parts [weight][block], in the order conv (two channels), gamma, beta,
// biases.
template <typename A, int kSize>
__global__ void __launch_bounds__(kMapThreads)
    self_aware_maps_backward_kernel(MapShape shape, int run_time_size, MapGradients<A> gradients,
                                    const A* pooled, const A* saliency, MapWeights<A> weights,
                                    A* grad_pooled, A* parts) {
  const Fields fields(kSize > 0 ? kSize : run_time_size);
  const int taps = fields.taps();
  DYNAMIC_SHARED(A, shared);
  A* const gamma_field = shared;                            // outer, then beta's
  A* const logit_field = gamma_field + 2 * fields.outer();  // inner: gradient of the logits
  A* const saliency_field = logit_field + fields.inner();   // inner
  A* const pooled_field = saliency_field + fields.inner();  // two inner fields
  A* const flipped = pooled_field + 2 * fields.inner();     // for the transposed convolutions
  A* const shares = flipped + 4 * taps;                     // each entry is one thread's own

  load_weights(flipped, weights.conv, taps, true);
  load_weights(flipped + taps, weights.conv + taps, taps, true);
  load_weights(flipped + 2 * taps, weights.gamma, taps, true);
  load_weights(flipped + 3 * taps, weights.beta, taps, true);
  for (int i = threadIdx.x; i < 4 * taps + 2; i += kMapThreads) shares[i] = A(0);

  for (int64_t tile = blockIdx.x; tile < shape.tiles(); tile += gridDim.x) {
    const TilePlace place(shape, tile);
    const int64_t image = place.image * shape.pixels();
    load_field(gamma_field, gradients.gamma + image, shape, place, 2 * fields.half,
               fields.outer_width, fields.outer_height);
    load_field(gamma_field + fields.outer(), gradients.beta + image, shape, place, 2 * fields.half,
               fields.outer_width, fields.outer_height);
    load_field(logit_field, gradients.saliency + image, shape, place, fields.half,
               fields.inner_width, fields.inner_height);
    load_field(saliency_field, saliency + image, shape, place, fields.half, fields.inner_width,
               fields.inner_height);
    load_field(pooled_field, pooled + 2 * image, shape, place, fields.half, fields.inner_width,
               fields.inner_height);
    load_field(pooled_field + fields.inner(), pooled + 2 * image + shape.pixels(), shape, place,
               fields.half, fields.inner_width, fields.inner_height);
    __syncthreads();

    const int strips = fields.inner_width * (fields.inner_height / kStrip);
    for (int i = threadIdx.x; i < strips; i += kMapThreads) {
      const int column = i % fields.inner_width;
      const int row = i / fields.inner_width * kStrip;
      A sums[kStrip] = {};
      for (int map = 0; map < 2; ++map) {
        correlate<kSize>(sums,
                         gamma_field + map * fields.outer() + row * fields.outer_width + column,
                         fields.outer_width, flipped + (2 + map) * taps, fields.size);
      }
#pragma unroll
      for (int s = 0; s < kStrip; ++s) {
        const int at = (row + s) * fields.inner_width + column;
        const A value = saliency_field[at];
        // outside the image the saliency is the constant 0, and so is this product
        logit_field[at] = (logit_field[at] + sums[s]) * value * (A(1) - value);
      }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < 2 * kUnits; i += kMapThreads) {
      const int channel = i / kUnits;
      const int column = i % kTileWidth;
      const int row = i % kUnits / kTileWidth * kStrip;
      A results[kStrip] = {};
      correlate<kSize>(results, logit_field + row * fields.inner_width + column, fields.inner_width,
                       flipped + channel * taps, fields.size);
#pragma unroll
      for (int s = 0; s < kStrip; ++s) {
        const int64_t y = place.y + row + s;
        const int64_t x = place.x + column;
        if (shape.inside(y, x)) {
          store(grad_pooled + 2 * image + channel * shape.pixels() + y * shape.width + x,
                results[s]);
        }
      }
    }

    // pixels outside the image carry no gradient: their entries of the fields are 0
    for (int i = threadIdx.x; i < 4 * taps + 2; i += kMapThreads) {
      const int map = i < 4 * taps ? i / taps : i - 4 * taps + 2;  // conv, conv, gamma, beta
      const A* gradient = map < 2 ? logit_field + fields.half * (fields.inner_width + 1)
                                  : gamma_field + (map - 2) * fields.outer() +
                                        2 * fields.half * (fields.outer_width + 1);
      const int pitch = map < 2 ? fields.inner_width : fields.outer_width;
      A share = A(0);
      if (i < 4 * taps) {
        const A* value = (map < 2 ? pooled_field + map * fields.inner() : saliency_field) +
                         i % taps / fields.size * fields.inner_width + i % taps % fields.size;
        for (int row = 0; row < kTileHeight; ++row) {
#pragma unroll
          for (int column = 0; column < kTileWidth; ++column) {
            share += gradient[row * pitch + column] * value[row * fields.inner_width + column];
          }
        }
      } else {
        for (int row = 0; row < kTileHeight; ++row) {
#pragma unroll
          for (int column = 0; column < kTileWidth; ++column) {
            share += gradient[row * pitch + column];
          }
        }
      }
      shares[i] += share;
    }
    __syncthreads();  // the next tile overwrites the fields
  }
  for (int i = threadIdx.x; i < 4 * taps + 2; i += kMapThreads) {
    store(parts + static_cast<int64_t>(i) * gridDim.x + blockIdx.x, shares[i]);
  }
}

template <typename A>
struct WeightGradients {
  A *conv, *gamma, *beta, *gamma_bias, *beta_bias;
};

// A warp per weight.
template <typename A>
__global__ void __launch_bounds__(kMapThreads)
    combine_weight_gradients_kernel(int taps, int blocks, const A* parts,
                                    WeightGradients<A> gradients) {
  const int weight = (blockIdx.x * kMapThreads + threadIdx.x) / kWarpSize;
  if (weight >= 4 * taps + 2) return;
  const int lane = threadIdx.x % kWarpSize;
  A sum = A(0);
  for (int block = lane; block < blocks; block += kWarpSize) {
    sum += load(parts + static_cast<int64_t>(weight) * blocks + block);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  A* const target = weight < 2 * taps    ? gradients.conv + weight
                    : weight < 3 * taps  ? gradients.gamma + weight - 2 * taps
                    : weight < 4 * taps  ? gradients.beta + weight - 3 * taps
                    : weight == 4 * taps ? gradients.gamma_bias
                                         : gradients.beta_bias;
  store(target, sum);
}

}  // namespace
}  // namespace torchext
