// Modulated normalisation on the CPU: SPADE, SPDNorm, AdaIN, pixel norm (torchext.modulated_norm).
//
//   y = leaky((x - mean) * rstd * scale + shift),  scale and shift from gamma, beta and weight
//
// Passes over memory (T = one tensor; the maps gamma and beta count as tensors where they are
// full).
//   Statistics per channel, contiguous: a thread takes a whole channel, so statistics and
//   application share the cache: forward reads x, gamma and beta and writes y, 4T when a channel
//   fits (the floor; 5T if not); backward reads grad, x and gamma and writes three gradients, 6T
//   when it fits (9T if not); 5T (8T) without an activation and a weight, where beta's gradient is
//   grad. Channels last, and gradients of maps that all channels share: the higher figures, over
//   ranges of pixels.
//   Statistics per pixel: a thread takes a range of pixels with all their channels and keeps it in
//   the cache: 4T and 6T (5T), the floors.
//
// The split of the work never depends on the number of threads, so neither does the result. The
// statistics per channel are region normalisation's, with one region.
#include "../modulated_norm.h"

#include <cmath>

#include "modulated_norm_kernels.h"
#include "region_norm_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

// Elements of a range of pixels with all their channels: 256 KiB of float32, kept in the cache.
constexpr int64_t kRangeElements = 65536;

// The images that share statistics, and how many values a mean is taken over.
int64_t group(const Problem& problem, int64_t image) {
  return problem.per_image() ? image : 0;
}
int64_t first_image(const Problem& problem, int64_t group) {
  return problem.per_image() ? group : 0;
}
int64_t last_image(const Problem& problem, int64_t group) {
  return problem.per_image() ? group + 1 : problem.images;
}
int64_t group_size(const Problem& problem) {
  return problem.per_pixel() ? problem.channels
                             : problem.pixels * (problem.per_image() ? 1 : problem.images);
}

// The elements of one row: the first one's image, channel and pixel, and where it lies. `local` is
// the pixel within the range that is being worked on.
struct Place {
  int64_t image, channel, pixel, local, offset;
};

template <class T>
struct Map {
  using A = accumulate_t<T>;
  Extent extent = Extent::kAbsent;
  const T* elements = nullptr;
  const A* values = nullptr;
  // Of a table: each pixel's row, and the distances of rows and of columns.
  const int32_t* index = nullptr;
  int64_t row_stride = 0, column_stride = 0;

  RowInput<T> row(const Problem& problem, const Place& at) const {
    RowInput<T> input;
    switch (extent) {
      case Extent::kAbsent:
        break;
      case Extent::kElement:
        input.elements = elements + at.offset;
        break;
      case Extent::kPixel:
        input.values = values + at.image * problem.pixels + at.pixel;
        input.along = !problem.channels_last;
        break;
      case Extent::kChannel:
        input.values = values + at.image * problem.channels + at.channel;
        input.along = problem.channels_last;
        break;
      case Extent::kGroupChannel:
        input.values = values + group(problem, at.image) * problem.channels + at.channel;
        input.along = problem.channels_last;
        break;
      case Extent::kTable: {
        const int32_t* rows = index + at.image * problem.pixels + at.pixel;
        input.values = values + at.channel * column_stride;
        if (problem.channels_last) {
          input.values += *rows * row_stride;
          input.along = true;
        } else {
          input.index = rows;
          input.stride = row_stride;
        }
        break;
      }
    }
    return input;
  }
};

template <class T>
Map<T> elements_of(const T* elements) {
  Map<T> map;
  map.extent = Extent::kElement;
  map.elements = elements;
  return map;
}
template <class T>
Map<T> values_of(Extent extent, const accumulate_t<T>* values) {
  Map<T> map;
  if (values == nullptr) return map;
  map.extent = extent;
  map.values = values;
  return map;
}

template <class T>
Map<T> map_of(const GivenMap& given, const MaybeTensor& index) {
  using A = accumulate_t<T>;
  if (given.extent == Extent::kElement) return elements_of(data<const T>(given.tensor));
  Map<T> map = values_of<T>(given.extent, data<const A>(given.tensor));
  if (given.extent == Extent::kTable) {
    map.index = data<const int32_t>(index);
    map.row_stride = given.tensor->stride(0);
    map.column_stride = given.tensor->stride(1);
  }
  return map;
}

