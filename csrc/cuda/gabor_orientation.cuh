// The kernels of oriented filters; see gabor_orientation.cu.
#pragma once

#include <cfloat>
#include <cmath>

#include "launch.cuh"
#include "reduce.cuh"

namespace torchext {
namespace {

constexpr int kThreads = 256;
constexpr int kTileWidth = kWarpSize;

struct Tiles {
  int64_t images, height, width;
  int tile_height;
  int64_t down, across;

  // Of the map without a border that belongs to no tile.
  Tiles(const Tensor& map, int tile_height, int border = 0)
      : images(map.size(0)),
        height(map.size(2) - border),
        width(map.size(3) - border),
        tile_height(tile_height),
        down((height + tile_height - 1) / tile_height),
        across((width + kTileWidth - 1) / kTileWidth) {}
  __host__ __device__ int64_t count() const { return images * down * across; }
};

struct TilePlace {
  int64_t offset, y, x;  // of the image's first pixel; of the tile in the image

  __device__ TilePlace(const Tiles& tiles, int64_t tile) {
    const int64_t row = tile / tiles.across;
    x = tile % tiles.across * kTileWidth;
    y = row % tiles.down * tiles.tile_height;
    offset = row / tiles.down * tiles.height * tiles.width;
  }
};

__host__ __device__ constexpr int window_elements(int tile_height, int size) {
  return (kTileWidth + size - 1) * (tile_height + size - 1);
}

// Copies `rows` rows of `pitch` pixels from (top, left) on; zeros outside the map.
template <typename To, typename From>
__device__ __forceinline__ void load_area(To* area, const From* map, int64_t height, int64_t width,
                                          int64_t top, int64_t left, int rows, int pitch) {
  for (int i = threadIdx.x; i < pitch * rows; i += kThreads) {
    const int64_t y = top + i / pitch;
    const int64_t x = left + i % pitch;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    if constexpr (std::is_same_v<From, int32_t>) {
      area[i] = inside ? load(map + y * width + x) : 0;
    } else {
      area[i] = inside ? to_accumulate(load(map + y * width + x)) : To(0);
    }
  }
}

// A tile and `half` pixels around it.
template <typename To, typename From>
__device__ __forceinline__ void load_window(To* window, const From* map, const Tiles& tiles,
                                            const TilePlace& place, int half) {
  load_area(window, map + place.offset, tiles.height, tiles.width, place.y - half, place.x - half,
            tiles.tile_height + 2 * half, kTileWidth + 2 * half);
}

// ---- forward ------------------------------------------------------------------------------------

constexpr int kForwardTileHeight = 64;  // or less, where shared memory is short
constexpr int kFilterBlock = 16;        // filters summed at a time where the bank has no symmetry

// The square's symmetry is used for this many filters: their orbits fit the registers.
constexpr int kSquareCount = 32;
constexpr int kQuarter = kSquareCount / 4;
constexpr int kGroups = 4;  // signs under mirroring and transposition
// Weights of a point: 9, 8, 8 and 7 of the groups, each in whole 128 bits.
constexpr int kPointPitch = 36;
__host__ __device__ constexpr int group_begin(int group) {
  return group == 0 ? 0 : 4 + 8 * group;
}

// Pixels (u, v) with u = 0 ... half, v = 0 ... u, of which the others are images.
__host__ __device__ constexpr int octant_points(int half) {
  return (half + 1) * (half + 2) / 2;
}

// scratch: one value per thread, free for reuse on return.
template <typename A>
__device__ __forceinline__ A largest_magnitude(const A* bank, int elements, A* scratch) {
  A largest = A(0);
  for (int i = threadIdx.x; i < elements; i += kThreads) {
    const A value = load(bank + i);
    const A magnitude = value < A(0) ? -value : value;
    if (magnitude > largest) largest = magnitude;
  }
  scratch[threadIdx.x] = largest;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half && scratch[threadIdx.x + half] > scratch[threadIdx.x]) {
      scratch[threadIdx.x] = scratch[threadIdx.x + half];
    }
  }
  __syncthreads();
  largest = scratch[0];
  __syncthreads();
  return largest;
}

template <typename A>
__device__ __forceinline__ bool within(A difference, A tolerance) {
  return difference <= tolerance && -difference <= tolerance && tolerance < A(INFINITY);
}

