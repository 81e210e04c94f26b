// Oriented filters and their maximum on the CPU (MichiGAN, SIGGRAPH 2020):
//
//   index = argmax over K filters of the rectified correlation of the image with each, response =
//   that response
//
// The image is read once and two numbers per pixel are written (the floor); responses stay in the
// cache. A bank of K = 32 filters of 17 x 17 costs 32 * 289 = 9248 multiplications per pixel as it
// is. Where every filter is its own point reflection two pixels share one (32 * 145); where the
// bank is closed under mirroring and transposition too, the window is folded into four signed
// combinations (about 280 additions, of which 16 serve all rows that a row of the image meets), and
// the four filters of an orbit share 145: 1177 in all. Both are found from the bank itself.
//
// The statistics of all filters read the image once and write three numbers per pixel (the floor).
// The absolute responses of two vectors of pixels lie in the cache until the best filter is known,
// from which all distances count. Two vectors share the weights, and points where a block of
// filters has none are passed over: 180 filters of 17 x 17 with zeros around them take about 5000
// multiplications, not 52,020, and 6 more operations for each.
//
// Backward, image: each pixel gathers from the pixels around it the tap of the winning filter that
// points back. Backward, bank: each pixel adds its window to its filter's sum.
//
// Parallel over tiles of 16 x 32 pixels; a tile's arithmetic does not depend on where it lies.
#include "../gabor_orientation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "gabor_orientation_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

// ---- symmetry -----------------------------------------------------------------------------------

template <class A>
struct Taps {
  const A* values;  // (count, size, size)
  int64_t count, size;
  // Filter k at the row and column offset (u, v), each -half to half.
  A operator()(int64_t k, int64_t u, int64_t v) const {
    return values[(k * size + u + size / 2) * size + v + size / 2];
  }
};

// Whether all taps agree, up to the rounding with which a bank is computed.
template <class A, class Other>
bool agree(const Taps<A>& taps, A tolerance, Other other) {
  const int64_t half = taps.size / 2;
  for (int64_t k = 0; k < taps.count; ++k)
    for (int64_t u = -half; u <= half; ++u)
      for (int64_t v = -half; v <= half; ++v)
        if (!(std::abs(taps(k, u, v) - other(k, u, v)) <= tolerance)) return false;
  return true;
}

template <class A>
Symmetry symmetry_of(const Taps<A>& taps) {
  A largest = 0;
  for (int64_t i = 0; i < taps.count * taps.size * taps.size; ++i)
    largest = std::max(largest, std::abs(taps.values[i]));
  const A tolerance = 16 * std::numeric_limits<A>::epsilon() * largest;
  const int64_t count = taps.count;
  if (!std::isfinite(tolerance)) return Symmetry::none;
  if (!agree(taps, tolerance, [&](auto k, auto u, auto v) { return taps(k, -u, -v); }))
    return Symmetry::none;
  // angles pi * i / count: the mirrored filter is -i, the transposed one count / 2 - i
  const bool square =
      count % 4 == 0 &&
      agree(taps, tolerance,
            [&](auto k, auto u, auto v) { return taps((count - k) % count, u, -v); }) &&
      agree(taps, tolerance,
            [&](auto k, auto u, auto v) { return taps((count + count / 2 - k) % count, v, u); });
  return square ? Symmetry::square : Symmetry::even;
}

// A bank in the order in which the kernels take it, and the memory that its weights lie in.
template <class A>
class FoldedBank {
 public:
  explicit FoldedBank(const Taps<A>& taps) : taps_(taps) {
    bank_.symmetry = symmetry_of(taps);
    bank_.size = taps.size;
    bank_.count = taps.count;
    const int groups = bank_.symmetry == Symmetry::square ? 4 : 1;
    for (int g = 0; g < groups; ++g)
      weights_[g] = bank_.symmetry == Symmetry::square ? square_group(g) : plain_group();
    for (int g = 0; g < groups; ++g) bank_.group[g].weights = weights_[g].data();
  }
  const FilterBank<A>& bank() const { return bank_; }

