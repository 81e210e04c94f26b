// Region normalisation on the CPU: "Region Normalization for Image Inpainting" (AAAI 2020).
//
//   y = (x - mean_k) * rstd_k * weight_k + bias_k,   k = the pixel's region
//
// Passes over memory (T = one tensor). Contiguous: a thread takes a whole channel, so statistics
// and application share the cache: forward reads T and writes T when a channel fits (floor 2T; 3T
// if not), backward reads 2T and writes T (floor 3T; 5T if not). Channels last, and the backward of
// a spatial affine (whose sums run over channels as well): 3T and 5T, over chunks of pixels.
//
// The split of the work never depends on the number of threads, so neither does the result.
#include "region_norm_kernels.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;

// Chunks of pixels that sums over a whole image are split into, at most: bounds partial results.
constexpr int64_t kMaxChunks = 32;

// Of float32: 8 MiB, which are no longer cached when all of it is written.
constexpr int64_t kStreamElements = int64_t{2} << 20;

struct Problem {
  int64_t images, channels, pixels, regions, groups;  // groups of statistics: images, or 1
  bool per_instance, ignore_holes, channels_last;
  bool stream;  // results do not stay in the cache
  const uint8_t* labels;
  bool shared_labels;  // one label map for every image

  int64_t group(int64_t image) const { return per_instance ? image : 0; }
  int64_t first_image(int64_t group) const { return per_instance ? group : 0; }
  int64_t last_image(int64_t group) const { return per_instance ? group + 1 : images; }
  const uint8_t* image_labels(int64_t image) const {
    return labels + (shared_labels ? 0 : image * pixels);
  }
};

Problem describe(const Tensor& x, const Tensor& labels, int64_t num_regions, bool per_instance,
                 bool ignore_holes) {
  Problem problem;
  problem.channels_last = is_channels_last(x);
  problem.images = x.size(0);
  problem.channels = x.size(1);
  problem.pixels = x.size(2) * x.size(3);
  problem.regions = num_regions;
  problem.per_instance = per_instance;
  problem.groups = per_instance ? problem.images : 1;
  problem.ignore_holes = ignore_holes;
  problem.stream = x.scalar_type() == ScalarType::Float && x.numel() >= kStreamElements;
  expects(num_regions >= 1 && num_regions <= kMaxRegions, "num_regions: expected 1 to 64");
  expects(labels.dim() == 4 && labels.size(1) == 1 && labels.size(2) == x.size(2) &&
              labels.size(3) == x.size(3) &&
              (labels.size(0) == 1 || labels.size(0) == problem.images),
          "labels: expected the shape (N or 1, 1, H, W) of x");
  expects_plain(labels, ScalarType::Byte, labels.size(0) * problem.pixels,
                "labels: expected a contiguous uint8 tensor");
  problem.labels = data<uint8_t>(labels);
  problem.shared_labels = labels.size(0) == 1;
  return problem;
}

// The tiles of every label map, and how many pixels each region has per image.
class LabelPlanes {
 public:
  explicit LabelPlanes(const Problem& problem)
      : problem_(problem),
        tiles_((problem.pixels + kTile - 1) / kTile),
        maps_(problem.shared_labels ? std::min<int64_t>(problem.images, 1) : problem.images),
        first_(maps_ * (tiles_ + 1)),
        counts_(maps_ * problem.regions) {
    TileRegion found[kMaxRegions];
    for (int64_t map = 0; map < maps_; ++map) {
      const uint8_t* labels = problem.labels + map * problem.pixels;
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        const int64_t begin = tile * kTile;
        first_[map * (tiles_ + 1) + tile] = static_cast<int32_t>(present_.size());
        const int32_t regions = TORCHEXT_AT_SIMD_LEVEL(tile_regions)(
            labels + begin, std::min(kTile, problem.pixels - begin), problem.regions, found);
        expects(regions >= 0, "labels: expected values below num_regions");
        present_.insert(present_.end(), found, found + regions);
        for (int32_t i = 0; i < regions; ++i)
          counts_[map * problem.regions + found[i].region] += found[i].count;
      }
      first_[map * (tiles_ + 1) + tiles_] = static_cast<int32_t>(present_.size());
    }
  }

  int64_t tiles() const { return tiles_; }

  LabelPlane plane(int64_t image) const { return tile_range(image, 0, tiles_); }

  // The part of an image between two tiles.
  LabelPlane tile_range(int64_t image, int64_t begin, int64_t end) const {
    const int64_t map = problem_.shared_labels ? 0 : image;
    const int64_t last_pixel = std::min(end * kTile, problem_.pixels);
    return {problem_.image_labels(image) + begin * kTile, last_pixel - begin * kTile,
            first_.data() + map * (tiles_ + 1) + begin, present_.data()};
  }

  void write_counts(int64_t* count) const {
    std::fill(count, count + problem_.groups * problem_.regions, 0);
    for (int64_t image = 0; image < problem_.images; ++image)
      for (int64_t k = 0; k < problem_.regions; ++k)
        count[problem_.group(image) * problem_.regions + k] +=
            counts_[(problem_.shared_labels ? 0 : image) * problem_.regions + k];
  }

 private:
  const Problem& problem_;
  int64_t tiles_, maps_;
  std::vector<int32_t> first_;
  std::vector<TileRegion> present_;
  std::vector<int64_t> counts_;
};