// A map that is being written; of a table every element's share of its row. Maps per pixel are
// added up in place; maps per channel in `values` (C) of the range that is being worked on.
template <class T>
struct OutputMap {
  using A = accumulate_t<T>;
  Extent extent = Extent::kAbsent;
  T* elements = nullptr;
  A* values = nullptr;

  RowOutput<T> row(const Problem& problem, const Place& at) const {
    RowOutput<T> output;
    if (extent == Extent::kElement || extent == Extent::kTable) {
      output.elements = elements + at.offset;
    } else if (extent == Extent::kPixel) {
      output.values = values + at.image * problem.pixels + at.pixel;
      output.along = !problem.channels_last;
    } else if (extent != Extent::kAbsent) {
      output.values = values + at.channel;
      output.along = problem.channels_last;
    }
    return output;
  }
};

// Calls body(place, count, offset) for the rows of some pixels with all their channels: at most
// kTile pixels if contiguous, one if channels last. `offset` counts elements in the rows' order.
template <class Body>
void for_each_row(const Problem& problem, int64_t image, int64_t pixel, int64_t local,
                  int64_t pixels, Body body) {
  const int64_t C = problem.channels, P = problem.pixels;
  if (problem.channels_last)
    for (int64_t c = 0; c < C; c += kTile)
      body(Place{image, c, pixel, local, (image * P + pixel) * C + c}, std::min(kTile, C - c), c);
  else
    for (int64_t c = 0; c < C; ++c)
      body(Place{image, c, pixel, local, (image * C + c) * P + pixel}, pixels, c * pixels);
}

// The rows of one channel of a contiguous image.
template <class Body>
void for_each_row_of_plane(const Problem& problem, int64_t image, int64_t channel, Body body) {
  const int64_t plane = (image * problem.channels + channel) * problem.pixels;
  for (int64_t p = 0; p < problem.pixels; p += kTile)
    body(Place{image, channel, p, p, plane + p}, std::min(kTile, problem.pixels - p));
}

// Ranges of pixels of every image, each worked on with all its channels.
struct Ranges {
  int64_t length, per_image, count;

  explicit Ranges(const Problem& problem) {
    const int64_t fitting = kRangeElements / problem.channels;
    length = problem.channels_last
                 ? std::max<int64_t>(1, fitting)
                 : std::min<int64_t>(kTile, std::max<int64_t>(16, fitting / 16 * 16));
    per_image = (problem.pixels + length - 1) / length;
    count = problem.images * per_image;
  }
};
struct Range {
  int64_t index, image, begin, end;
};

// Runs body(range) over all ranges, in parallel; body is made anew by make() for every thread.
template <class Make>
void for_each_range(const Problem& problem, const Ranges& ranges, Make make) {
  parallel_for(0, ranges.count, 1, [&](int64_t begin, int64_t end) {
    auto body = make();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % ranges.per_image * ranges.length;
      body(Range{i, i / ranges.per_image, first, std::min(first + ranges.length, problem.pixels)});
    }
  });
}

// Calls body(first pixel, local, pixels) for the parts of a range that for_each_row takes.
template <class Body>
void for_each_part(const Problem& problem, const Range& range, Body body) {
  if (problem.channels_last)
    for (int64_t p = range.begin; p < range.end; ++p) body(p, p - range.begin, int64_t{1});
  else
    body(range.begin, int64_t{0}, range.end - range.begin);
}

// Runs body(group, channel) over all groups and channels, in parallel.
template <class Body>
void for_each_channel(const Problem& problem, Body body) {
  parallel_for(0, problem.groups() * problem.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
      body(unit / problem.channels, unit % problem.channels);
  });
}

// --- statistics ---------------------------------------------------------------------------------