 private:
  // weight(k, u, v) at the points (u, v) for the filters first ... end - 1.
  template <class Weight>
  std::vector<A> weights(int g, int64_t first, int64_t end,
                         const std::vector<std::pair<int64_t, int64_t>>& points, Weight weight) {
    bank_.group[g].filters = end - first;
    bank_.group[g].points = static_cast<int64_t>(points.size());
    std::vector<A> result;
    for (const auto& [u, v] : points)
      for (int64_t k = first; k < end; ++k) result.push_back(weight(k, u, v));
    return result;
  }

  // All taps, or those up to the centre where every filter is its own point reflection.
  std::vector<A> plain_group() {
    const int64_t half = taps_.size / 2;
    const int64_t all = taps_.size * taps_.size;
    std::vector<std::pair<int64_t, int64_t>> points;
    for (int64_t i = 0; i < (bank_.symmetry == Symmetry::even ? all / 2 + 1 : all); ++i)
      points.emplace_back(i / taps_.size - half, i % taps_.size - half);
    return weights(0, 0, taps_.count, points, taps_);
  }

  // With signs (m, t) under mirroring and transposition: a quarter of the signed sum of the
  // filter's taps at the four places of a point. Points in the order of sum_square.
  std::vector<A> square_group(int g) {
    const int64_t half = taps_.size / 2, quarter = taps_.count / 4;
    const A m = g < 2 ? 1 : -1, t = g % 2 == 0 ? 1 : -1;
    std::vector<std::pair<int64_t, int64_t>> points;
    for (int64_t u = 1; u <= half; ++u)
      for (int64_t v = 0; v <= u; ++v)
        if ((v > 0 || m > 0) && (v < u || t > 0)) points.emplace_back(u, v);
    if (g == 0) points.emplace_back(0, 0);
    return weights(g, m > 0 ? 0 : 1, t > 0 ? quarter + 1 : quarter, points,
                   [&](auto k, auto u, auto v) {
                     return (taps_(k, u, v) + m * taps_(k, u, -v) + t * taps_(k, v, u) +
                             m * t * taps_(k, v, -u)) /
                            4;
                   });
  }

  Taps<A> taps_;
  FilterBank<A> bank_{};
  std::vector<A> weights_[4];
};

// Whether a bank without the square's symmetry has it but for the first row and column, about the
// corner beyond the middle.
template <class A>
bool is_shifted_square(const Taps<A>& taps) {
  const int64_t half = taps.size / 2, count = taps.count;
  if (count % 4 != 0 || half == 0) return false;
  A largest = 0;
  for (int64_t i = 0; i < count * taps.size * taps.size; ++i)
    largest = std::max(largest, std::abs(taps.values[i]));
  const A tolerance = 16 * std::numeric_limits<A>::epsilon() * largest;
  if (!std::isfinite(tolerance)) return false;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t u = 1 - half; u <= half; ++u)
      for (int64_t v = 1 - half; v <= half; ++v) {
        const A tap = taps(k, u, v);
        if (!(std::abs(tap - taps(k, 1 - u, 1 - v)) <= tolerance &&
              std::abs(tap - taps((count - k) % count, u, 1 - v)) <= tolerance &&
              std::abs(tap - taps((count + count / 2 - k) % count, v, u)) <= tolerance))
          return false;
      }
  return true;
}

// The same in blocks, without the points where a block has no weight.
template <class A>
class BlockedBank {
 public:
  BlockedBank(const Taps<A>& taps, const A* positions, bool spread, A eps)
      : folded_(taps),
        bank_{
            folded_.bank().symmetry, 0, taps.size, taps.count, nullptr, 0, positions, spread, eps} {
    const FilterBank<A>& folded = folded_.bank();
    if (bank_.symmetry == Symmetry::none && is_shifted_square(taps)) {
      bank_.symmetry = Symmetry::square;
      bank_.shift = 1;
      add_shifted_groups(taps);
    } else if (bank_.symmetry == Symmetry::square) {
      int64_t first = 0;
      for (int g = 0; g < 4; ++g) {
        add_group(folded.group[g], g, [&](int64_t point) { return first + point; });
        first += folded.group[g].points;
      }
    } else {
      const int64_t size = taps.size, stride = TileShape{size}.stride();
      const bool even = bank_.symmetry == Symmetry::even;
      add_group(folded.group[0], 0,
                [&](int64_t point) { return even ? point : point / size * stride + point % size; });
    }
    bank_.blocks = blocks_.data();
    bank_.num_blocks = static_cast<int64_t>(blocks_.size());
  }
  BlockedBank(const BlockedBank&) = delete;
  const StatisticsBank<A>& bank() const { return bank_; }

