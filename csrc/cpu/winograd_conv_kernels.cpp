// Winograd's convolutions F(4x4, 3x3) and F(4x4, 2x2), vectorised over tiles (compiled once per
// SIMD level, see simd.h).
#include "winograd_conv_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

using Vector = vector_t<float>;
constexpr int64_t kLanes = vector_lanes<float>;
constexpr int64_t kVectors = 2;
constexpr int64_t kTiles = kVectors * kLanes;
// Rows of sums that are kept in registers at a time: 16 vectors of the 32 of AVX-512, 8 of 16.
constexpr int64_t kRows = kVectorBytes == 64 ? kWinogradPanel : kWinogradPanel / 2;
// Between the products of a block: not a multiple of a page, whose lines would share a cache set.
constexpr int64_t kSkew = 16;

inline void store_vector(Vector value, float* to) {
  memcpy(to, &value, sizeof value);
}

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The transforms of a row or column, by the kernel's size: `input` is B^T d, `weight` G g, `output`
// A^T m; for the weight's gradient `gradient` is A y and `sums` G^T s.
template <int64_t kernel>
struct Form;

template <>
struct Form<3> {  // interpolation points 0, 1, -1, 2, -2 and infinity
  static constexpr int64_t kInput = 6, kProducts = kInput * kInput;