// Ranges [begin, end) of `total` units (pixels or tiles) of each image, at most about kMaxChunks.
struct Chunk {
  int64_t image, begin, end;
};
std::vector<Chunk> chunks_of(const Problem& problem, int64_t total, int64_t least) {
  std::vector<Chunk> chunks;
  const int64_t per_image = std::max<int64_t>(
      1, std::min(kMaxChunks / std::max<int64_t>(problem.images, 1), total / least));
  for (int64_t image = 0; image < problem.images; ++image)
    for (int64_t i = 0; i < per_image; ++i)
      chunks.push_back({image, total * i / per_image, total * (i + 1) / per_image});
  return chunks;
}

// A (groups, regions, channels) tensor's offset.
int64_t at(const Problem& problem, int64_t group, int64_t region, int64_t channel) {
  return (group * problem.regions + region) * problem.channels + channel;
}

double effective_eps(const Problem& problem, double eps, bool scale_eps, int64_t count) {
  if (!scale_eps) return eps;
  const int64_t all = problem.pixels * (problem.per_instance ? 1 : problem.images);
  return eps * static_cast<double>(all) / static_cast<double>(std::max<int64_t>(count, 1));
}

// --- statistics ---------------------------------------------------------------------------------

template <class T>
void channel_moments(const Problem& problem, const LabelPlanes& planes, const T* x, int64_t group,
                     int64_t channel, Moments* moments) {
  std::fill(moments, moments + problem.regions, Moments{});
  for (int64_t n = problem.first_image(group); n < problem.last_image(group); ++n)
    TORCHEXT_AT_SIMD_LEVEL(plane_moments<T>)(x + (n * problem.channels + channel) * problem.pixels,
                                             planes.plane(n), problem.ignore_holes, moments);
}

// Moments of every group, region and channel of a channels-last tensor.
template <class T>
std::vector<Moments> channels_last_moments(const Problem& problem, const T* x) {
  const int64_t K = problem.regions, C = problem.channels;
  const std::vector<Chunk> chunks = chunks_of(problem, problem.pixels, 64);
  std::vector<int64_t> count(chunks.size() * K);
  std::vector<double> mean(chunks.size() * K * C), squares(chunks.size() * K * C);
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      TORCHEXT_AT_SIMD_LEVEL(pixels_moments<T>)(
          x + (chunk.image * problem.pixels + chunk.begin) * C,
          problem.image_labels(chunk.image) + chunk.begin, chunk.end - chunk.begin, C, K,
          problem.ignore_holes, &count[i * K], &mean[i * K * C], &squares[i * K * C]);
    }
  });
  std::vector<Moments> moments(problem.groups * K * C);
  for (size_t i = 0; i < chunks.size(); ++i)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t more = count[i * K + k];
      if (more == 0) continue;
      Moments* into = &moments[at(problem, problem.group(chunks[i].image), k, 0)];
      const double before = static_cast<double>(into->count);
      const double share = static_cast<double>(more) / (before + static_cast<double>(more));
      for (int64_t c = 0; c < C; ++c) {
        const double delta = mean[(i * K + k) * C + c] - into[c].mean;
        into[c].mean += delta * share;
        into[c].squares += squares[(i * K + k) * C + c] + delta * delta * share * before;
        into[c].count += more;
      }
    }
  return moments;
}

// A column of K moments, each to store(region, mean, variance).
template <class Store>
void for_each_region(const Problem& problem, const Moments* moments, int64_t stride, Store store) {
  for (int64_t k = 0; k < problem.regions; ++k) {
    const Moments& m = moments[k * stride];
    // Rounding can leave the squares of a constant region below zero.
    const double squares = m.squares < 0 ? 0.0 : m.squares;
    store(k, m.mean, m.count > 0 ? squares / static_cast<double>(m.count) : 0.0);
  }
}

// --- application --------------------------------------------------------------------------------

template <class T>
struct Affine {
  using A = accumulate_t<T>;
  const A* weight;
  const A* bias;
  PixelMaps<A> maps;

  // The scale and offset of y = (x - float(mean)) * scale + offset; `rounding` = mean -
  // float(mean).
  void constants(const Problem& problem, int64_t region, int64_t channel, double rounding, A rstd,
                 A* scale, A* offset) const {
    const int64_t i = region * problem.channels + channel;
    *scale = weight != nullptr ? rstd * weight[i] : rstd;
    *offset = static_cast<A>((bias != nullptr ? bias[i] : 0.0) - rounding * *scale);
  }
  PixelMaps<A> image(const Problem& problem, int64_t n) const {
    if (maps.weight == nullptr) return {};
    PixelMaps<A> own;
    own.weight = maps.weight + n * problem.pixels;
    own.bias = maps.bias + n * problem.pixels;
    return own;
  }
};