 private:
  // As FoldedBank's square_group; the first row and column, which are not folded, take the signed
  // sums over the filters of an orbit in place of those over the places of a point.
  void add_shifted_groups(const Taps<A>& taps) {
    const int64_t half = taps.size / 2, quarter = taps.count / 4;
    int64_t first_point = 0;
    for (int g = 0; g < 4; ++g) {
      const A m = g < 2 ? 1 : -1, t = g % 2 == 0 ? 1 : -1;
      const int64_t first = m > 0 ? 0 : 1, end = t > 0 ? quarter + 1 : quarter;
      std::vector<A> weights;
      int64_t folded = 0;
      for (int64_t u = 1; u <= half; ++u)
        for (int64_t v = 1; v <= (t > 0 ? u : u - 1); ++v, ++folded)
          for (int64_t k = first; k < end; ++k)
            weights.push_back((taps(k, u, v) + m * taps(k, u, 1 - v) + t * taps(k, v, u) +
                               m * t * taps(k, v, 1 - u)) /
                              4);
      const auto add_rest = [&](int64_t u, int64_t v) {
        for (int64_t k = first; k < end; ++k)
          weights.push_back((taps(k, u, v) + t * taps(2 * quarter - k, u, v) +
                             m * t * taps(2 * quarter + k, u, v) +
                             m * taps((taps.count - k) % taps.count, u, v)) /
                            4);
      };
      for (int64_t v = -half; v <= half; ++v) add_rest(-half, v);
      for (int64_t u = 1 - half; u <= half; ++u) add_rest(u, -half);
      const int64_t rest = 2 * half * half;
      add_group({end - first, folded + 2 * taps.size - 1, weights.data()}, g, [&](int64_t point) {
        return point < folded ? first_point + point : rest + point - folded;
      });
      first_point += folded;
    }
  }

  // place(point): of a point of the group in the window, or in its folded values.
  template <class Place>
  void add_group(const FilterGroup<A>& group, int g, Place place) {
    const int64_t half = bank_.count / 2, most = TORCHEXT_AT_SIMD_LEVEL(block_filters)();
    const int64_t slot = g == 0 ? 0 : g == 1 ? half : g == 2 ? half + 1 : 2 * half - 1;
    const int64_t step = g % 2 == 0 ? 1 : -1;
    for (int64_t begin = 0; begin < group.filters; begin += most) {
      const int64_t filters = std::min(most, group.filters - begin);
      std::vector<int32_t>& places = places_.emplace_back();
      std::vector<A>& weights = weights_.emplace_back();
      for (int64_t point = 0; point < group.points; ++point) {
        const A* from = group.weights + point * group.filters + begin;
        if (std::all_of(from, from + filters, [](A weight) { return weight == 0; })) continue;
        places.push_back(static_cast<int32_t>(place(point)));
        weights.insert(weights.end(), from, from + filters);
      }
      blocks_.push_back({filters, static_cast<int64_t>(places.size()), places.data(),
                         weights.data(), slot + begin * step, step});
    }
  }

  FoldedBank<A> folded_;
  StatisticsBank<A> bank_;
  std::vector<FilterBlock<A>> blocks_;
  std::deque<std::vector<int32_t>> places_;
  std::deque<std::vector<A>> weights_;
};

// ---- tiles --------------------------------------------------------------------------------------

struct Tiles {
  int64_t images, height, width;
  int64_t down() const { return (height + kTileRows - 1) / kTileRows; }
  int64_t across() const { return (width + kTileColumns - 1) / kTileColumns; }
  int64_t count() const { return images * down() * across(); }
};

