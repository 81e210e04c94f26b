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
#include "../region_norm.h"

#include <cmath>

#include "region_norm_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

// Chunks of pixels that sums over a whole image are split into, at most: bounds partial results.
constexpr int64_t kMaxChunks = 32;

// Of float32: 8 MiB, which are no longer cached when all of it is written.
constexpr int64_t kStreamElements = int64_t{2} << 20;

struct Problem : Regions {
  const uint8_t* labels;
  bool stream;  // results do not stay in the cache

  Problem(const Regions& regions, const Tensor& x, const Tensor& labels)
      : Regions(regions),
        labels(data<const uint8_t>(labels)),
        stream(x.scalar_type() == ScalarType::Float && x.numel() >= kStreamElements) {}
  int64_t group(int64_t image) const { return per_instance ? image : 0; }
  int64_t first_image(int64_t group) const { return per_instance ? group : 0; }
  int64_t last_image(int64_t group) const { return per_instance ? group + 1 : images; }
  const uint8_t* image_labels(int64_t image) const {
    return labels + (shared_labels ? 0 : image * pixels);
  }
};

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
Affine<T> affine_of(const RegionAffine& given) {
  using A = accumulate_t<T>;
  Affine<T> affine{data<const A>(given.weight), data<const A>(given.bias), {}};
  affine.maps.weight = data<const A>(given.spatial_weight);
  affine.maps.bias = data<const A>(given.spatial_bias);
  return affine;
}

template <class T>
void apply_channel(const Problem& problem, const LabelPlanes& planes, const T* x, int64_t group,
                   int64_t channel, const RegionConstants<accumulate_t<T>>& k,
                   const Affine<T>& affine, T* y) {
  for (int64_t n = problem.first_image(group); n < problem.last_image(group); ++n) {
    const int64_t plane = (n * problem.channels + channel) * problem.pixels;
    TORCHEXT_AT_SIMD_LEVEL(plane_apply<T>)(x + plane, planes.plane(n), k, problem.regions,
                                           affine.image(problem, n), problem.ignore_holes,
                                           problem.stream, y + plane);
  }
}

// Applies per-(group, region, channel) constants to a channels-last tensor.
template <class T>
void apply_channels_last(const Problem& problem, const T* x,
                         const RegionConstants<accumulate_t<T>>& k, const Affine<T>& affine, T* y) {
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
void nearest_labels(const RegionLabels& call, const Tensor& mask) {
  const T* in = data<const T>(mask);
  uint8_t* out = data<uint8_t>(call.labels);
  const int64_t height = call.height, width = call.width, regions = call.regions;
  const int64_t in_height = mask.size(2), in_width = mask.size(3);
  if (call.check_values) check_labels(in, mask.numel(), regions);
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

void compute(const RegionLabels& call) {
  const auto run = [&](auto zero) { nearest_labels<decltype(zero)>(call, call.mask); };
  switch (call.mask.scalar_type()) {
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
      const ScalarType type = call.mask.scalar_type();
      expects(type == ScalarType::Half || type == ScalarType::BFloat16,
              "mask: expected a boolean, integer or floating-point tensor");
      const Tensor wide = torch::stable::to(call.mask, ScalarType::Float);
      nearest_labels<float>(call, wide);
    }
  }
}

void compute(const RegionStatistics& call) {
  const Problem problem(call.regions, call.x, call.labels);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, C = problem.channels;
  planes.write_counts(data<int64_t>(call.count));
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    A* means = data<A>(call.mean);
    A* variances = data<A>(call.variance);
    const auto store = [&](int64_t group, int64_t channel, const Moments* moments, int64_t stride) {
      for_each_region(problem, moments, stride, [&](int64_t k, double m, double v) {
        means[at(problem, group, k, channel)] = static_cast<A>(m);
        variances[at(problem, group, k, channel)] = static_cast<A>(v);
      });
    };
    if (problem.channels_last) {
      const std::vector<Moments> moments = channels_last_moments(problem, data<const T>(call.x));
      for (int64_t r = 0; r < R; ++r)
        for (int64_t c = 0; c < C; ++c) store(r, c, &moments[at(problem, r, 0, c)], C);
    } else {
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        Moments moments[kMaxRegions];
        channel_moments(problem, planes, data<const T>(call.x), group, channel, moments);
        store(group, channel, moments, 1);
      });
    }
  });
}

void compute(const RegionNorm& call) {
  const Problem problem(call.regions, call.x, call.labels);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  int64_t* counts = data<int64_t>(call.count);
  planes.write_counts(counts);
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const Affine<T> affine = affine_of<T>(call.affine);
    A* means = data<A>(call.mean);
    A* rstds = data<A>(call.rstd);
    const T* in = data<const T>(call.x);
    T* out = data<T>(call.y);
    // From moments to the saved statistics and to the constants of the application.
    const auto finalise = [&](int64_t group, int64_t channel, const Moments* moments,
                              int64_t stride, A* scale, A* offset) {
      for_each_region(problem, moments, stride, [&](int64_t k, double m, double v) {
        const double e = effective_eps(problem, call.eps, call.scale_eps, counts[group * K + k]);
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
}

void compute(const RegionNormApply& call) {
  const Problem problem(call.regions, call.x, call.labels);
  const LabelPlanes planes(problem);
  const int64_t R = problem.groups, K = problem.regions, C = problem.channels;
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const Affine<T> affine = affine_of<T>(call.affine);
    const A* means = data<const A>(call.mean);
    const A* rstds = data<const A>(call.rstd);
    const T* in = data<const T>(call.x);
    T* out = data<T>(call.y);
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
}

void compute(RegionNormBackward& call) {
  const Problem problem(call.regions, call.x, call.labels);
  const LabelPlanes planes(problem);
  const bool wants_maps = call.wants_sums && call.spatial_weight.has_value();
  dispatch_floating(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    Gradient<T> g{data<const T>(call.grad),
                  data<const T>(call.x),
                  data<const A>(call.mean),
                  data<const A>(call.rstd),
                  data<const A>(call.weight),
                  data<const A>(call.spatial_weight),
                  data<const int64_t>(call.count),
                  data<A>(call.sums),
                  data<A>(call.grad_spatial_weight),
                  data<A>(call.grad_spatial_bias),
                  {},
                  data<T>(call.grad_x)};
    std::vector<A> share, max_gradient;
    if (call.pooled_gradient.has_value()) {
      // One map of each per batch, the mean's already divided by C.
      const A* pooled = data<const A>(call.pooled_gradient);
      share.resize(problem.map());
      max_gradient.resize(problem.map());
      for (int64_t n = 0; n < problem.images; ++n)
        for (int64_t p = 0; p < problem.pixels; ++p) {
          share[n * problem.pixels + p] =
              pooled[2 * n * problem.pixels + p] / static_cast<A>(problem.channels);
          max_gradient[n * problem.pixels + p] = pooled[(2 * n + 1) * problem.pixels + p];
        }
      g.pooled.mean_gradient = share.data();
      g.pooled.max_gradient = max_gradient.data();
      g.pooled.argmax = data<const int32_t>(call.argmax);
    }
    if (problem.channels_last) {
      if (call.wants_sums) channels_last_gradient_sums(problem, g);
      if (call.wants_grad_x) channels_last_gradient_apply(problem, g);
    } else {
      if (wants_maps) spatial_gradient_sums(problem, planes, g);
      for_each_channel(problem, [&](int64_t group, int64_t channel) {
        if (call.wants_sums && !wants_maps)
          channel_gradient_sums(problem, planes, g, group, channel);
        if (call.wants_grad_x) channel_gradient_apply(problem, planes, g, group, channel);
      });
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