template <class T>
Affine<T> affine_of(const Problem& problem, const Tensor& x, const std::optional<Tensor>& weight,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& spatial_weight,
                    const std::optional<Tensor>& spatial_bias) {
  const ScalarType type = accumulate_type(x);
  const int64_t constants = problem.regions * problem.channels;
  const int64_t map = problem.images * problem.pixels;
  expects(weight.has_value() == bias.has_value(), "weight, bias: expected both or none");
  expects(spatial_weight.has_value() == spatial_bias.has_value(),
          "spatial_weight, spatial_bias: expected both or none");
  expects_plain(weight, type, constants, "weight: expected contiguous (K, C) of accumulate type");
  expects_plain(bias, type, constants, "bias: expected contiguous (K, C) of accumulate type");
  expects_plain(spatial_weight, type, map,
                "spatial_weight: expected contiguous (N, 1, H, W) of accumulate type");
  expects_plain(spatial_bias, type, map,
                "spatial_bias: expected contiguous (N, 1, H, W) of accumulate type");
  using A = accumulate_t<T>;
  Affine<T> affine{data<A>(weight), data<A>(bias), {}};
  affine.maps.weight = data<A>(spatial_weight);
  affine.maps.bias = data<A>(spatial_bias);
  return affine;
}

template <class T>
void apply_channel(const Problem& problem, const LabelPlanes& planes, const T* x, int64_t group,
                   int64_t channel, const RegionAffine<accumulate_t<T>>& k, const Affine<T>& affine,
                   T* y) {
  for (int64_t n = problem.first_image(group); n < problem.last_image(group); ++n) {
    const int64_t plane = (n * problem.channels + channel) * problem.pixels;
    TORCHEXT_AT_SIMD_LEVEL(plane_apply<T>)(x + plane, planes.plane(n), k, problem.regions,
                                           affine.image(problem, n), problem.ignore_holes,
                                           problem.stream, y + plane);
  }
}

// Applies per-(group, region, channel) constants to a channels-last tensor.
template <class T>
void apply_channels_last(const Problem& problem, const T* x, const RegionAffine<accumulate_t<T>>& k,
                         const Affine<T>& affine, T* y) {
  const std::vector<Chunk> chunks = chunks_of(problem, problem.pixels, 64);
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      const int64_t table = at(problem, problem.group(chunk.image), 0, 0);
      const int64_t offset = (chunk.image * problem.pixels + chunk.begin) * problem.channels;
      PixelMaps<accumulate_t<T>> maps = affine.image(problem, chunk.image);
      if (maps.weight != nullptr) {
        maps.weight += chunk.begin;
        maps.bias += chunk.begin;
      }
      TORCHEXT_AT_SIMD_LEVEL(pixels_apply<T>)(
          x + offset, problem.image_labels(chunk.image) + chunk.begin, chunk.end - chunk.begin,
          problem.channels, {k.mean + table, k.scale + table, k.offset + table}, maps,
          problem.ignore_holes, y + offset);
    }
  });
}

// --- gradients ----------------------------------------------------------------------------------

template <class T>
struct Gradient {
  using A = accumulate_t<T>;
  const T* grad;
  const T* x;
  const A* mean;
  const A* rstd;
  const A* weight;          // (K, C) or null
  const A* spatial_weight;  // (N, 1, H, W) or null
  const int64_t* count;     // (R, K)
  A* sums;                  // (2, R, K, C)
  A* spatial_weight_gradient;
  A* spatial_bias_gradient;
  PixelMaps<A> pooled;  // of the whole batch: (N, P) share, (N, P) max gradient, argmax
  T* grad_x;
};

template <class A>
const A* offset_or_null(const A* pointer, int64_t offset) {
  return pointer != nullptr ? pointer + offset : nullptr;
}

// Writes sums (double, [region][sum, product]) of one group and channel into the output tensor.
template <class A>
void store_sums(const Problem& problem, const double* sums, int64_t group, int64_t channel,
                A* out) {
  const int64_t half = problem.groups * problem.regions * problem.channels;
  for (int64_t k = 0; k < problem.regions; ++k) {
    out[at(problem, group, k, channel)] = static_cast<A>(sums[2 * k]);
    out[half + at(problem, group, k, channel)] = static_cast<A>(sums[2 * k + 1]);
  }
}

template <class T>
void channel_gradient_sums(const Problem& problem, const LabelPlanes& planes, const Gradient<T>& g,
                           int64_t group, int64_t channel) {
  using A = accumulate_t<T>;
  A mean[kMaxRegions], rstd[kMaxRegions];
  double sums[2 * kMaxRegions] = {};
  for (int64_t k = 0; k < problem.regions; ++k) {
    mean[k] = g.mean[at(problem, group, k, channel)];
    rstd[k] = g.rstd[at(problem, group, k, channel)];
  }
  for (int64_t n = problem.first_image(group); n < problem.last_image(group); ++n) {
    const int64_t plane = (n * problem.channels + channel) * problem.pixels;
    TORCHEXT_AT_SIMD_LEVEL(plane_gradient_sums<T>)(g.grad + plane, g.x + plane, planes.plane(n),
                                                   mean, rstd, problem.regions, nullptr,
                                                   problem.ignore_holes, sums, nullptr, nullptr);
  }
  store_sums(problem, sums, group, channel, g.sums);
}