// Every pixel in region 0: what region normalisation's moments are asked for.
class OneRegionPlane {
 public:
  explicit OneRegionPlane(int64_t pixels)
      : pixels_(pixels), first_((pixels + kTile - 1) / kTile + 1), present_(first_.size()) {
    for (size_t tile = 0; tile < first_.size(); ++tile) {
      first_[tile] = static_cast<int32_t>(tile);
      const int64_t begin = static_cast<int64_t>(tile) * kTile;
      present_[tile] = {0, static_cast<int32_t>(std::min(kTile, pixels - begin))};
    }
  }
  LabelPlane plane() const { return {nullptr, pixels_, first_.data(), present_.data()}; }

 private:
  int64_t pixels_;
  std::vector<int32_t> first_;
  std::vector<TileRegion> present_;
};

double rstd_of(double squares, int64_t count, bool unbiased, double eps) {
  const double values = static_cast<double>(std::max<int64_t>(count - unbiased, 1));
  // Rounding can leave the squares of a constant channel below zero.
  return 1.0 / std::sqrt((squares < 0 ? 0.0 : squares) / values + eps);
}

// Mean and rstd (groups, C) of a channels-last tensor.
template <class T>
void channels_last_statistics(const Problem& problem, const T* x, bool unbiased, double eps,
                              accumulate_t<T>* mean, accumulate_t<T>* rstd) {
  const int64_t C = problem.channels;
  const Ranges ranges(problem);
  const std::vector<uint8_t> labels(ranges.length);
  std::vector<int64_t> count(ranges.count);
  std::vector<double> means(ranges.count * C), squares(ranges.count * C);
  for_each_range(problem, ranges, [&] {
    return [&](const Range& range) {
      const int64_t i = range.index;
      TORCHEXT_AT_SIMD_LEVEL(pixels_moments<T>)(
          x + (range.image * problem.pixels + range.begin) * C, labels.data(),
          range.end - range.begin, C, 1, false, &count[i], &means[i * C], &squares[i * C]);
    };
  });
  std::vector<Moments> total(C);
  for (int64_t group = 0; group < problem.groups(); ++group) {
    std::fill(total.begin(), total.end(), Moments{});
    for (int64_t i = first_image(problem, group) * ranges.per_image;
         i < last_image(problem, group) * ranges.per_image; ++i)
      for (int64_t c = 0; c < C; ++c) {
        Moments& into = total[c];
        const double before = static_cast<double>(into.count);
        const double share = static_cast<double>(count[i]) / (before + count[i]);
        const double delta = means[i * C + c] - into.mean;
        into.mean += delta * share;
        into.squares += squares[i * C + c] + delta * delta * share * before;
        into.count += count[i];
      }
    for (int64_t c = 0; c < C; ++c) {
      mean[group * C + c] = static_cast<accumulate_t<T>>(total[c].mean);
      rstd[group * C + c] =
          static_cast<accumulate_t<T>>(rstd_of(total[c].squares, total[c].count, unbiased, eps));
    }
  }
}

// --- forward ------------------------------------------------------------------------------------

// The kernels of the SIMD level in use, found once: rows are too short to ask for each.
template <class T>
struct Kernels {
  decltype(&portable::modulate_row<T>) modulate = TORCHEXT_AT_SIMD_LEVEL(modulate_row<T>);
  decltype(&portable::gradient_row<T>) gradient = TORCHEXT_AT_SIMD_LEVEL(gradient_row<T>);
  decltype(&portable::input_gradient_row<T>) input_gradient =
      TORCHEXT_AT_SIMD_LEVEL(input_gradient_row<T>);
  decltype(&portable::channel_statistics_of_plane<T>) statistics_of_plane =
      TORCHEXT_AT_SIMD_LEVEL(channel_statistics_of_plane<T>);
  decltype(&portable::channel_statistics_of_pixel<T>) statistics_of_pixel =
      TORCHEXT_AT_SIMD_LEVEL(channel_statistics_of_pixel<T>);
};

template <class T>
struct Operands {
  using A = accumulate_t<T>;
  Kernels<T> kernels;
  Map<T> x, mean, rstd, gamma, beta, weight;
  Gain gain;
  A slope;

  Modulation<T> modulation(const Problem& problem, const Place& at) const {
    return {gamma.row(problem, at), beta.row(problem, at), weight.row(problem, at), gain, slope};
  }
};