// Folds a bank of kSquareCount filters into weights [point][group's filters]; returns whether it
// has the symmetry. A thread takes a point of the octant and an orbit of filters: their 32 taps
// must be four values, one for each way in which mirroring and transposition place the point.
template <typename A>
__device__ bool fold_bank(const A* bank, int size, A* weights, A* scratch) {
  __shared__ int agrees;
  if (threadIdx.x == 0) agrees = 1;
  const int half = size / 2;
  const int taps = size * size;
  const A epsilon = sizeof(A) == 8 ? A(DBL_EPSILON) : A(FLT_EPSILON);
  const A tolerance = 16 * epsilon * largest_magnitude(bank, kSquareCount * taps, scratch);

  const int units = octant_points(half) * (kQuarter + 1);
  for (int unit = threadIdx.x; unit < units; unit += kThreads) {
    const int orbit = unit % (kQuarter + 1);
    const int point = unit / (kQuarter + 1);
    int u = 0;
    while (octant_points(u) <= point) ++u;
    const int v = point - u * (u + 1) / 2;
    const int filters[4] = {orbit, (kSquareCount - orbit) % kSquareCount,
                            (kSquareCount + kSquareCount / 2 - orbit) % kSquareCount,
                            kSquareCount / 2 + orbit};
    const int centre = half * size + half;
    // as it is, mirrored, transposed, both
    const int places[4] = {u * size + v, u * size - v, v * size + u, v * size - u};
    A taps_of_point[4];
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      taps_of_point[g] = load(bank + orbit * taps + centre + places[g]);
    }
    bool same = true;
#pragma unroll
    for (int h = 0; h < 4; ++h) {
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        const A expected = taps_of_point[g ^ h];
        const A tap = load(bank + filters[h] * taps + centre + places[g]);
        const A reflected = load(bank + filters[h] * taps + centre - places[g]);
        same &= within(tap - expected, tolerance) && within(reflected - expected, tolerance);
      }
    }
    if (!same) agrees = 0;  // whoever writes, writes the same
    // Pixels on the axes and the diagonal are met twice, the centre four times and twice more.
    const A scale = (u == 0 ? A(0.125) : v == 0 || v == u ? A(0.5) : A(1)) / 4;
    A* const to = weights + point * kPointPitch;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const A mirror = group < 2 ? A(1) : A(-1);
      const A transposition = group % 2 == 0 ? A(1) : A(-1);
      const A weight = scale * (taps_of_point[0] + mirror * taps_of_point[1] +
                                transposition * (taps_of_point[2] + mirror * taps_of_point[3]));
      const int filter = group < 2 ? orbit : orbit - 1;
      if (filter >= 0 && filter < group_begin(group + 1) - group_begin(group))
        to[group_begin(group) + filter] = weight;
    }
  }
  __syncthreads();
  return agrees != 0;
}

// The best response so far: the first of the largest; a NaN wins and stays.
template <typename A>
struct Best {
  A strength = A(0), response = A(0);
  int index = 0;

  __device__ __forceinline__ void add(A r, int k, bool absolute, bool later = false) {
    const A s = absolute && r < A(0) ? -r : r;
    if (!(later ? s < strength : s <= strength) && strength == strength) {
      strength = s;
      response = r;
      index = k;
    }
  }
  // Of larger indices.
  __device__ __forceinline__ void merge(const Best& other) {
    if (!(other.strength <= strength) && strength == strength) *this = other;
  }
};

// sums[f] += weights[f] * pixel at each pixel, kCount filters of weights read 128 bits at a time.
template <int kCount, int kPixels, typename A, int kSums>
__device__ __forceinline__ void add_products(A (&sums)[kPixels][kSums], const A* weights,
                                             const A (&pixels)[kPixels]) {
  constexpr int kWide = 16 / sizeof(A);
#pragma unroll
  for (int first = 0; first < kCount; first += kWide) {
    const Vec<A, kWide> w = *reinterpret_cast<const Vec<A, kWide>*>(weights + first);
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      if (first + i >= kCount) continue;
#pragma unroll
      for (int p = 0; p < kPixels; ++p) sums[p][first + i] += w[i] * pixels[p];
    }
  }
}

// Pixels of a thread at a time: consecutive rows of a column.
template <typename A>
constexpr int kPixelsOf = sizeof(A) == 8 ? 1 : 2;