// Sums with a spatial weight run over channels as well as pixels, so chunks of tiles are shared out
// and each walks every channel; their partial sums are added in order.
template <class T>
void spatial_gradient_sums(const Problem& problem, const LabelPlanes& planes,
                           const Gradient<T>& g) {
  using A = accumulate_t<T>;
  const int64_t K = problem.regions, C = problem.channels;
  const std::vector<Chunk> chunks = chunks_of(problem, planes.tiles(), 1);
  std::vector<double> partial(chunks.size() * C * 2 * K);
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    A mean[kMaxRegions], rstd[kMaxRegions];
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      const LabelPlane part = planes.tile_range(chunk.image, chunk.begin, chunk.end);
      const int64_t first = chunk.begin * kTile, map = chunk.image * problem.pixels + first;
      std::fill_n(g.spatial_weight_gradient + map, part.pixels, A(0));
      std::fill_n(g.spatial_bias_gradient + map, part.pixels, A(0));
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t k = 0; k < K; ++k) {
          mean[k] = g.mean[at(problem, problem.group(chunk.image), k, c)];
          rstd[k] = g.rstd[at(problem, problem.group(chunk.image), k, c)];
        }
        const int64_t plane = (chunk.image * C + c) * problem.pixels + first;
        TORCHEXT_AT_SIMD_LEVEL(plane_gradient_sums<T>)(
            g.grad + plane, g.x + plane, part, mean, rstd, K, g.spatial_weight + map,
            problem.ignore_holes, &partial[(i * C + c) * 2 * K], g.spatial_weight_gradient + map,
            g.spatial_bias_gradient + map);
      }
    }
  });
  std::vector<double> sums(2 * K);
  for (int64_t group = 0; group < problem.groups; ++group)
    for (int64_t c = 0; c < C; ++c) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (size_t i = 0; i < chunks.size(); ++i)
        if (problem.group(chunks[i].image) == group)
          for (int64_t j = 0; j < 2 * K; ++j) sums[j] += partial[(i * C + c) * 2 * K + j];
      store_sums(problem, sums.data(), group, c, g.sums);
    }
}

template <class T>
void channels_last_gradient_sums(const Problem& problem, const Gradient<T>& g) {
  using A = accumulate_t<T>;
  const int64_t K = problem.regions, C = problem.channels;
  const std::vector<Chunk> chunks = chunks_of(problem, problem.pixels, 64);
  std::vector<double> partial(chunks.size() * 2 * K * C);
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      const int64_t map = chunk.image * problem.pixels + chunk.begin;
      const int64_t table = at(problem, problem.group(chunk.image), 0, 0);
      A* weight_gradient = nullptr;
      A* bias_gradient = nullptr;
      if (g.spatial_weight != nullptr) {
        weight_gradient = g.spatial_weight_gradient + map;
        bias_gradient = g.spatial_bias_gradient + map;
        std::fill_n(weight_gradient, chunk.end - chunk.begin, A(0));
        std::fill_n(bias_gradient, chunk.end - chunk.begin, A(0));
      }
      TORCHEXT_AT_SIMD_LEVEL(pixels_gradient_sums<T>)(
          g.grad + map * C, g.x + map * C, problem.image_labels(chunk.image) + chunk.begin,
          chunk.end - chunk.begin, C, K, g.mean + table, g.rstd + table,
          offset_or_null(g.spatial_weight, map), problem.ignore_holes, &partial[i * 2 * K * C],
          weight_gradient, bias_gradient);
    }
  });
  const int64_t half = problem.groups * K * C;
  std::vector<double> sums(2 * half);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t group = at(problem, problem.group(chunks[i].image), 0, 0);
    for (int64_t j = 0; j < K * C; ++j) {
      sums[group + j] += partial[i * 2 * K * C + j];
      sums[half + group + j] += partial[(i * 2 + 1) * K * C + j];
    }
  }
  for (int64_t j = 0; j < 2 * half; ++j) g.sums[j] = static_cast<A>(sums[j]);
}

template <class T>
void gradient_constants(const Problem& problem, const Gradient<T>& g, int64_t group, int64_t region,
                        int64_t channel, accumulate_t<T>* scale, accumulate_t<T>* mean_gradient,
                        accumulate_t<T>* slope) {
  using A = accumulate_t<T>;
  const int64_t i = at(problem, group, region, channel);
  const int64_t half = problem.groups * problem.regions * problem.channels;
  const A count = static_cast<A>(std::max<int64_t>(g.count[group * problem.regions + region], 1));
  *scale =
      g.weight != nullptr ? g.rstd[i] * g.weight[region * problem.channels + channel] : g.rstd[i];
  *mean_gradient = g.sums[i] / count;  // exactly g where the region is one pixel
  *slope = *scale * g.rstd[i] * (g.sums[half + i] / count);
}