  template <class V>
  static void input(const V* d, V* out) {
    const V even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    const V outer = d[4] - d[2], inner = 2.0f * (d[3] - d[1]);
    out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = outer + inner;
    out[4] = outer - inner;
    out[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  template <class V>
  static void weight(const V* g, V* out) {
    const V sixth = (g[0] + g[2]) * (-1.0f / 6), middle = g[1] * (-1.0f / 6);
    const V far = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), between = g[1] * (1.0f / 12);
    out[0] = g[0] * 0.25f;
    out[1] = sixth + middle;
    out[2] = sixth - middle;
    out[3] = far + between;
    out[4] = far - between;
    out[5] = g[2];
  }
  template <class V>
  static void output(const V* m, V* out) {
    const V near = m[1] + m[2], turned = m[1] - m[2], far = m[3] + m[4], twisted = m[3] - m[4];
    out[0] = m[0] + near + far;
    out[1] = turned + 2.0f * twisted;
    out[2] = near + 4.0f * far;
    out[3] = turned + 8.0f * twisted + m[5];
  }
  template <class V>
  static void gradient(const V* y, V* out) {
    const V even = y[0] + y[2], odd = y[1] + y[3];
    const V far = y[0] + 4.0f * y[2], twisted = 2.0f * y[1] + 8.0f * y[3];
    out[0] = y[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = far + twisted;
    out[4] = far - twisted;
    out[5] = y[3];
  }
  template <class V>
  static void sums(const V* s, V* out) {
    const V near = (s[1] + s[2]) * (1.0f / 6), far = s[3] + s[4];
    out[0] = s[0] * 0.25f - near + far * (1.0f / 24);
    out[1] = (s[2] - s[1]) * (1.0f / 6) + (s[3] - s[4]) * (1.0f / 12);
    out[2] = far * (1.0f / 6) - near + s[5];
  }
};

template <>
struct Form<2> {  // interpolation points 0, 1, -1, 2 and infinity
  static constexpr int64_t kInput = 5, kProducts = kInput * kInput;

  template <class V>
  static void input(const V* d, V* out) {
    const V inner = d[3] - d[1];
    out[0] = 2.0f * (d[0] - d[2]) + inner;
    out[1] = d[3] - d[2] - 2.0f * d[1];
    out[2] = d[3] - 3.0f * d[2] + 2.0f * d[1];
    out[3] = inner;
    out[4] = d[4] - d[2] - 2.0f * inner;
  }
  template <class V>
  static void weight(const V* g, V* out) {
    out[0] = g[0] * 0.5f;
    out[1] = (g[0] + g[1]) * -0.5f;
    out[2] = (g[1] - g[0]) * (1.0f / 6);
    out[3] = (g[0] + 2.0f * g[1]) * (1.0f / 6);
    out[4] = g[1];
  }
  template <class V>
  static void output(const V* m, V* out) {
    const V near = m[1] + m[2], turned = m[1] - m[2];
    out[0] = m[0] + near + m[3];
    out[1] = turned + 2.0f * m[3];
    out[2] = near + 4.0f * m[3];
    out[3] = turned + 8.0f * m[3] + m[4];
  }
  template <class V>
  static void gradient(const V* y, V* out) {
    const V even = y[0] + y[2], odd = y[1] + y[3];
    out[0] = y[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = y[0] + 2.0f * y[1] + 4.0f * y[2] + 8.0f * y[3];
    out[4] = y[3];
  }
  template <class V>
  static void sums(const V* s, V* out) {
    const V sixth = (s[3] - s[2]) * (1.0f / 6);
    out[0] = (s[0] - s[1]) * 0.5f + sixth;
    out[1] = (s[2] + 2.0f * s[3]) * (1.0f / 6) - s[1] * 0.5f + s[4];
  }
};

// Neighbours in one row of tiles of a sub-grid, of one image: what follows the first `done` tiles.
struct Run {
  int64_t image, phase_row, phase_column, row, column, count;

  Run(const WinogradShape& shape, const WinogradTiles& tiles, int64_t done) {
    const int32_t* list = tiles.list ? tiles.list + tiles.first + done : nullptr;
    int64_t tile = list ? list[0] : tiles.first + done;
    column = tile % shape.tile_columns;
    tile /= shape.tile_columns;
    row = tile % shape.tile_rows;
    tile /= shape.tile_rows;
    phase_column = tile % shape.dilation[1];
    tile /= shape.dilation[1];
    phase_row = tile % shape.dilation[0];
    image = tile / shape.dilation[0];
    count = smaller(tiles.count - done, shape.tile_columns - column);
    if (list != nullptr)
      for (int64_t i = 1; i < count; ++i)
        if (list[i] != list[0] + i) count = i;
  }
};

// values[i] = row[first + i * step] where that is inside of the row, else 0.
inline void take(const float* row, int64_t first, int64_t step, int64_t width, int64_t count,
                 float* __restrict values) {
  // The first index that is inside, and the first behind it that is not.
  int64_t begin = first < 0 ? (-first + step - 1) / step : 0;
  int64_t end = first < width ? (width - 1 - first) / step + 1 : 0;
  begin = smaller(begin, count);
  end = end < begin ? begin : smaller(end, count);
  for (int64_t i = 0; i < begin; ++i) values[i] = 0;
  if (step == 1)
    memcpy(values + begin, row + first + begin, (end - begin) * sizeof(float));
  else
    for (int64_t i = begin; i < end; ++i) values[i] = row[first + i * step];
  for (int64_t i = end; i < count; ++i) values[i] = 0;
}

// The row of x that is row r of a run's inputs; -1 outside of x.
inline int64_t input_row(const WinogradShape& shape, const Run& run, int64_t r) {
  const int64_t row = shape.dilation[0] * (4 * run.row + r) + run.phase_row - shape.padding[0];
  return row < shape.height && row >= 0 ? row : -1;
}

// Up to kTiles tiles of one channel: every fourth value each, as the lanes want them.
struct Gathered {
  alignas(64) float values[Form<3>::kInput][Form<3>::kInput][kTiles + kLanes];
};

// A row of inputs (4 count + kernel - 1 values) to the columns of the tiles.
template <int64_t kernel>
inline void deal(const float* __restrict values, int64_t count,
                 float (*__restrict columns)[kTiles + kLanes], int64_t first) {
  float* __restrict a = columns[0] + first;
  float* __restrict b = columns[1] + first;
  float* __restrict c = columns[2] + first;
  float* __restrict d = columns[3] + first;
  for (int64_t t = 0; t < count; ++t) {
    a[t] = values[4 * t];
    b[t] = values[4 * t + 1];
    c[t] = values[4 * t + 2];
    d[t] = values[4 * t + 3];
  }
  // A tile's last columns are its neighbour's first.
  for (int64_t j = 0; j < kernel - 1; ++j) {
    memcpy(columns[4 + j] + first, columns[j] + first + 1, (count - 1) * sizeof(float));
    columns[4 + j][first + count - 1] = values[4 * count + j];
  }
}

// Lanes of a, then of b, in the order of `from`.
inline Vector pick(Vector a, Vector b, const int32_t* from) {
#if defined(__clang__)
  float lanes[2 * kLanes], picked[kLanes];
  store_vector(a, lanes);
  store_vector(b, lanes + kLanes);
  for (int64_t l = 0; l < kLanes; ++l) picked[l] = lanes[from[l]];
  return load_vector(picked);
#else
  typedef int32_t Order __attribute__((vector_size(kVectorBytes)));
  Order order;
  memcpy(&order, from, sizeof order);
  return __builtin_shuffle(a, b, order);
#endif
}

// As many vectors as each has lanes: lane l of vector i becomes lane i of vector l. Squares of
// `width` change places, wider ones each time.
inline void transpose(Vector* values) {
  for (int64_t width = 1; width < kLanes; width *= 2) {
    int32_t near[kLanes], far[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      near[l] = static_cast<int32_t>((l & ~width) + (l & width ? kLanes : 0));
      far[l] = static_cast<int32_t>(near[l] + width);
    }
    for (int64_t i = 0; i < kLanes; ++i)
      if (!(i & width)) {
        const Vector a = values[i], b = values[i + width];
        values[i] = pick(a, b, near);
        values[i + width] = pick(a, b, far);
      }
  }
}

// sums[m][t] += over channels of panel[c][m] * transformed[c][t], of some vectors of tiles.
template <int64_t vectors>
inline void multiply(const float* __restrict panel, const float* __restrict transformed,
                     int64_t channels, float* __restrict sums) {
  for (int64_t rows = 0; rows < kWinogradPanel; rows += kRows) {
    Vector total[kRows][vectors];
    for (int64_t m = 0; m < kRows; ++m)
      for (int64_t v = 0; v < vectors; ++v) total[m][v] = Vector{};
    for (int64_t c = 0; c < channels; ++c) {
      Vector values[vectors];
      for (int64_t v = 0; v < vectors; ++v)
        values[v] = load_vector(transformed + c * kTiles + v * kLanes);
      for (int64_t m = 0; m < kRows; ++m) {
        const float weight = panel[c * kWinogradPanel + rows + m];
        for (int64_t v = 0; v < vectors; ++v) total[m][v] += weight * values[v];
      }
    }
    for (int64_t m = 0; m < kRows; ++m)
      for (int64_t v = 0; v < vectors; ++v)
        store_vector(total[m][v], sums + (rows + m) * kTiles + v * kLanes);
  }
}

// Of one output channel, the four rows of pixels of a block's tiles: rows[r][4 t + j].
template <int64_t kernel>
inline void untransform(const float* sums, int64_t count, float (*__restrict rows)[4 * kTiles]) {
  using F = Form<kernel>;
  for (int64_t t = 0; t < count; t += kLanes) {
    Vector partial[kWinogradOutput][F::kInput];
    for (int64_t j = 0; j < F::kInput; ++j) {
      Vector column[F::kInput], out[kWinogradOutput];
      for (int64_t r = 0; r < F::kInput; ++r)
        column[r] = load_vector(sums + (r * F::kInput + j) * kWinogradPanel * kTiles + t);
      F::output(column, out);
      for (int64_t r = 0; r < kWinogradOutput; ++r) partial[r][j] = out[r];
    }
    for (int64_t r = 0; r < kWinogradOutput; ++r) {
      Vector out[kWinogradOutput];
      F::output(partial[r], out);
      float lanes[kWinogradOutput][kLanes];
      for (int64_t j = 0; j < kWinogradOutput; ++j) store_vector(out[j], lanes[j]);
      float* __restrict pixels = rows[r] + 4 * t;
      for (int64_t l = 0; l < kLanes; ++l) {
        pixels[4 * l] = lanes[0][l];
        pixels[4 * l + 1] = lanes[1][l];
        pixels[4 * l + 2] = lanes[2][l];
        pixels[4 * l + 3] = lanes[3][l];
      }
    }
  }
}

// Pixels of a row of output channel c, `step` apart, through what follows the sums.
inline void finish(const float* __restrict sums, int64_t count, int64_t step, const float* scale,
                   const float* updated, int64_t c, const ChannelEpilogue<float>& epilogue,
                   float* y) {
  if (scale == nullptr) {
    const float bias = epilogue.bias ? epilogue.bias[c] : 0.0f;
    for (int64_t i = 0; i < count; ++i) y[i * step] = sums[i] + bias;
  } else if (step == 1) {
    epilogue_plane(sums, scale, updated, count, c, epilogue, y);
  } else {
    float of_scale[4 * kTiles], of_updated[4 * kTiles], out[4 * kTiles];
    take(scale, 0, step, count * step, count, of_scale);
    take(updated, 0, step, count * step, count, of_updated);
    epilogue_plane(sums, of_scale, of_updated, count, c, epilogue, out);
    for (int64_t i = 0; i < count; ++i) y[i * step] = out[i];
  }
}

// The rows of `untransform` to their places in channel c of y.
inline void write(const WinogradShape& shape, const float (*rows)[4 * kTiles],
                  const WinogradTail& tail, const WinogradTiles& tiles, int64_t c, float* y) {
  const int64_t plane = shape.out_height * shape.out_width, d = shape.dilation[1];
  for (int64_t done = 0; done < tiles.count;) {
    const Run run(shape, tiles, done);
    const int64_t first = d * 4 * run.column + run.phase_column;
    const int64_t inside = first < shape.out_width ? (shape.out_width - 1 - first) / d + 1 : 0;
    const int64_t pixels = smaller(4 * run.count, inside);
    for (int64_t r = 0; r < kWinogradOutput && pixels > 0; ++r) {
      const int64_t row = shape.dilation[0] * (4 * run.row + r) + run.phase_row;
      if (row >= shape.out_height) break;
      const int64_t at = row * shape.out_width + first;
      const int64_t in_maps = run.image * tail.image_step + at;
      finish(rows[r] + 4 * done, pixels, d, tail.scale ? tail.scale + in_maps : nullptr,
             tail.scale ? tail.updated + in_maps : nullptr, c, tail.epilogue,
             y + (run.image * shape.out_channels + c) * plane + at);
    }
    done += run.count;
  }
}

template <int64_t kernel>
inline void of_weight(const float* weight, int64_t out_step, int64_t in_step, bool reversed,
                      int64_t outs, int64_t ins, float* panel) {
  using F = Form<kernel>;
  typedef float Outs __attribute__((vector_size(4 * kWinogradPanel)));
  for (int64_t i = 0; i < ins; ++i) {
    float taps[kernel * kernel][kWinogradPanel] = {};
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t tap = 0; tap < kernel * kernel; ++tap)
        taps[reversed ? kernel * kernel - 1 - tap : tap][o] =
            weight[o * out_step + i * in_step + tap];
    Outs rows[F::kInput][kernel];
    for (int64_t column = 0; column < kernel; ++column) {
      Outs g[kernel], out[F::kInput];
      for (int64_t row = 0; row < kernel; ++row)
        memcpy(&g[row], taps[kernel * row + column], sizeof g[row]);
      F::weight(g, out);
      for (int64_t r = 0; r < F::kInput; ++r) rows[r][column] = out[r];
    }
    for (int64_t r = 0; r < F::kInput; ++r) {
      Outs out[F::kInput];
      F::weight(rows[r], out);
      for (int64_t j = 0; j < F::kInput; ++j)
        memcpy(panel + ((r * F::kInput + j) * ins + i) * kWinogradPanel, &out[j], sizeof out[j]);
    }
  }
}

template <int64_t kernel>
inline void of_input(const WinogradShape& shape, const float* x, const float* mask,
                     int64_t mask_step, const WinogradTiles& tiles, int64_t first_channel,
                     int64_t end_channel, int64_t product_step, int64_t channel_step,
                     float* transformed) {
  using F = Form<kernel>;
  const int64_t plane = shape.height * shape.width;
  const int64_t d = shape.dilation[1];
  Gathered gathered;
  memset(&gathered, 0, sizeof gathered);
  float values[4 * kTiles + 2];
  // The mask's rows, of all channels alike; a run has two values more than its tiles' own.
  float known[F::kInput][6 * kTiles];
  if (mask != nullptr)
    for (int64_t done = 0, at = 0; done < tiles.count;) {
      const Run run(shape, tiles, done);
      const int64_t left = d * 4 * run.column + run.phase_column - shape.padding[1];
      for (int64_t r = 0; r < F::kInput; ++r) {
        const int64_t row = input_row(shape, run, r);
        if (row >= 0)
          take(mask + run.image * mask_step + row * shape.width, left, d, shape.width,
               4 * run.count + kernel - 1, known[r] + at);
      }
      done += run.count;
      at += 4 * run.count + kernel - 1;
    }
  for (int64_t c = first_channel; c < end_channel; ++c) {
    for (int64_t done = 0, at = 0; done < tiles.count;) {
      const Run run(shape, tiles, done);
      const int64_t length = 4 * run.count + kernel - 1;
      const float* image = x + (run.image * shape.channels + c) * plane;
      const int64_t left = d * 4 * run.column + run.phase_column - shape.padding[1];
      const bool inside = d == 1 && left >= 0 && left + length <= shape.width;
      for (int64_t r = 0; r < F::kInput; ++r) {
        const int64_t row = input_row(shape, run, r);
        if (row < 0) {
          for (int64_t j = 0; j < F::kInput; ++j)
            memset(gathered.values[r][j] + done, 0, run.count * sizeof(float));
          continue;
        }
        const float* from = image + row * shape.width;
        // Short rows of far planes: nothing else would have them here when the next channel is due.
        for (int64_t i = 0; i < d * length; i += 16) __builtin_prefetch(from + left + plane + i);
        if (inside && mask == nullptr) {
          deal<kernel>(from + left, run.count, gathered.values[r], done);
          continue;
        }
        take(from, left, d, shape.width, length, values);
        if (mask != nullptr) {
          const float* __restrict k = known[r] + at;
#pragma omp simd
          for (int64_t i = 0; i < length; ++i) values[i] = k[i] == 0.0f ? 0.0f : values[i] * k[i];
        }
        deal<kernel>(values, run.count, gathered.values[r], done);
      }
      done += run.count;
      at += length;
    }
    for (int64_t t = 0; t < tiles.count; t += kLanes) {
      Vector rows[F::kInput][F::kInput];
      for (int64_t r = 0; r < F::kInput; ++r) {
        Vector column[F::kInput];
        for (int64_t j = 0; j < F::kInput; ++j) column[j] = load_vector(gathered.values[r][j] + t);
        F::input(column, rows[r]);
      }
      for (int64_t j = 0; j < F::kInput; ++j) {
        Vector column[F::kInput], out[F::kInput];
        for (int64_t r = 0; r < F::kInput; ++r) column[r] = rows[r][j];
        F::input(column, out);
        for (int64_t r = 0; r < F::kInput; ++r)
          store_vector(out[r],
                       transformed + (r * F::kInput + j) * product_step + c * channel_step + t);
      }
    }
  }
}

template <int64_t kernel>
inline void of_output(const WinogradShape& shape, const float* transformed, const float* panel,
                      const WinogradTail& tail, const WinogradTiles& tiles, int64_t first_channel,
                      float* y) {
  using F = Form<kernel>;
  alignas(64) float sums[F::kProducts * kWinogradPanel * kTiles];
  alignas(64) float rows[kWinogradOutput][4 * kTiles];
  for (int64_t k = 0; k < F::kProducts; ++k) {
    const float* weights = panel + k * shape.channels * kWinogradPanel;
    const float* values = transformed + k * winograd_step(shape.channels);
    float* to = sums + k * kWinogradPanel * kTiles;
    if (tiles.count > kLanes)
      multiply<kVectors>(weights, values, shape.channels, to);
    else
      multiply<1>(weights, values, shape.channels, to);
  }
  const int64_t channels = smaller(kWinogradPanel, shape.out_channels - first_channel);
  for (int64_t m = 0; m < channels; ++m) {
    untransform<kernel>(sums + m * kTiles, tiles.count, rows);
    write(shape, rows, tail, tiles, first_channel + m, y);
  }
}

template <int64_t kernel>
inline void of_gradient(const WinogradShape& shape, const float* grad, const WinogradTiles& tiles,
                        int64_t c, int64_t end, int64_t product_step, int64_t channel_step,
                        float* transformed) {
  using F = Form<kernel>;
  const int64_t plane = shape.out_height * shape.out_width, d = shape.dilation[1];
  Gathered gathered;
  memset(&gathered, 0, sizeof gathered);
  float values[4 * kTiles + 2];
  for (; c < end; ++c) {
    for (int64_t done = 0; done < tiles.count;) {
      const Run run(shape, tiles, done);
      const float* image = grad + (run.image * shape.out_channels + c) * plane;
      const int64_t left = d * 4 * run.column + run.phase_column;
      for (int64_t r = 0; r < kWinogradOutput; ++r) {
        const int64_t row = shape.dilation[0] * (4 * run.row + r) + run.phase_row;
        const int64_t width = row < shape.out_height ? shape.out_width : 0;  // 0 takes nothing
        take(image + row * shape.out_width, left, d, width, 4 * run.count + 2, values);
        deal<kernel>(values, run.count, gathered.values[r], done);
      }
      done += run.count;
    }
    for (int64_t t = 0; t < tiles.count; t += kLanes) {
      Vector rows[kWinogradOutput][F::kInput];
      for (int64_t r = 0; r < kWinogradOutput; ++r) {
        Vector column[kWinogradOutput];
        for (int64_t j = 0; j < kWinogradOutput; ++j)
          column[j] = load_vector(gathered.values[r][j] + t);
        F::gradient(column, rows[r]);
      }
      for (int64_t j = 0; j < F::kInput; ++j) {
        Vector column[kWinogradOutput], out[F::kInput];
        for (int64_t r = 0; r < kWinogradOutput; ++r) column[r] = rows[r][j];
        F::gradient(column, out);
        for (int64_t r = 0; r < F::kInput; ++r)
          store_vector(out[r],
                       transformed + (r * F::kInput + j) * product_step + c * channel_step + t);
      }
    }
  }
}

template <int64_t kernel>
inline void of_weight_gradient(const float* sums, int64_t outs, int64_t ins, int64_t o, int64_t end,
                               float* grad_weight) {
  using F = Form<kernel>;
  const int64_t product = outs * ins;
  for (; o < end; ++o)
    for (int64_t first = 0; first < ins; first += kLanes) {
      const int64_t count = smaller(kLanes, ins - first);
      Vector rows[F::kInput][kernel];
      for (int64_t j = 0; j < F::kInput; ++j) {
        Vector column[F::kInput], out[kernel];
        for (int64_t r = 0; r < F::kInput; ++r) {
          float lanes[kLanes] = {};
          memcpy(lanes, sums + (r * F::kInput + j) * product + o * ins + first,
                 count * sizeof(float));
          column[r] = load_vector(lanes);
        }
        F::sums(column, out);
        for (int64_t r = 0; r < kernel; ++r) rows[j][r] = out[r];
      }
      for (int64_t r = 0; r < kernel; ++r) {
        Vector row[F::kInput], out[kernel];
        for (int64_t j = 0; j < F::kInput; ++j) row[j] = rows[j][r];
        F::sums(row, out);
        for (int64_t column = 0; column < kernel; ++column) {
          float lanes[kLanes];
          store_vector(out[column], lanes);
          for (int64_t l = 0; l < count; ++l)
            grad_weight[(o * ins + first + l) * kernel * kernel + kernel * r + column] = lanes[l];
        }
      }
    }
}

}  // namespace

int64_t winograd_tiles() {
  return kTiles;
}

int64_t winograd_step(int64_t channels) {
  return channels * kTiles + kSkew;
}

void winograd_weight(int64_t kernel, const float* weight, int64_t out_step, int64_t in_step,
                     bool reversed, int64_t outs, int64_t ins, float* panel) {
  const auto transform = kernel == 3 ? of_weight<3> : of_weight<2>;
  transform(weight, out_step, in_step, reversed, outs, ins, panel);
}

void winograd_input(const WinogradShape& shape, const float* x, const float* mask,
                    int64_t mask_step, const WinogradTiles& tiles, int64_t first_channel,
                    int64_t end_channel, int64_t product_step, int64_t channel_step,
                    float* transformed) {
  const auto transform = shape.kernel == 3 ? of_input<3> : of_input<2>;
  transform(shape, x, mask, mask_step, tiles, first_channel, end_channel, product_step,
            channel_step, transformed);
}

void winograd_output(const WinogradShape& shape, const float* transformed, const float* panel,
                     const WinogradTail& tail, const WinogradTiles& tiles, int64_t first_channel,
                     float* y) {
  const auto multiply_and_transform = shape.kernel == 3 ? of_output<3> : of_output<2>;
  multiply_and_transform(shape, transformed, panel, tail, tiles, first_channel, y);
}

void winograd_gradient(const WinogradShape& shape, const float* grad, const WinogradTiles& tiles,
                       int64_t c, int64_t end, int64_t product_step, int64_t channel_step,
                       float* transformed) {
  const auto transform = shape.kernel == 3 ? of_gradient<3> : of_gradient<2>;
  transform(shape, grad, tiles, c, end, product_step, channel_step, transformed);
}

void winograd_weight_gradient(int64_t kernel, const float* sums, int64_t outs, int64_t ins,
                              int64_t o, int64_t end, float* grad_weight) {
  const auto transform = kernel == 3 ? of_weight_gradient<3> : of_weight_gradient<2>;
  transform(sums, outs, ins, o, end, grad_weight);
}

int64_t winograd_correlate_scratch(int64_t tiles) {
  return (tiles + kLanes) * kVectors * kLanes;
}

void winograd_correlate(const float* gradient, const float* input, int64_t channel_step,
                        int64_t tiles, int64_t outs, int64_t i, int64_t end, int64_t ins,
                        float* scratch, float* sums) {
  constexpr int64_t columns = kVectors * kLanes;
  for (; i < end; i += columns) {
    const int64_t count = smaller(columns, end - i);
    // Tile by tile the channels, zeros behind the last.
    for (int64_t v = 0; v < kVectors; ++v)
      for (int64_t t = 0; t < tiles; t += kLanes) {
        Vector square[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          const int64_t channel = v * kLanes + l;
          square[l] =
              channel < count ? load_vector(input + (i + channel) * channel_step + t) : Vector{};
        }
        transpose(square);
        for (int64_t l = 0; l < kLanes; ++l)
          store_vector(square[l], scratch + (t + l) * columns + v * kLanes);
      }
    for (int64_t o = 0; o < outs; o += kRows) {
      // Behind the last row the last is taken again, and not kept.
      const float* rows[kRows];
      for (int64_t m = 0; m < kRows; ++m)
        rows[m] = gradient + smaller(o + m, outs - 1) * channel_step;
      Vector total[kRows][kVectors];
      for (int64_t m = 0; m < kRows; ++m)
        for (int64_t v = 0; v < kVectors; ++v) total[m][v] = Vector{};
      for (int64_t t = 0; t < tiles; ++t) {
        Vector values[kVectors];
        for (int64_t v = 0; v < kVectors; ++v)
          values[v] = load_vector(scratch + t * columns + v * kLanes);
        for (int64_t m = 0; m < kRows; ++m)
          for (int64_t v = 0; v < kVectors; ++v) total[m][v] += rows[m][t] * values[v];
      }
      float found[kRows][columns];
      for (int64_t m = 0; m < kRows; ++m)
        for (int64_t v = 0; v < kVectors; ++v) store_vector(total[m][v], found[m] + v * kLanes);
      for (int64_t m = 0; m < smaller(kRows, outs - o); ++m) {
        float* __restrict to = sums + (o + m) * ins + i;
        for (int64_t n = 0; n < count; ++n) to[n] += found[m][n];
      }
    }
  }
}

void winograd_fill(const WinogradShape& shape, const WinogradTail& tail, const WinogradTiles& tiles,
                   int64_t c, float* y) {
  float rows[kWinogradOutput][4 * kTiles] = {};
  for (int64_t done = 0; done < tiles.count; done += kTiles)
    write(shape, rows, tail, {tiles.first + done, smaller(kTiles, tiles.count - done), tiles.list},
          c, y);
}

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