template <int kPixels, typename A>
__device__ __forceinline__ void filter_square(const A* window, int size, const A* weights,
                                              bool absolute, Best<A> (&best)[kPixels]) {
  const int half = size / 2;
  const int pitch = kTileWidth + 2 * half;
  const A* const centre = window + half * (pitch + 1);
  A plus_plus[kPixels][kQuarter + 1] = {}, plus_minus[kPixels][kQuarter] = {};
  A minus_plus[kPixels][kQuarter] = {}, minus_minus[kPixels][kQuarter - 1] = {};
  const A* point = weights;
#pragma unroll 1
  for (int u = 0; u <= half; ++u) {
#pragma unroll 1
    for (int v = 0; v <= u; ++v, point += kPointPitch) {
      A even[kPixels], odd[kPixels], even_transposed[kPixels], odd_transposed[kPixels];
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const A* const at = centre + p * pitch;
        const A own = at[u * pitch + v] + at[-u * pitch - v];
        const A mirrored = at[u * pitch - v] + at[-u * pitch + v];
        const A transposed = at[v * pitch + u] + at[-v * pitch - u];
        const A both = at[v * pitch - u] + at[-v * pitch + u];
        even[p] = own + mirrored;
        odd[p] = own - mirrored;
        even_transposed[p] = transposed + both;
        odd_transposed[p] = transposed - both;
      }
      A folded[kPixels];
#pragma unroll
      for (int p = 0; p < kPixels; ++p) folded[p] = even[p] + even_transposed[p];
      add_products<kQuarter + 1>(plus_plus, point + group_begin(0), folded);
      if (v < u) {  // on the diagonal the transposition's odd part vanishes
#pragma unroll
        for (int p = 0; p < kPixels; ++p) folded[p] = even[p] - even_transposed[p];
        add_products<kQuarter>(plus_minus, point + group_begin(1), folded);
      }
      if (v == 0) continue;  // on the axes the mirror's
#pragma unroll
      for (int p = 0; p < kPixels; ++p) folded[p] = odd[p] + odd_transposed[p];
      add_products<kQuarter>(minus_plus, point + group_begin(2), folded);
      if (v < u) {
#pragma unroll
        for (int p = 0; p < kPixels; ++p) folded[p] = odd[p] - odd_transposed[p];
        add_products<kQuarter - 1>(minus_minus, point + group_begin(3), folded);
      }
    }
  }
  // An orbit's four filters lie in four ranges of indices: rising with i, falling, rising, falling.
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    constexpr int q = kQuarter;
    Best<A> own, transposed, both, mirrored;
    own.add(plus_plus[p][0] + plus_minus[p][0], 0, absolute);
    both.add(plus_plus[p][0] - plus_minus[p][0], 2 * q, absolute);
#pragma unroll
    for (int i = 1; i < q; ++i) {
      const A sum = plus_plus[p][i] + plus_minus[p][i];
      const A difference = plus_plus[p][i] - plus_minus[p][i];
      const A odd_sum = minus_plus[p][i - 1] + minus_minus[p][i - 1];
      const A odd_difference = minus_plus[p][i - 1] - minus_minus[p][i - 1];
      own.add(sum + odd_sum, i, absolute);
      transposed.add(difference + odd_difference, 2 * q - i, absolute, true);
      both.add(difference - odd_difference, 2 * q + i, absolute);
      mirrored.add(sum - odd_sum, 4 * q - i, absolute, true);
    }
    own.add(plus_plus[p][q] + minus_plus[p][q - 1], q, absolute);
    both.add(plus_plus[p][q] - minus_plus[p][q - 1], 3 * q, absolute);
    own.merge(transposed);
    own.merge(both);
    own.merge(mirrored);
    best[p] = own;
  }
}