template <class T>
PixelMaps<accumulate_t<T>> gradient_maps(const Gradient<T>& g, int64_t offset) {
  PixelMaps<accumulate_t<T>> maps;
  maps.weight = offset_or_null(g.spatial_weight, offset);
  maps.mean_gradient = offset_or_null(g.pooled.mean_gradient, offset);
  maps.max_gradient = offset_or_null(g.pooled.max_gradient, offset);
  maps.argmax = offset_or_null(g.pooled.argmax, offset);
  return maps;
}

template <class T>
void channel_gradient_apply(const Problem& problem, const LabelPlanes& planes, const Gradient<T>& g,
                            int64_t group, int64_t channel) {
  using A = accumulate_t<T>;
  A mean[kMaxRegions], scale[kMaxRegions], mean_gradient[kMaxRegions], slope[kMaxRegions];
  for (int64_t k = 0; k < problem.regions; ++k) {
    mean[k] = g.mean[at(problem, group, k, channel)];
    gradient_constants(problem, g, group, k, channel, scale + k, mean_gradient + k, slope + k);
  }
  for (int64_t n = problem.first_image(group); n < problem.last_image(group); ++n) {
    const int64_t plane = (n * problem.channels + channel) * problem.pixels;
    TORCHEXT_AT_SIMD_LEVEL(plane_gradient_apply<T>)(
        g.grad + plane, g.x + plane, planes.plane(n), {mean, scale, mean_gradient, slope},
        problem.regions, gradient_maps(g, n * problem.pixels), static_cast<int32_t>(channel),
        problem.ignore_holes, problem.stream, g.grad_x + plane);
  }
}

template <class T>
void channels_last_gradient_apply(const Problem& problem, const Gradient<T>& g) {
  using A = accumulate_t<T>;
  const int64_t size = problem.groups * problem.regions * problem.channels;
  std::vector<A> scale(size), mean_gradient(size), slope(size);
  for (int64_t r = 0; r < problem.groups; ++r)
    for (int64_t k = 0; k < problem.regions; ++k)
      for (int64_t c = 0; c < problem.channels; ++c) {
        const int64_t i = at(problem, r, k, c);
        gradient_constants(problem, g, r, k, c, &scale[i], &mean_gradient[i], &slope[i]);
      }
  const std::vector<Chunk> chunks = chunks_of(problem, problem.pixels, 64);
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      const int64_t map = chunk.image * problem.pixels + chunk.begin;
      const int64_t table = at(problem, problem.group(chunk.image), 0, 0);
      TORCHEXT_AT_SIMD_LEVEL(pixels_gradient_apply<T>)(
          g.grad + map * problem.channels, g.x + map * problem.channels,
          problem.image_labels(chunk.image) + chunk.begin, chunk.end - chunk.begin,
          problem.channels,
          {g.mean + table, scale.data() + table, mean_gradient.data() + table,
           slope.data() + table},
          gradient_maps(g, map), problem.ignore_holes, g.grad_x + map * problem.channels);
    }
  });
}

// Runs body(group, channel) over all groups and channels, in parallel.
template <class Body>
void for_each_channel(const Problem& problem, Body body) {
  parallel_for(0, problem.groups * problem.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
      body(unit / problem.channels, unit % problem.channels);
  });
}

// --- entry points -------------------------------------------------------------------------------

// A floating-point or boolean mask is binary: anything but zero is region 1.
template <class T>
constexpr bool is_binary = std::is_floating_point_v<T> || std::is_same_v<T, bool>;

template <class T>
bool is_label(T value, int64_t regions) {
  if constexpr (is_binary<T>)
    return value == T(0) || value == T(1);
  else
    return value >= T(0) && static_cast<int64_t>(value) < regions;
}

template <class T>
void check_labels(const T* mask, int64_t count, int64_t regions) {
  int invalid = 0;
  for (int64_t i = 0; i < count; ++i) invalid |= !is_label(mask[i], regions);
  if (invalid == 0) return;
  const T wrong =
      *std::find_if_not(mask, mask + count, [&](T value) { return is_label(value, regions); });
  throw std::invalid_argument("mask: expected " +
                              (is_binary<T> ? std::string("only the values 0 and 1")
                                            : "labels from 0 to " + std::to_string(regions - 1)) +
                              ", got " + std::to_string(wrong));
}

template <class T>
uint8_t label_of(T value, int64_t regions) {
  if constexpr (is_binary<T>)
    return value != T(0);
  else
    return static_cast<uint8_t>(
        std::min<int64_t>(std::max<int64_t>(static_cast<int64_t>(value), 0), regions - 1));
}