template <class T>
Operands<T> operands_of(const Tensor& x, const Maps& maps) {
  Operands<T> operands;
  operands.x = elements_of(data<const T>(x));
  operands.gamma = map_of<T>(maps.gamma, maps.index);
  operands.beta = map_of<T>(maps.beta, maps.index);
  operands.weight = map_of<T>(maps.weight, std::nullopt);
  operands.gain = maps.gain;
  operands.slope = static_cast<accumulate_t<T>>(maps.slope);
  return operands;
}

template <class T>
void modulate(const Problem& problem, const Operands<T>& o, const RowInput<T>& x, const Place& at,
              int64_t count, T* y, int64_t next = 0) {
  o.kernels.modulate(x, o.mean.row(problem, at), o.rstd.row(problem, at), o.modulation(problem, at),
                     count, next, y + at.offset);
}

// Statistics per pixel: they and the result from one visit to a range.
template <class T>
void forward_per_pixel(const Problem& problem, const Operands<T>& o, bool unbiased, double eps,
                       accumulate_t<T>* mean, accumulate_t<T>* rstd, T* y) {
  using A = accumulate_t<T>;
  const int64_t C = problem.channels, P = problem.pixels;
  const bool centred = problem.statistics == Statistics::kPosition;
  const double divisor = static_cast<double>(std::max<int64_t>(C - unbiased, 1));
  const Ranges ranges(problem);
  for_each_range(problem, ranges, [&] {
    return [&, tile = std::vector<A>(problem.channels_last ? 0 : C * ranges.length),
            centre = std::vector<A>(ranges.length)](const Range& range) mutable {
      const T* x = o.x.elements;
      const int64_t map = range.image * P + range.begin, pixels = range.end - range.begin;
      const Kernels<T>& kernels = o.kernels;
      if (problem.channels_last)
        for (int64_t p = 0; p < pixels; ++p)
          kernels.statistics_of_pixel(x + (map + p) * C, C, centred, divisor, eps, &centre[p],
                                      rstd + map + p);
      else
        kernels.statistics_of_plane(x + range.image * C * P + range.begin, pixels, C, P, centred,
                                    divisor, eps, tile.data(), centre.data(), rstd + map);
      if (centred) std::copy_n(centre.data(), pixels, mean + map);
      for_each_part(problem, range, [&](int64_t pixel, int64_t local, int64_t count) {
        for_each_row(problem, range.image, pixel, local, count,
                     [&](const Place& at, int64_t length, int64_t offset) {
                       RowInput<T> row = o.x.row(problem, at);
                       const bool more = !problem.channels_last && at.channel + 1 < C;
                       if (!problem.channels_last) row = {nullptr, tile.data() + offset, true};
                       modulate(problem, o, row, at, length, y, more ? P : 0);
                     });
      });
    };
  });
}

// Statistics per channel, or none to take, of a contiguous tensor.
template <class T>
void forward_by_planes(const Problem& problem, const Operands<T>& o, bool unbiased, double eps,
                       accumulate_t<T>* mean, accumulate_t<T>* rstd, T* y) {
  using A = accumulate_t<T>;
  const OneRegionPlane region(problem.pixels);
  for_each_channel(problem, [&](int64_t group, int64_t channel) {
    const int64_t first = first_image(problem, group), last = last_image(problem, group);
    if (problem.per_channel()) {
      Moments moments;
      for (int64_t n = first; n < last; ++n)
        TORCHEXT_AT_SIMD_LEVEL(plane_moments<T>)(
            o.x.elements + (n * problem.channels + channel) * problem.pixels, region.plane(), false,
            &moments);
      const int64_t i = group * problem.channels + channel;
      mean[i] = static_cast<A>(moments.mean);
      rstd[i] = static_cast<A>(rstd_of(moments.squares, moments.count, unbiased, eps));
    }
    for (int64_t n = first; n < last; ++n)
      for_each_row_of_plane(problem, n, channel, [&](const Place& at, int64_t count) {
        modulate(problem, o, o.x.row(problem, at), at, count, y);
      });
  });
}