struct Tile {
  int64_t offset, row, column, rows, columns;  // the image's first element; place; extent
  Tile(const Tiles& tiles, int64_t i)
      : offset(i / (tiles.down() * tiles.across()) * tiles.height * tiles.width),
        row(i / tiles.across() % tiles.down() * kTileRows),
        column(i % tiles.across() * kTileColumns),
        rows(std::min(kTileRows, tiles.height - row)),
        columns(std::min(kTileColumns, tiles.width - column)) {}
};

// Copies a tile with its surroundings, as far as filters of this size reach.
template <class T, class A>
void fill_window(const Tiles& tiles, const Tile& tile, const T* map, int64_t size, A* window) {
  const TileShape shape{size};
  TORCHEXT_AT_SIMD_LEVEL(fill_tile<T, A>)(
      map + tile.offset, tiles.height, tiles.width, tile.row - shape.half(),
      tile.column - shape.half(), shape.rows(), shape.stride() - kSlack, window, shape.stride());
}

template <class A>
void write_tile(const Tiles& tiles, const Tile& tile, const A* values, A* map) {
  for (int64_t y = 0; y < tile.rows; ++y)
    std::copy_n(values + y * kTileColumns, tile.columns,
                map + tile.offset + (tile.row + y) * tiles.width + tile.column);
}

// Scratch that begins at a cache line.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t elements) : memory_(elements + 64 / sizeof(A)) {}
  A* data() {
    void* at = memory_.data();
    size_t space = memory_.size() * sizeof(A);
    return static_cast<A*>(std::align(64, 64, at, space));
  }

 private:
  std::vector<A> memory_;
};

Tiles tiles_of(const Tensor& map) {
  return {map.size(0), map.size(2), map.size(3)};
}

// The caller's index decides what is read and written.
void expects_values(const Tensor& index, int64_t count) {
  const int64_t all = index.numel();
  const int32_t* values = data<const int32_t>(index);
  int32_t least = 0, most = 0;
  for (int64_t i = 0; i < all; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  expects(least >= 0 && most < count, "index: expected values from 0 to K - 1");
}

// ---- ops ----------------------------------------------------------------------------------------

void compute(const OrientedFilterMax& call) {
  const Tiles tiles = tiles_of(call.image);
  const int64_t count = call.bank.size(0), size = call.bank.size(1);
  dispatch_floating(call.image.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const FoldedBank<A> folded(Taps<A>{data<const A>(call.bank), count, size});
    const TileShape shape{size};
    const T* in = data<const T>(call.image);
    int32_t* index_out = data<int32_t>(call.index);
    A* response_out = data<A>(call.response);
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      Scratch<A> window(shape.rows() * shape.stride());
      Scratch<A> scratch(scratch_elements(size, count));
      int32_t best[kTileRows * kTileColumns];
      A strength[kTileRows * kTileColumns];
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile(tiles, i);
        fill_window(tiles, tile, in, shape.size, window.data());
        TORCHEXT_AT_SIMD_LEVEL(filter_tile<A>)(folded.bank(), window.data(), tile.rows,
                                               call.absolute, scratch.data(), best, strength);
        write_tile(tiles, tile, best, index_out);
        write_tile(tiles, tile, strength, response_out);
      }
    });
  });
}

void compute(const OrientedFilterStatistics& call) {
  const Tiles bordered = tiles_of(call.image), tiles = tiles_of(call.index);
  const int64_t count = call.bank.size(0), size = call.bank.size(1);
  dispatch_floating(call.image.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const BlockedBank<A> blocked(Taps<A>{data<const A>(call.bank), count, size},
                                 data<const A>(call.positions), call.spread,
                                 static_cast<A>(call.eps));
    const TileShape shape{size};
    const T* in = data<const T>(call.image);
    int32_t* index_out = data<int32_t>(call.index);
    A* strength_out = data<A>(call.strength);
    A* confidence_out = data<A>(call.confidence);
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      Scratch<A> window(shape.rows() * shape.stride());
      Scratch<A> scratch(statistics_scratch_elements(size, count));
      int32_t best[kTileRows * kTileColumns];
      A values[2][kTileRows * kTileColumns];
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile(tiles, i);
        const int64_t from = tile.offset / (tiles.height * tiles.width) * bordered.height;
        TORCHEXT_AT_SIMD_LEVEL(fill_tile<T, A>)(
            in + from * bordered.width, bordered.height, bordered.width, tile.row, tile.column,
            shape.rows(), shape.stride() - kSlack, window.data(), shape.stride());
        TORCHEXT_AT_SIMD_LEVEL(statistics_tile<A>)(blocked.bank(), window.data(), tile.rows,
                                                   scratch.data(), best, values[0], values[1]);
        write_tile(tiles, tile, best, index_out);
        write_tile(tiles, tile, values[0], strength_out);
        write_tile(tiles, tile, values[1], confidence_out);
      }
    });
  });
}

