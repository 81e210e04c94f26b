// The vectorised inner parts of the oriented filters. gabor_orientation.cpp walks them.
#pragma once

#include "simd.h"

namespace torchext {

// A tile of outputs, kTileRows x kTileColumns. Its window is the part of the image that the filters
// reach, zero outside the image, with kSlack unused columns on the right so that a row of a filter
// may be read in whole vectors.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColumns = 32;
constexpr int64_t kSlack = 16;
struct TileShape {
  int64_t size;  // of the filters
  int64_t half() const { return size / 2; }
  int64_t rows() const { return kTileRows + 2 * half(); }
  int64_t stride() const { return kTileColumns + 2 * half() + kSlack; }
};

// What a bank's filters have in common.
enum class Symmetry : int {
  none,    // nothing
  even,    // each is its own point reflection: two pixels of the window share a multiplication
  square,  // and the bank is closed under mirroring and transposition: four filters share it too
};

// Points of the folded window and the filters that take them: weights[point][filter].
template <class A>
struct FilterGroup {
  int64_t filters, points;
  const A* weights;
};

// A bank ready for use. Without the square's symmetry there is one group, whose filters are the
// bank's. With it there are four, one for each pair of signs under mirroring and transposition; a
// filter stands for its orbit, of which filters 0 and count / 4 are in fewer groups than others:
//   group 0 (+,+): 0 ... count / 4         group 1 (+,-): 0 ... count / 4 - 1
//   group 2 (-,+): 1 ... count / 4         group 3 (-,-): 1 ... count / 4 - 1
template <class A>
struct FilterBank {
  Symmetry symmetry;
  int64_t size, count;
  FilterGroup<A> group[4];
};

// A few filters, and the points where any of them has a weight: weights[point][filter].
template <class A>
struct FilterBlock {
  int64_t filters, points;
  const int32_t* places;  // of the points: in the window, or in its folded values
  const A* weights;
  int64_t slot, step;  // where the first filter's sum belongs among all sums, and the next one's
};

// A bank for its statistics: the groups of a FilterBank in blocks, so that zeros around filters are
// passed over. Sums of the square's groups lie where the orbit's responses will:
//   group 0: i    group 1: count / 2 - i    group 2: count / 2 + i    group 3: count - i
template <class A>
struct StatisticsBank {
  Symmetry symmetry;
  // 1 where the square's centre lies half a pixel beyond the middle, as MonoHair's: the first row
  // and column, which have no images under it, follow the folded values as they are.
  int64_t shift;
  int64_t size, count;
  const FilterBlock<A>* blocks;
  int64_t num_blocks;
  const A* positions;  // of each filter on the circle, in steps between filters
  bool spread;         // or the variance
  A eps;
};

// Elements of `scratch` that statistics_tile needs: mirrored windows, folded values and responses,
// for two of the longest vectors.
inline int64_t statistics_scratch_elements(int64_t size, int64_t count) {
  constexpr int64_t kMostLanes = 16;
  return 2 * kMostLanes * ((kTileRows + size - 1) * size + size * size / 2 + size + count);
}

// Elements of `scratch` that filter_tile needs: the mirrored window and the filters' sums, for the
// longest vectors.
inline int64_t scratch_elements(int64_t size, int64_t count) {
  constexpr int64_t kMostLanes = 16, kMostSums = 18;
  return kMostLanes * ((kTileRows + size - 1) * size + count + kMostSums);
}

#define TORCHEXT_GABOR_ORIENTATION_KERNELS                                                         \
  /* Copies the part of a map that begins at (row, column), zero outside the map. */               \
  template <class T, class A>                                                                      \
  void fill_tile(const T* map, int64_t height, int64_t width, int64_t row, int64_t column,         \
                 int64_t rows, int64_t columns, A* tile, int64_t stride);                          \
  /* Index and response of the best filter, both [kTileRows][kTileColumns]. */                     \
  template <class A>                                                                               \
  void filter_tile(const FilterBank<A>& bank, const A* window, int64_t rows, bool absolute,        \
                   A* scratch, int32_t* index, A* response);                                       \
  /* Filters of a FilterBlock, at most. */                                                         \
  int64_t block_filters();                                                                         \
  /* Index, strength and confidence, each [kTileRows][kTileColumns]. */                            \
  template <class A>                                                                               \
  void statistics_tile(const StatisticsBank<A>& bank, const A* window, int64_t rows, A* scratch,   \
                       int32_t* index, A* strength, A* confidence);                                \
  /* out(q) = sum over taps t of gradient(q + t) * table[t][index(q + t)]. */                      \
  template <class A>                                                                               \
  void image_gradient_tile(const A* gradient, const int32_t* index, int64_t size, const A* table,  \
                           int64_t pitch, int64_t rows, A* out);                                   \
  /* sums[index(p)] += gradient(p) * window of p, over the tile; rows of sums are `pitch` long. */ \
  template <class A>                                                                               \
  void bank_gradient_tile(const A* gradient, const int32_t* index, const A* window, int64_t size,  \
                          int64_t pitch, A* sums);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_GABOR_ORIENTATION_KERNELS)

}  // namespace torchext