template <class T>
void forward_by_ranges(const Problem& problem, const Operands<T>& o, T* y) {
  const Ranges ranges(problem);
  for_each_range(problem, ranges, [&] {
    return [&](const Range& range) {
      for_each_part(problem, range, [&](int64_t pixel, int64_t local, int64_t count) {
        for_each_row(problem, range.image, pixel, local, count,
                     [&](const Place& at, int64_t length, int64_t) {
                       modulate(problem, o, o.x.row(problem, at), at, length, y);
                     });
      });
    };
  });
}

void compute(const ModulatedNorm& call) {
  const Problem& problem = call.problem;
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    Operands<T> o = operands_of<T>(call.x, call.maps);
    A* m = data<A>(call.means);
    A* r = data<A>(call.rstds);
    T* out = data<T>(call.y);
    if (problem.given) {
      o.mean = values_of<T>(Extent::kGroupChannel, data<const A>(call.mean));
      o.rstd = values_of<T>(Extent::kGroupChannel, data<const A>(call.rstd));
    } else if (problem.statistics != Statistics::kNone) {
      const Extent extent = problem.per_pixel() ? Extent::kPixel : Extent::kGroupChannel;
      if (problem.statistics != Statistics::kRms) o.mean = values_of<T>(extent, m);
      o.rstd = values_of<T>(extent, r);
    }
    if (problem.per_pixel()) {
      forward_per_pixel(problem, o, call.unbiased, call.eps, m, r, out);
    } else if (!problem.channels_last) {
      forward_by_planes(problem, o, call.unbiased, call.eps, m, r, out);
    } else {
      if (problem.per_channel())
        channels_last_statistics(problem, o.x.elements, call.unbiased, call.eps, m, r);
      forward_by_ranges(problem, o, out);
    }
  });
}

// --- backward -----------------------------------------------------------------------------------

template <class T>
struct Gradient {
  using A = accumulate_t<T>;
  const T* grad;
  const T* y;  // null where nothing is activated
  Operands<T> operands;
  Map<T> mean_sum, mean_product;  // of statistics per channel, divided by what they count
  OutputMap<T> gamma, beta, weight;
  T* grad_x;
  double count, product_count;  // what the sums of gn and of gn * xn are divided by
};

template <class T>
void gradient(const Problem& problem, const Gradient<T>& g, const Place& at, int64_t count,
              const RowGradients<T>& out, accumulate_t<T>* gn, accumulate_t<T>* xn) {
  const Operands<T>& o = g.operands;
  o.kernels.gradient(g.grad + at.offset, g.y != nullptr ? g.y + at.offset : nullptr,
                     o.x.row(problem, at), o.mean.row(problem, at), o.rstd.row(problem, at),
                     o.modulation(problem, at), out, count, gn, xn);
}

template <class T>
void input_gradient(const Problem& problem, const Gradient<T>& g, const Place& at, int64_t count,
                    const RowInput<T>& sum, const RowInput<T>& product, const accumulate_t<T>* gn,
                    const accumulate_t<T>* xn) {
  g.operands.kernels.input_gradient(gn, xn, g.operands.rstd.row(problem, at), sum, product, count,
                                    g.grad_x + at.offset);
}

// Sums of gn and gn * xn, and of the gradients of gamma and beta, of one channel.
enum Sum { kSum, kProduct, kGamma, kBeta, kSums };