// A block of filters at a time, whose taps pass through shared memory row by row; each response
// goes to use(pixel, filter, response). With kEven each filter is its own point reflection, and two
// pixels share a tap. All threads of the block take part.
template <bool kEven, int kPixels, typename A, typename Use>
__device__ __forceinline__ void filter_plain(const A* window, const A* bank, int count, int size,
                                             A* row_weights, Use use) {
  const int pitch = kTileWidth + size - 1;
  const int half = size / 2;
  const A* const last = window + (size - 1) * (pitch + 1);
  for (int first = 0; first < count; first += kFilterBlock) {
    A sums[kPixels][kFilterBlock] = {};
    for (int u = 0; u < (kEven ? half + 1 : size); ++u) {
      __syncthreads();
      for (int i = threadIdx.x; i < kFilterBlock * size; i += kThreads) {
        const int filter = first + i / size;
        row_weights[i % size * kFilterBlock + i / size] =
            filter < count
                ? load(bank + (static_cast<int64_t>(filter) * size + u) * size + i % size)
                : A(0);
      }
      __syncthreads();
      const A* const row = window + u * pitch;
      const A* const reflected = last - u * pitch;
      const int columns = kEven && u == half ? half : size;
#pragma unroll 1
      for (int v = 0; v < columns; ++v) {
        A pixels[kPixels];
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          pixels[p] = row[p * pitch + v];
          if (kEven) pixels[p] += reflected[p * pitch - v];
        }
        add_products<kFilterBlock>(sums, row_weights + v * kFilterBlock, pixels);
      }
      if (kEven && u == half) {
        A pixels[kPixels];
#pragma unroll
        for (int p = 0; p < kPixels; ++p) pixels[p] = row[p * pitch + half];
        add_products<kFilterBlock>(sums, row_weights + half * kFilterBlock, pixels);
      }
    }
#pragma unroll
    for (int f = 0; f < kFilterBlock; ++f) {
      if (first + f >= count) continue;
#pragma unroll
      for (int p = 0; p < kPixels; ++p) use(p, first + f, sums[p][f]);
    }
  }
}

// Shared memory: the weights (first, for their alignment) and the window.
__host__ __device__ constexpr int weight_elements(int size, bool may_be_square) {
  const int row = kFilterBlock * size;
  const int square = may_be_square ? octant_points(size / 2) * kPointPitch : 0;
  return (row > square ? row : square) > kThreads ? (row > square ? row : square) : kThreads;
}

// Rows of the tile at a time; a tile is whole rounds of them.
template <typename A>
constexpr int kRowsOf = kThreads / kTileWidth * kPixelsOf<A>;
static_assert(kForwardTileHeight % kRowsOf<float> == 0);
static_assert(kForwardTileHeight % kRowsOf<double> == 0);

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    oriented_filter_max_kernel(Tiles tiles, const T* image, const accumulate_t<T>* bank, int count,
                               int size, bool may_be_square, bool absolute, int32_t* index,
                               accumulate_t<T>* response) {
  using A = accumulate_t<T>;
  constexpr int kPixels = kPixelsOf<A>;
  constexpr int kRows = kRowsOf<A>;
  DYNAMIC_SHARED(A, weights);
  A* const window = weights + weight_elements(size, may_be_square);

  const TilePlace place(tiles, blockIdx.x);
  load_window(window, image, tiles, place, size / 2);
  const bool square = may_be_square && fold_bank(bank, size, weights, weights);
  __syncthreads();

  const int column = threadIdx.x % kTileWidth;
  for (int round = 0; round < tiles.tile_height; round += kRows) {
    if (place.y + round >= tiles.height) break;  // alike for the whole block
    const int row = round + threadIdx.x / kTileWidth * kPixels;
    const A* const at = window + row * (kTileWidth + size - 1) + column;
    Best<A> best[kPixels];
    if (square) {
      filter_square<kPixels>(at, size, weights, absolute, best);
    } else {
      filter_plain<false, kPixels>(
          at, bank, count, size, weights,
          [&](int p, int filter, A response) { best[p].add(response, filter, absolute); });
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const int64_t y = place.y + row + p;
      const int64_t x = place.x + column;
      if (y >= tiles.height || x >= tiles.width) continue;
      const int64_t to = place.offset + y * tiles.width + x;
      const bool nan = best[p].strength != best[p].strength;
      store(index + to, nan ? 0 : best[p].index);
      store(response + to, best[p].response);
    }
  }
}

// ---- statistics of all filters ------------------------------------------------------------------

// Whether each filter is its own point reflection, up to the rounding with which banks are made.
template <typename A>
__device__ bool is_even(const A* bank, int count, int size, A* scratch) {
  const int taps = size * size;
  const A epsilon = sizeof(A) == 8 ? A(DBL_EPSILON) : A(FLT_EPSILON);
  const A tolerance = 16 * epsilon * largest_magnitude(bank, count * taps, scratch);
  bool same = true;
  for (int i = threadIdx.x; i < count * taps; i += kThreads) {
    const int beyond = taps - 1 - 2 * (i % taps);  // to the tap's reflection
    if (beyond > 0) same &= within(load(bank + i) - load(bank + i + beyond), tolerance);
  }
  return __syncthreads_and(same) != 0;
}