template <class T>
void nearest_labels(const Tensor& mask, int64_t regions, bool check, int64_t height, int64_t width,
                    uint8_t* out) {
  const T* in = data<T>(mask);
  const int64_t in_height = mask.size(2), in_width = mask.size(3);
  if (check) check_labels(in, mask.numel(), regions);
  const bool resized = height != in_height || width != in_width;
  parallel_for(0, mask.size(0) * height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / height, y = row % height;
      const T* from = in + (image * in_height + y * in_height / height) * in_width;
      uint8_t* to = out + row * width;
      if (resized)
        for (int64_t x = 0; x < width; ++x) to[x] = label_of(from[x * in_width / width], regions);
      else
        for (int64_t x = 0; x < width; ++x) to[x] = label_of(from[x], regions);
    }
  });
}

Tensor region_labels_cpu(const Tensor& mask, int64_t height, int64_t width, int64_t num_regions,
                         bool check_values) {
  expects(mask.dim() == 4 && mask.size(1) == 1 && mask.is_contiguous(),
          "mask: expected a contiguous (N, 1, H, W) tensor");
  expects(height > 0 && width > 0, "height, width: expected positive numbers");
  expects(num_regions >= 1 && num_regions <= kMaxRegions, "num_regions: expected 1 to 64");
  Tensor labels = empty(mask, {mask.size(0), 1, height, width}, ScalarType::Byte);
  uint8_t* out = mutable_data<uint8_t>(labels);
  const auto run = [&](auto zero) {
    nearest_labels<decltype(zero)>(mask, num_regions, check_values, height, width, out);
  };
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
      run(bool{});
      break;
    case ScalarType::Byte:
      run(uint8_t{});
      break;
    case ScalarType::Char:
      run(int8_t{});
      break;
    case ScalarType::Short:
      run(int16_t{});
      break;
    case ScalarType::Int:
      run(int32_t{});
      break;
    case ScalarType::Long:
      run(int64_t{});
      break;
    case ScalarType::Float:
      run(float{});
      break;
    case ScalarType::Double:
      run(double{});
      break;
    default: {
      const ScalarType type = mask.scalar_type();
      expects(type == ScalarType::Half || type == ScalarType::BFloat16,
              "mask: expected a boolean, integer or floating-point tensor");
      const Tensor wide = torch::stable::to(mask, ScalarType::Float);
      nearest_labels<float>(wide, num_regions, check_values, height, width, out);
    }
  }
  return labels;
}

std::tuple<Tensor, Tensor, Tensor> region_statistics_cpu(const Tensor& x, const Tensor& labels,
                                                         int64_t num_regions, bool per_instance,
                                                         bool ignore_holes) {
  const Problem problem = describe(x, labels, num_regions, per_instance, ignore_holes);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  Tensor count = empty(x, {R, K}, ScalarType::Long);
  Tensor mean = empty(x, {R, K, C}, accumulate_type(x));
  Tensor variance = torch::stable::empty_like(mean);
  planes.write_counts(mutable_data<int64_t>(count));
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    A* means = mutable_data<A>(mean);
    A* variances = mutable_data<A>(variance);
    const auto store = [&](int64_t group, int64_t channel, const Moments* moments, int64_t stride) {
      for_each_region(problem, moments, stride, [&](int64_t k, double m, double v) {
        means[at(problem, group, k, channel)] = static_cast<A>(m);
        variances[at(problem, group, k, channel)] = static_cast<A>(v);
      });
    };
    if (problem.channels_last) {
      const std::vector<Moments> moments = channels_last_moments(problem, data<T>(x));
      for (int64_t r = 0; r < R; ++r)
        for (int64_t c = 0; c < C; ++c) store(r, c, &moments[at(problem, r, 0, c)], C);
    } else {
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        Moments moments[kMaxRegions];
        channel_moments(problem, planes, data<T>(x), group, channel, moments);
        store(group, channel, moments, 1);
      });
    }
  });
  return {count, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_cpu(
    const Tensor& x, const Tensor& labels, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& spatial_weight,
    const std::optional<Tensor>& spatial_bias, int64_t num_regions, bool per_instance, double eps,
    bool scale_eps, bool ignore_holes) {
  const Problem problem = describe(x, labels, num_regions, per_instance, ignore_holes);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  Tensor y = torch::stable::empty_like(x);
  Tensor count = empty(x, {R, K}, ScalarType::Long);
  Tensor mean = empty(x, {R, K, C}, accumulate_type(x));
  Tensor rstd = torch::stable::empty_like(mean);
  int64_t* counts = mutable_data<int64_t>(count);
  planes.write_counts(counts);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const Affine<T> affine = affine_of<T>(problem, x, weight, bias, spatial_weight, spatial_bias);
    A* means = mutable_data<A>(mean);
    A* rstds = mutable_data<A>(rstd);
    const T* in = data<T>(x);
    T* out = mutable_data<T>(y);
    // From moments to the saved statistics and to the constants of the application.
    const auto finalise = [&](int64_t group, int64_t channel, const Moments* moments,
                              int64_t stride, A* scale, A* offset) {
      for_each_region(problem, moments, stride, [&](int64_t k, double m, double v) {
        const double e = effective_eps(problem, eps, scale_eps, counts[group * K + k]);
        const int64_t i = at(problem, group, k, channel);
        means[i] = static_cast<A>(m);
        rstds[i] = static_cast<A>(1.0 / std::sqrt(v + e));
        affine.constants(problem, k, channel, m - means[i], rstds[i], scale + k * stride,
                         offset + k * stride);
      });
    };
    if (problem.channels_last) {
      const std::vector<Moments> moments = channels_last_moments(problem, in);
      std::vector<A> scale(R * K * C), offset(R * K * C);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t c = 0; c < C; ++c) {
          const int64_t i = at(problem, r, 0, c);
          finalise(r, c, &moments[i], C, &scale[i], &offset[i]);
        }
      apply_channels_last<T>(problem, in, {means, scale.data(), offset.data()}, affine, out);
    } else {
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        Moments moments[kMaxRegions];
        A centre[kMaxRegions], scale[kMaxRegions], offset[kMaxRegions];
        channel_moments(problem, planes, in, group, channel, moments);
        finalise(group, channel, moments, 1, scale, offset);
        for (int64_t k = 0; k < K; ++k) centre[k] = means[at(problem, group, k, channel)];
        apply_channel<T>(problem, planes, in, group, channel, {centre, scale, offset}, affine, out);
      });
    }
  });
  return {y, count, mean, rstd};
}