// Statistics per channel, or none, of a contiguous tensor whose maps all have their own channel.
// sums: (2, groups, C) to write them into, or null.
template <class T>
void backward_by_planes(const Problem& problem, const Gradient<T>& g, bool wants_maps,
                        bool wants_grad_x, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  const int64_t C = problem.channels, table = problem.groups() * C;
  for_each_channel(problem, [&](int64_t group, int64_t channel) {
    A gn[kTile], xn[kTile];
    double total[2] = {};
    for (int64_t n = first_image(problem, group); wants_maps && n < last_image(problem, group);
         ++n) {
      double of_image[kSums] = {};
      for_each_row_of_plane(problem, n, channel, [&](const Place& at, int64_t count) {
        A row[kSums] = {};
        RowGradients<T> out;
        if (problem.per_channel()) out.sum.values = row + kSum;
        if (problem.per_channel()) out.product.values = row + kProduct;
        out.gamma = g.gamma.row(problem, at);
        out.beta = g.beta.row(problem, at);
        out.weight = g.weight.row(problem, at);
        if (g.gamma.extent == Extent::kChannel) {
          out.gamma.values = row + kGamma;
          out.beta.values = row + kBeta;
        }
        gradient(problem, g, at, count, out, gn, xn);
        for (int i = 0; i < kSums; ++i) of_image[i] += row[i];
        if (wants_grad_x && !problem.per_channel())
          input_gradient(problem, g, at, count, {}, {}, gn, xn);
      });
      if (g.gamma.extent == Extent::kChannel) {
        g.gamma.values[n * C + channel] = static_cast<A>(of_image[kGamma]);
        g.beta.values[n * C + channel] = static_cast<A>(of_image[kBeta]);
      }
      total[kSum] += of_image[kSum];
      total[kProduct] += of_image[kProduct];
    }
    const int64_t i = group * C + channel;
    if (sums != nullptr) {
      sums[i] = static_cast<A>(total[kSum]);
      sums[table + i] = static_cast<A>(total[kProduct]);
    }
    if (!wants_grad_x || !problem.per_channel()) return;
    A means[2] = {static_cast<A>(total[kSum] / g.count),
                  static_cast<A>(total[kProduct] / g.product_count)};
    for (int64_t n = first_image(problem, group); n < last_image(problem, group); ++n)
      for_each_row_of_plane(problem, n, channel, [&](const Place& at, int64_t count) {
        const bool given = g.mean_sum.extent != Extent::kAbsent;
        gradient(problem, g, at, count, {}, gn, xn);
        input_gradient(
            problem, g, at, count,
            given ? g.mean_sum.row(problem, at) : RowInput<T>{nullptr, means, false},
            given ? g.mean_product.row(problem, at) : RowInput<T>{nullptr, means + 1, false}, gn,
            xn);
      });
  });
}

// Everything that a range of pixels with all its channels gives: the gradients of the maps, the
// partial sums per channel (ranges, kSums, C), and, unless statistics per channel are still to be
// summed, the gradient of x.
template <class T>
void backward_by_ranges(const Problem& problem, const Gradient<T>& g, const Ranges& ranges,
                        bool wants_maps, bool wants_grad_x, accumulate_t<T>* partials) {
  using A = accumulate_t<T>;
  const int64_t C = problem.channels;
  const int64_t block = problem.channels_last ? C : C * ranges.length;
  const bool channel_map = g.gamma.extent == Extent::kChannel;
  for_each_range(problem, ranges, [&] {
    return [&, gn = std::vector<A>(block), xn = std::vector<A>(block),
            pixel_sums = std::vector<A>(2 * ranges.length)](const Range& range) mutable {
      A* partial = partials + range.index * kSums * C;
      std::fill(pixel_sums.begin(), pixel_sums.end(), A(0));
      A* const sum = pixel_sums.data();
      A* const product = sum + ranges.length;
      const int64_t pixels = range.end - range.begin,
                    map = range.image * problem.pixels + range.begin;
      if (wants_maps) {
        std::fill_n(partial, kSums * C, A(0));
        for (const OutputMap<T>* out : {&g.gamma, &g.beta, &g.weight})
          if (out->extent == Extent::kPixel) std::fill_n(out->values + map, pixels, A(0));
      }
      for_each_part(problem, range, [&](int64_t pixel, int64_t local, int64_t count) {
        for_each_row(problem, range.image, pixel, local, count,
                     [&](const Place& at, int64_t length, int64_t offset) {
                       RowGradients<T> out;
                       if (wants_maps) {
                         out.gamma = g.gamma.row(problem, at);
                         out.beta = g.beta.row(problem, at);
                         out.weight = g.weight.row(problem, at);
                         if (channel_map) {
                           out.gamma.values = partial + kGamma * C + at.channel;
                           out.beta.values = partial + kBeta * C + at.channel;
                         }
                         const bool along = problem.channels_last;
                         if (problem.per_channel()) {
                           out.sum = {nullptr, partial + kSum * C + at.channel, along};
                           out.product = {nullptr, partial + kProduct * C + at.channel, along};
                         } else if (problem.per_pixel()) {
                           out.sum = {nullptr, sum + at.local, !along};
                           out.product = {nullptr, product + at.local, !along};
                         }
                       }
                       gradient(problem, g, at, length, out, gn.data() + offset,
                                xn.data() + offset);
                     });
        if (!wants_grad_x) return;
        if (problem.per_pixel()) {
          const bool centred = problem.statistics == Statistics::kPosition;
          for (int64_t p = local; p < local + count; ++p) {
            sum[p] = centred ? static_cast<A>(sum[p] / g.count) : A(0);
            product[p] = static_cast<A>(product[p] / g.product_count);
          }
        }
        for_each_row(problem, range.image, pixel, local, count,
                     [&](const Place& at, int64_t length, int64_t offset) {
                       RowInput<T> s = g.mean_sum.row(problem, at);
                       RowInput<T> p = g.mean_product.row(problem, at);
                       if (problem.per_pixel()) {
                         s = {nullptr, sum + at.local, !problem.channels_last};
                         p = {nullptr, product + at.local, !problem.channels_last};
                       }
                       input_gradient(problem, g, at, length, s, p, gn.data() + offset,
                                      xn.data() + offset);
                     });
      });
    };
  });
}