// The distances of all filters are from the best one, which is known at the end alone: the
// responses are taken a second time, as they fit neither registers nor shared memory.
template <bool kEven, int kPixels, typename A>
__device__ __forceinline__ void measure(const A* window, const A* bank, const A* positions,
                                        int count, int size, A* row_weights, bool spread, A eps,
                                        Best<A> (&best)[kPixels], A (&confidence)[kPixels]) {
  filter_plain<kEven, kPixels>(
      window, bank, count, size, row_weights,
      [&](int p, int filter, A response) { best[p].add(response, filter, true); });
  const A circle = A(count);
  const A step = A(3.14159265358979323846) / circle;
  A position[kPixels], weighted[kPixels] = {}, total[kPixels] = {};
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    if (best[p].strength != best[p].strength) best[p].index = 0;
    position[p] = load(positions + best[p].index);
  }
  filter_plain<kEven, kPixels>(
      window, bank, count, size, row_weights, [&](int p, int filter, A response) {
        const A magnitude = response < A(0) ? -response : response;
        const A offset = A(filter) - position[p];
        const A direct = offset < A(0) ? -offset : offset;
        const A around = circle - direct;
        const A distance = direct < around ? direct : around;
        const A below = magnitude - best[p].strength;
        weighted[p] += distance * (spread ? below * below : distance * magnitude);
        total[p] += magnitude;
      });
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    confidence[p] = spread ? std::sqrt(weighted[p] * step)
                           : weighted[p] * (step * step) / (total[p] < eps ? eps : total[p]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    oriented_filter_statistics_kernel(Tiles tiles, const T* image, const accumulate_t<T>* bank,
                                      const accumulate_t<T>* positions, int count, int size,
                                      bool spread, accumulate_t<T> eps, int32_t* index,
                                      accumulate_t<T>* strength, accumulate_t<T>* confidence) {
  using A = accumulate_t<T>;
  constexpr int kPixels = kPixelsOf<A>;
  constexpr int kRows = kRowsOf<A>;
  DYNAMIC_SHARED(A, weights);
  A* const window = weights + weight_elements(size, false);

  const TilePlace place(tiles, blockIdx.x);
  const int64_t height = tiles.height + size - 1, width = tiles.width + size - 1;
  load_area(window, image + place.offset / (tiles.height * tiles.width) * (height * width), height,
            width, place.y, place.x, tiles.tile_height + size - 1, kTileWidth + size - 1);
  const bool even = is_even(bank, count, size, weights);

  const int column = threadIdx.x % kTileWidth;
  for (int round = 0; round < tiles.tile_height; round += kRows) {
    if (place.y + round >= tiles.height) break;  // alike for the whole block
    const int row = round + threadIdx.x / kTileWidth * kPixels;
    const A* const at = window + row * (kTileWidth + size - 1) + column;
    Best<A> best[kPixels];
    A measured[kPixels];
    if (even) {
      measure<true>(at, bank, positions, count, size, weights, spread, eps, best, measured);
    } else {
      measure<false>(at, bank, positions, count, size, weights, spread, eps, best, measured);
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const int64_t y = place.y + row + p;
      const int64_t x = place.x + column;
      if (y >= tiles.height || x >= tiles.width) continue;
      const int64_t to = place.offset + y * tiles.width + x;
      store(index + to, best[p].index);
      store(strength + to, best[p].strength);
      store(confidence + to, measured[p]);
    }
  }
}

// ---- gradient of the image ----------------------------------------------------------------------

constexpr int kImagePixels = 4;  // of a column for each thread, or less
constexpr int kTableElements = 8192;
__host__ __device__ constexpr int image_tile_height(int pixels) {
  return pixels * kThreads / kTileWidth;
}

// Taps that lie in shared memory at a time, for all filters, unless it is short; rows of the table
// are `pitch` long.
__host__ __device__ constexpr int table_pitch(int count) {
  return count | 1;  // odd: neighbouring taps are written to different banks
}
__host__ __device__ constexpr int table_taps(int count) {
  return kTableElements / table_pitch(count) > 1 ? kTableElements / table_pitch(count) : 1;
}

// gradient(q) = sum over p around q of grad(p) * bank[index(p)][q - p]
template <typename A, int kPixels>
__global__ void __launch_bounds__(kThreads)
    oriented_filter_max_backward_image_kernel(Tiles tiles, const A* grad, const int32_t* index,
                                              const A* bank, int count, int size, int slab,
                                              A* grad_image) {
  const int pitch = kTileWidth + size - 1;
  const int taps = size * size;
  DYNAMIC_SHARED(A, table);  // [tap][filter]
  A* const gradient = table + slab * table_pitch(count);
  int32_t* const winner =
      reinterpret_cast<int32_t*>(gradient + window_elements(tiles.tile_height, size));

  const TilePlace place(tiles, blockIdx.x);
  load_window(gradient, grad, tiles, place, size / 2);
  load_window(winner, index, tiles, place, size / 2);

  const int column = threadIdx.x % kTileWidth;
  const int row = threadIdx.x / kTileWidth * kPixels;
  A sums[kPixels] = {};
  for (int first = 0; first < taps; first += slab) {
    const int here = taps - first < slab ? taps - first : slab;
    __syncthreads();
    for (int i = threadIdx.x; i < here * count; i += kThreads) {
      const int filter = i / here;
      // a pixel looks back from where it is looked at: the tap's point reflection
      const int tap = taps - 1 - (first + i % here);
      table[i % here * table_pitch(count) + filter] =
          load(bank + static_cast<int64_t>(filter) * taps + tap);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < here; ++i) {
      const int at = (row + (first + i) / size) * pitch + column + (first + i) % size;
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int from = at + p * pitch;
        sums[p] += gradient[from] * table[i * table_pitch(count) + winner[from]];
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const int64_t y = place.y + row + p;
    const int64_t x = place.x + column;
    if (y < tiles.height && x < tiles.width) {
      store(grad_image + place.offset + y * tiles.width + x, sums[p]);
    }
  }
}

// ---- gradient of the bank -----------------------------------------------------------------------

constexpr int kBankTileHeight = 16;   // or less, where shared memory is short
constexpr int kBankElements = 10240;  // sums in shared memory
constexpr int kParts = 128;

// Block (part, set of filters): tiles part, part + parts, ...; a thread owns taps of every filter
// of the set, and adds each pixel's window to its filter's. parts: [filter][tap][part].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    oriented_filter_max_backward_bank_kernel(Tiles tiles, const accumulate_t<T>* grad,
                                             const int32_t* index, const T* image, int count,
                                             int size, int set, int num_parts,
                                             accumulate_t<T>* parts) {
  using A = accumulate_t<T>;
  const int taps = size * size;
  const int pitch = kTileWidth + size - 1;
  const int part = blockIdx.x % num_parts;
  const int first = blockIdx.x / num_parts * set;
  const int filters = count - first < set ? count - first : set;
  DYNAMIC_SHARED(A, sums);  // [filter][tap]
  A* const window = sums + set * taps;
  A* const gradient = window + window_elements(tiles.tile_height, size);
  int32_t* const winner = reinterpret_cast<int32_t*>(gradient + tiles.tile_height * kTileWidth);

  for (int i = threadIdx.x; i < filters * taps; i += kThreads) sums[i] = A(0);
  for (int64_t tile = part; tile < tiles.count(); tile += num_parts) {
    __syncthreads();  // the tile before has been used
    const TilePlace place(tiles, tile);
    load_window(window, image, tiles, place, size / 2);
    load_window(gradient, grad, tiles, place, 0);
    load_window(winner, index, tiles, place, 0);
    __syncthreads();
    for (int pixel = 0; pixel < tiles.tile_height * kTileWidth; ++pixel) {
      const A g = gradient[pixel];
      const int filter = winner[pixel] - first;
      if (g == A(0) || filter < 0 || filter >= filters) continue;
      const A* const from = window + pixel / kTileWidth * pitch + pixel % kTileWidth;
      for (int tap = threadIdx.x; tap < taps; tap += kThreads) {
        sums[filter * taps + tap] += g * from[tap / size * pitch + tap % size];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < filters * taps; i += kThreads) {
    store(parts + (static_cast<int64_t>(first) * taps + i) * num_parts + part, sums[i]);
  }
}

// A warp per tap of a filter.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    combine_bank_gradients_kernel(int64_t elements, int num_parts, const A* parts, A* grad_bank) {
  const int64_t element = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarpSize;
  if (element >= elements) return;
  const int lane = threadIdx.x % kWarpSize;
  A sum = A(0);
  for (int part = lane; part < num_parts; part += kWarpSize) {
    sum += load(parts + element * num_parts + part);
  }
  sum = warp_sum(sum);
  if (lane == 0) store(grad_bank + element, sum);
}

}  // namespace
}  // namespace torchext