Tensor region_norm_apply_cpu(const Tensor& x, const Tensor& labels, const Tensor& mean,
                             const Tensor& rstd, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias,
                             const std::optional<Tensor>& spatial_weight,
                             const std::optional<Tensor>& spatial_bias, int64_t num_regions,
                             bool per_instance, bool ignore_holes) {
  const Problem problem = describe(x, labels, num_regions, per_instance, ignore_holes);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  expects_plain(mean, accumulate_type(x), R * K * C, "mean: expected contiguous (R, K, C)");
  expects_plain(rstd, accumulate_type(x), R * K * C, "rstd: expected contiguous (R, K, C)");
  Tensor y = torch::stable::empty_like(x);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const Affine<T> affine = affine_of<T>(problem, x, weight, bias, spatial_weight, spatial_bias);
    const A* means = data<A>(mean);
    const A* rstds = data<A>(rstd);
    const T* in = data<T>(x);
    T* out = mutable_data<T>(y);
    if (problem.channels_last) {
      std::vector<A> scale(R * K * C), offset(R * K * C);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t k = 0; k < K; ++k)
          for (int64_t c = 0; c < C; ++c) {
            const int64_t i = at(problem, r, k, c);
            affine.constants(problem, k, c, 0.0, rstds[i], &scale[i], &offset[i]);
          }
      apply_channels_last<T>(problem, in, {means, scale.data(), offset.data()}, affine, out);
    } else {
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        A centre[kMaxRegions], scale[kMaxRegions], offset[kMaxRegions];
        for (int64_t k = 0; k < K; ++k) {
          const int64_t i = at(problem, group, k, channel);
          centre[k] = means[i];
          affine.constants(problem, k, channel, 0.0, rstds[i], scale + k, offset + k);
        }
        apply_channel<T>(problem, planes, in, group, channel, {centre, scale, offset}, affine, out);
      });
    }
  });
  return y;
}

// The tensors of a backward pass; those that a half of it does not use stay undefined.
struct BackwardTensors {
  Tensor grad, x, labels, mean, rstd;
  std::optional<Tensor> count, sums, weight, spatial_weight, pooled_gradient, argmax;
};