// Adds up the ranges' partial sums: of the statistics into sums (2, groups, C), of the maps per
// channel into their gradients.
template <class T>
void merge_partials(const Problem& problem, const Gradient<T>& g, const Ranges& ranges,
                    const accumulate_t<T>* partials, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  const int64_t C = problem.channels, table = problem.groups() * C;
  std::vector<double> total(problem.per_channel() ? 2 * table : 0), of_image(kSums * C);
  for (int64_t n = 0; n < problem.images; ++n) {
    std::fill(of_image.begin(), of_image.end(), 0.0);
    for (int64_t i = n * ranges.per_image; i < (n + 1) * ranges.per_image; ++i)
      for (int64_t j = 0; j < kSums * C; ++j) of_image[j] += partials[i * kSums * C + j];
    if (g.gamma.extent == Extent::kChannel)
      for (int64_t c = 0; c < C; ++c) {
        g.gamma.values[n * C + c] = static_cast<A>(of_image[kGamma * C + c]);
        g.beta.values[n * C + c] = static_cast<A>(of_image[kBeta * C + c]);
      }
    if (problem.per_channel())
      for (int64_t c = 0; c < C; ++c) {
        total[group(problem, n) * C + c] += of_image[kSum * C + c];
        total[table + group(problem, n) * C + c] += of_image[kProduct * C + c];
      }
  }
  for (size_t j = 0; j < total.size(); ++j) sums[j] = static_cast<A>(total[j]);
}