void compute(const ImageGradient& call) {
  const Tiles tiles = tiles_of(call.grad);
  const int64_t count = call.bank.size(0), size = call.bank.size(1), taps = size * size;
  expects_values(call.index, count);
  dispatch_accumulate(call.grad.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    // by tap, those of a filter's point reflection: a pixel looks back from where it is looked at
    const int64_t pitch = (count + 31) / 32 * 32;
    std::vector<A> table(taps * pitch);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < taps; ++i)
        table[i * pitch + k] = data<const A>(call.bank)[k * taps + taps - 1 - i];
    const TileShape shape{size};
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      Scratch<A> window(shape.rows() * shape.stride());
      Scratch<int32_t> window_index(shape.rows() * shape.stride());
      A out[kTileRows * kTileColumns];
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile(tiles, i);
        fill_window(tiles, tile, data<const A>(call.grad), size, window.data());
        fill_window(tiles, tile, data<const int32_t>(call.index), size, window_index.data());
        TORCHEXT_AT_SIMD_LEVEL(image_gradient_tile<A>)(window.data(), window_index.data(), size,
                                                       table.data(), pitch, tile.rows, out);
        write_tile(tiles, tile, out, data<A>(call.grad_image));
      }
    });
  });
}

// Parts that the tiles are split into for the bank's gradient, whose sums are then added in order:
// enough for many threads, few enough to be small.
int64_t parts_of(int64_t tiles, int64_t elements) {
  return std::min(tiles, std::clamp<int64_t>((int64_t{1} << 22) / elements, 1, 32));
}

void compute(const BankGradient& call) {
  const Tiles tiles = tiles_of(call.grad);
  const int64_t count = call.grad_bank.size(0), size = call.grad_bank.size(1);
  expects_values(call.index, count);
  dispatch_floating(call.image.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const TileShape shape{size};
    const int64_t pitch = (size + kSlack - 1) / kSlack * kSlack, elements = count * size * pitch;
    const int64_t parts = parts_of(tiles.count(), elements);
    std::vector<A> sums(parts * elements);
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Scratch<A> window(shape.rows() * shape.stride());
      A gradient[kTileRows * kTileColumns];
      int32_t best[kTileRows * kTileColumns];
      for (int64_t part = begin; part < end; ++part)
        for (int64_t i = part * tiles.count() / parts; i < (part + 1) * tiles.count() / parts;
             ++i) {
          const Tile tile(tiles, i);
          fill_window(tiles, tile, data<const T>(call.image), size, window.data());
          TORCHEXT_AT_SIMD_LEVEL(fill_tile<A, A>)(data<const A>(call.grad) + tile.offset,
                                                  tiles.height, tiles.width, tile.row, tile.column,
                                                  kTileRows, kTileColumns, gradient, kTileColumns);
          TORCHEXT_AT_SIMD_LEVEL(fill_tile<int32_t, int32_t>)(
              data<const int32_t>(call.index) + tile.offset, tiles.height, tiles.width, tile.row,
              tile.column, kTileRows, kTileColumns, best, kTileColumns);
          TORCHEXT_AT_SIMD_LEVEL(bank_gradient_tile<A>)(gradient, best, window.data(), size, pitch,
                                                        &sums[part * elements]);
        }
    });
    A* out = data<A>(call.grad_bank);
    for (int64_t row = 0; row < count * size; ++row)
      for (int64_t v = 0; v < size; ++v) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part)
          sum += static_cast<double>(sums[part * elements + row * pitch + v]);
        out[row * size + v] = static_cast<A>(sum);
      }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