// Runs the sums (into new tensors), the application (with given sums), or both.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const BackwardTensors& t, int64_t num_regions,
                                                    bool per_instance, bool ignore_holes,
                                                    bool wants_sums, bool wants_grad_x) {
  const Problem problem = describe(t.x, t.labels, num_regions, per_instance, ignore_holes);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  const ScalarType type = accumulate_type(t.x);
  const int64_t map = problem.images * problem.pixels;
  expects(t.grad.scalar_type() == t.x.scalar_type() && t.grad.numel() == t.x.numel() &&
              is_channels_last(t.grad) == problem.channels_last,
          "grad: expected the dtype, shape and memory format of x");
  expects_plain(t.mean, type, R * K * C, "mean: expected contiguous (R, K, C)");
  expects_plain(t.rstd, type, R * K * C, "rstd: expected contiguous (R, K, C)");
  expects_plain(t.count, ScalarType::Long, R * K, "count: expected contiguous int64 (R, K)");
  expects_plain(t.sums, type, 2 * R * K * C, "sums: expected contiguous (2, R, K, C)");
  expects_plain(t.weight, type, K * C, "weight: expected contiguous (K, C)");
  expects_plain(t.spatial_weight, type, map, "spatial_weight: expected contiguous (N, 1, H, W)");
  expects_plain(t.pooled_gradient, type, 2 * map,
                "pooled_gradient: expected contiguous (N, 2, H, W)");
  expects_plain(t.argmax, ScalarType::Int, map, "argmax: expected contiguous int32 (N, 1, H, W)");
  expects(t.pooled_gradient.has_value() == t.argmax.has_value(),
          "pooled_gradient, argmax: expected both or none");

  Tensor grad_x = wants_grad_x ? torch::stable::empty_like(t.x) : empty(t.x, {0}, type);
  Tensor sums = t.sums.has_value() ? *t.sums : empty(t.x, {2, R, K, C}, type);
  const bool wants_maps = wants_sums && t.spatial_weight.has_value();
  const int64_t N = problem.images, H = t.x.size(2), W = t.x.size(3);
  Tensor grad_spatial_weight = wants_maps ? empty(t.x, {N, 1, H, W}, type) : empty(t.x, {0}, type);
  Tensor grad_spatial_bias = torch::stable::empty_like(grad_spatial_weight);

  dispatch_floating(t.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    Gradient<T> g{data<T>(t.grad),
                  data<T>(t.x),
                  data<A>(t.mean),
                  data<A>(t.rstd),
                  data<A>(t.weight),
                  data<A>(t.spatial_weight),
                  data<int64_t>(t.count),
                  mutable_data<A>(sums),
                  mutable_data<A>(grad_spatial_weight),
                  mutable_data<A>(grad_spatial_bias),
                  {},
                  mutable_data<T>(grad_x)};
    std::vector<A> share, max_gradient;
    if (t.pooled_gradient.has_value()) {
      // One map of each per batch, the mean's already divided by C.
      const A* pooled = data<A>(t.pooled_gradient);
      share.resize(map);
      max_gradient.resize(map);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t p = 0; p < problem.pixels; ++p) {
          share[n * problem.pixels + p] = pooled[2 * n * problem.pixels + p] / static_cast<A>(C);
          max_gradient[n * problem.pixels + p] = pooled[(2 * n + 1) * problem.pixels + p];
        }
      g.pooled.mean_gradient = share.data();
      g.pooled.max_gradient = max_gradient.data();
      g.pooled.argmax = data<int32_t>(t.argmax);
    }
    if (problem.channels_last) {
      if (wants_sums) channels_last_gradient_sums(problem, g);
      if (wants_grad_x) channels_last_gradient_apply(problem, g);
    } else {
      if (wants_maps) spatial_gradient_sums(problem, planes, g);
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        if (wants_sums && !wants_maps) channel_gradient_sums(problem, planes, g, group, channel);
        if (wants_grad_x) channel_gradient_apply(problem, planes, g, group, channel);
      });
    }
  });
  return {grad_x, sums, grad_spatial_weight, grad_spatial_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& count,
    const Tensor& mean, const Tensor& rstd, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& spatial_weight, int64_t num_regions, bool per_instance,
    bool ignore_holes) {
  return backward({grad, x, labels, mean, rstd, count, std::nullopt, weight, spatial_weight,
                   std::nullopt, std::nullopt},
                  num_regions, per_instance, ignore_holes, true, true);
}

std::tuple<Tensor, Tensor, Tensor> region_norm_backward_sums_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& mean,
    const Tensor& rstd, const std::optional<Tensor>& spatial_weight, int64_t num_regions,
    bool per_instance, bool ignore_holes) {
  auto [grad_x, sums, grad_spatial_weight, grad_spatial_bias] =
      backward({grad, x, labels, mean, rstd, std::nullopt, std::nullopt, std::nullopt,
                spatial_weight, std::nullopt, std::nullopt},
               num_regions, per_instance, ignore_holes, true, false);
  return {sums, grad_spatial_weight, grad_spatial_bias};
}

Tensor region_norm_backward_apply_cpu(const Tensor& grad, const Tensor& x, const Tensor& labels,
                                      const Tensor& count, const Tensor& mean, const Tensor& rstd,
                                      const Tensor& sums, const std::optional<Tensor>& weight,
                                      const std::optional<Tensor>& spatial_weight,
                                      const std::optional<Tensor>& pooled_gradient,
                                      const std::optional<Tensor>& argmax, int64_t num_regions,
                                      bool per_instance, bool ignore_holes) {
  return std::get<0>(backward(
      {grad, x, labels, mean, rstd, count, sums, weight, spatial_weight, pooled_gradient, argmax},
      num_regions, per_instance, ignore_holes, false, true));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("region_labels", TORCH_BOX(&region_labels_cpu));
  m.impl("region_statistics", TORCH_BOX(&region_statistics_cpu));
  m.impl("region_norm", TORCH_BOX(&region_norm_cpu));
  m.impl("region_norm_apply", TORCH_BOX(&region_norm_apply_cpu));
  m.impl("region_norm_backward", TORCH_BOX(&region_norm_backward_cpu));
  m.impl("region_norm_backward_sums", TORCH_BOX(&region_norm_backward_sums_cpu));
  m.impl("region_norm_backward_apply", TORCH_BOX(&region_norm_backward_apply_cpu));
}

}  // namespace torchext