void compute(const ModulatedNormBackward& call) {
  const Problem& problem = call.problem;
  const int64_t C = problem.channels, R = problem.groups();
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    Gradient<T> g;
    g.grad = data<const T>(call.grad);
    g.y = data<const T>(call.y);
    g.operands = operands_of<T>(call.x, call.maps);
    const Extent extent = problem.per_pixel() ? Extent::kPixel : Extent::kGroupChannel;
    if (problem.centred()) g.operands.mean = values_of<T>(extent, data<const A>(call.mean));
    if (problem.normalised()) g.operands.rstd = values_of<T>(extent, data<const A>(call.rstd));
    if (call.mean_sums.has_value()) {
      g.mean_sum = values_of<T>(Extent::kGroupChannel, data<const A>(call.mean_sums));
      g.mean_product = values_of<T>(Extent::kGroupChannel, data<const A>(call.mean_sums) + R * C);
    }
    const auto output = [&](const Map<T>& map, const Tensor& tensor, bool wanted) {
      OutputMap<T> out;
      if (!wanted || !call.wants_maps()) return out;
      out.extent = map.extent;
      out.elements = data<T>(tensor);
      out.values = data<A>(tensor);
      return out;
    };
    g.gamma = output(g.operands.gamma, call.grad_gamma, true);
    g.beta = output(g.operands.gamma, call.grad_beta, !call.maps.beta_has_gradient_of_y());
    g.weight = output(g.operands.weight, call.grad_weight, call.wants_weight());
    g.grad_x = data<T>(call.grad_x);
    const int64_t count = std::max<int64_t>(group_size(problem), 1);
    g.count = static_cast<double>(count);
    g.product_count = static_cast<double>(std::max<int64_t>(count - call.unbiased, 1));

    const bool shared_gradient =
        g.gamma.extent == Extent::kPixel || g.weight.extent == Extent::kPixel;
    const bool by_planes = !problem.channels_last && !problem.per_pixel();
    if (by_planes && !shared_gradient)
      return backward_by_planes(problem, g, call.wants_maps(), call.wants_grad_x(),
                                call.sums.numel() > 0 ? data<A>(call.sums) : nullptr);

    const Ranges ranges(problem);
    std::vector<A> partials;
    const bool sums_first = problem.per_channel() && !call.mean_sums.has_value();
    if (call.wants_maps()) {
      partials.resize(ranges.count * kSums * C);
      backward_by_ranges(problem, g, ranges, true, call.wants_grad_x() && !sums_first,
                         partials.data());
      std::vector<A> own(call.sums.numel() > 0 ? 0 : 2 * R * C);
      A* const sums = call.sums.numel() > 0 ? data<A>(call.sums) : own.data();
      merge_partials(problem, g, ranges, partials.data(), sums);
      if (!call.wants_grad_x() || !sums_first) return;
      // The gradient of x follows in a second visit, now that the sums are known.
      std::vector<A> means(2 * R * C);
      for (int64_t i = 0; i < R * C; ++i) {
        means[i] = static_cast<A>(sums[i] / g.count);
        means[R * C + i] = static_cast<A>(sums[R * C + i] / g.product_count);
      }
      g.mean_sum = values_of<T>(Extent::kGroupChannel, means.data());
      g.mean_product = values_of<T>(Extent::kGroupChannel, means.data() + R * C);
      g.gamma = g.beta = g.weight = {};
      backward_by_ranges(problem, g, ranges, false, true, partials.data());
    } else {
      backward_by_ranges(problem, g, ranges, false, true, partials.data());
    }
  });
}

// --- rows of a table ----------------------------------------------------------------------------

// A thread takes some channels, and walks the pixels in order.
void compute(const SegmentedSum& call) {
  const int64_t N = call.values.size(0), C = call.values.size(1);
  const int64_t P = call.values.size(2) * call.values.size(3), rows = call.sums.size(0);
  const int32_t* row_of = data<const int32_t>(call.index);
  constexpr int64_t kTogether = 8;  // channels
  const ScalarType type = call.sums.scalar_type();
  const Tensor wide =
      call.values.scalar_type() == type ? call.values : torch::stable::to(call.values, type);
  dispatch_accumulate(type, [&](auto zero) {
    using A = decltype(zero);
    const A* from = data<const A>(wide);
    A* to = data<A>(call.sums);
    const int64_t blocks = (C + kTogether - 1) / kTogether;
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> total(rows * kTogether);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kTogether, width = std::min(kTogether, C - first);
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t n = 0; n < N; ++n) {
          const int32_t* rows_of = row_of + n * P;
          if (call.channels_last) {
            for (int64_t p = 0; p < P; ++p) {
              if (rows_of[p] < 0) continue;
              double* into = total.data() + rows_of[p] * kTogether;
              const A* at = from + (n * P + p) * C + first;
              for (int64_t j = 0; j < width; ++j) into[j] += at[j];
            }
          } else {
            for (int64_t j = 0; j < width; ++j) {
              const A* plane = from + (n * C + first + j) * P;
              for (int64_t p = 0; p < P; ++p)
                if (rows_of[p] >= 0) total[rows_of[p] * kTogether + j] += plane[p];
            }
          }
        }
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t j = 0; j < width; ++j)
            to[r * C + first + j] = static_cast<A>(total[r * kTogether + j]);
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
