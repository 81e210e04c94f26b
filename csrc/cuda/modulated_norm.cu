// Modulated normalisation: SPADE, SPDNorm, AdaIN, pixel norm (torchext.modulated_norm).
//
//   y = leaky((x - mean) * rstd * scale + shift),  scale and shift from gamma, beta and weight
//
// Passes over memory (T = one tensor; gamma and beta count as tensors where they are full) and
// launches.
//   Statistics per channel: forward 5T in 2: moments of slices (region_statistics.cuh, with one
//     region) read T; apply reads x, gamma, beta, writes y, each block first merging its channels'
//     partial results. Backward 8T in 2: partial sums with gamma's gradient read 3T and write T
//     (beta's is grad); apply reads 3T and writes T. With a weight 9T, as beta's gradient is
//     written; 11T behind an activation, as both read y too.
//   Statistics per pixel: forward 4T in 1, backward 5T in 1 (6T with a weight, 7T with an
//     activation): a block takes some pixels with all their channels; what it reads twice is in
//     shared memory or the cache.
// A gradient summed across the walk (of a map per pixel with statistics per channel, or per channel
// with statistics per pixel) is first written for every element, then summed by a kernel of its
// own.
//
// Launch: statistics per channel 256 threads per slice of pixels of a tile of channels (one if
// contiguous, 64 bytes in channels last); statistics per pixel 256 threads, across pixels first if
// contiguous, across channels first in channels last.
#include "../modulated_norm.h"

#include "modulated_norm_channel.cuh"
#include "modulated_norm_pixel.cuh"
#include "modulated_norm_sums.cuh"

namespace torchext {
namespace {

RegionView view_of(const Problem& problem) {
  RegionView view{};
  view.images = problem.images;
  view.channels = problem.channels;
  view.pixels = problem.pixels;
  view.regions = 1;
  view.groups = problem.groups();
  view.images_per_group = problem.per_image() ? 1 : problem.images;
  return view;
}

template <typename T>
Map<T, true> map_of(const Problem& problem, const GivenMap& given, const MaybeTensor& index) {
  Map<T, true> map;
  map.extent = given.extent;
  if (given.extent == Extent::kElement) {
    map.elements = data<const T>(given.tensor);
  } else {
    map.values = data<const accumulate_t<T>>(given.tensor);
  }
  if (given.extent == Extent::kTable) {
    expects(!problem.per_pixel() && (!problem.channels_last || given.tensor->is_contiguous()),
            "index: expected statistics per channel, and contiguous rows in channels last");
    map.index = data<const int32_t>(index);
    map.row_stride = given.tensor->stride(0);
    map.column_stride = given.tensor->stride(1);
  }
  return map;
}

template <typename T>
Modulation<T> modulation_of(const Problem& problem, const Maps& maps) {
  return {map_of<T>(problem, maps.gamma, maps.index), map_of<T>(problem, maps.beta, maps.index),
          map_of<T>(problem, maps.weight, std::nullopt).without_tables(), maps.gain,
          static_cast<accumulate_t<T>>(maps.slope)};
}

// Of x's elements, in which every tensor can be read and written.
template <typename T, typename... Others>
int access_width(const Problem& problem, const Modulation<T>& m, const T* x,
                 const Others*... others) {
  const int64_t run = problem.channels_last ? problem.channels : problem.pixels;
  return vector_width(run, x, m.gamma.elements, m.gamma.values, m.beta.elements, m.beta.values,
                      m.weight.elements, m.weight.values, m.gamma.index, others...);
}

// Slices of pixels long enough to pay for merging the partial results, short enough to fill a
// large device.
template <typename Shape>
Slicing slicing_of(const RegionView& view) {
  const int64_t tiles = (view.channels + Shape::kChannels - 1) / Shape::kChannels;
  const int64_t step = static_cast<int64_t>(kThreads / Shape::kLanes) * Shape::kPixels;
  const int64_t by_work = view.group_pixels() / (4 * step);
  const int64_t tile_groups = std::max<int64_t>(1, tiles * view.groups);
  const int64_t slices =
      std::max(std::min(by_work, 4096 / tile_groups), slices_for_blocks(view, tiles, step));
  return Slicing(view, tiles, step, std::min<int64_t>(slices, kMaxSlices));
}

// Bytes of a block's pixels whose channels, in `vectors` accesses, are shared by `splits` threads.
template <typename T, int V>
int64_t kept_of(int64_t vectors, int splits) {
  return (vectors + splits - 1) / splits * kThreads * V * static_cast<int64_t>(sizeof(T));
}

// Threads across pixels: no more than there are pixels and, while there are channels for the
// others, as few as make enough blocks and keep their pixels in `kept_bytes` of shared memory (0:
// nothing is kept); if contiguous, as many as read whole sectors.
template <typename T, int V, bool kChannelsLast>
PixelTiling tiling_of(const Problem& problem, bool unbiased, double eps, int64_t kept_bytes) {
  constexpr int kPixels = kChannelsLast ? 1 : V;  // of a slot
  const int64_t images = kChannelsLast ? 1 : problem.images;
  const int64_t pixels = kChannelsLast ? problem.images * problem.pixels : problem.pixels;
  const int64_t vectors = kChannelsLast ? (problem.channels + V - 1) / V : problem.channels;
  const int64_t run = kPixels * static_cast<int64_t>(sizeof(T));
  int slots = kChannelsLast ? kThreads / kWarpSize : kWarpSize / V;
  const auto tiles = [&] { return (pixels + slots * kPixels - 1) / (slots * kPixels); };
  while (kChannelsLast && slots < kThreads && kThreads / slots / 2 >= vectors) slots *= 2;
  const auto large = [&] {
    return kept_bytes > 0 && kept_of<T, V>(vectors, kThreads / slots) > kept_bytes;
  };
  while (slots > 1 && (images * tiles() < kEnoughBlocks || large()) &&
         (kChannelsLast || slots * run > kSectorBytes) && 2 * kThreads / slots <= vectors) {
    slots /= 2;
  }
  while (!kChannelsLast && slots > 1 && slots / 2 * V >= problem.pixels) slots /= 2;
  return {problem.images, problem.channels,
          problem.pixels, tiles(),
          slots,          problem.statistics == Statistics::kPosition,
          unbiased,       eps};
}

dim3 grid_of_tiles(const Problem& problem, const PixelTiling& tiling) {
  return grid_of(problem.channels_last ? tiling.tiles : problem.images * tiling.tiles);
}

void compute(const ModulatedNorm& call) {
  const Tensor& x = call.x;
  const DeviceGuard guard(x);
  const Problem& problem = call.problem;
  const RegionView view = view_of(problem);
  if (x.numel() == 0 && !problem.per_channel()) return;
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto modulation = modulation_of<T>(problem, call.maps);
    const T* in = data<const T>(x);
    T* out = data<T>(call.y);
    const int access = access_width(problem, modulation, in, out,
                                    problem.per_pixel() ? data<A>(call.rstds) : nullptr);
    dispatch_access<T>(access, problem.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      constexpr bool kChannelsLast = decltype(format)::value;
      if (problem.per_pixel()) {
        constexpr int64_t kScratch = sizeof(A) * 2 * (kChannelsLast ? 1 : V) * kThreads;
        constexpr int64_t kMost = 48 * 1024 - kScratch;
        const auto tiling = tiling_of<T, V, kChannelsLast>(problem, call.unbiased, call.eps, kMost);
        const int64_t kept = kept_of<T, V>(
            kChannelsLast ? (view.channels + V - 1) / V : view.channels, kThreads / tiling.slots);
        auto run = [&](auto keep) {
          constexpr bool kKeep = decltype(keep)::value;
          launch(modulated_norm_pixel_kernel<T, V, kChannelsLast, kKeep>,
                 grid_of_tiles(problem, tiling), dim3(kThreads),
                 static_cast<size_t>(kScratch + (kKeep ? kept : 0)), current_stream(x), tiling, in,
                 data<A>(call.means), data<A>(call.rstds), modulation.without_tables(), out);
        };
        if (kept <= kMost) {
          run(std::true_type{});
        } else {
          run(std::false_type{});
        }
        return;
      }
      ChannelStatistics<A> from{{}, nullptr, nullptr, call.unbiased, call.eps};
      PartialsBuffer<A> buffer;
      if (problem.per_channel()) {
        buffer = region_partials<T>(view, x, kChannelsLast, in, nullptr, nullptr, nullptr, nullptr);
        from.partials = buffer.partials;
        from.mean = data<A>(call.means);
        from.rstd = data<A>(call.rstds);
      } else if (problem.given) {
        from.mean =
            const_cast<A*>(data<const A>(call.mean));  // read only, as no partials are given
        from.rstd = const_cast<A*>(data<const A>(call.rstd));
      }
      const Slicing slicing = slicing_of<Threading<T, V, kChannelsLast>>(view);
      launch(modulated_norm_apply_kernel<T, V, kChannelsLast>, slicing.grid(view), dim3(kThreads),
             0, current_stream(x), view, slicing, in, out, from, modulation);
    });
  });
}

// A map's gradient on its way to the tensor that is returned.
template <typename T>
struct PendingGradient {
  MapGradient<T> to;
  Tensor elements;  // of the accumulate type, to be summed into `sums`
  accumulate_t<T>* sums = nullptr;
  Extent extent = Extent::kAbsent;

  // in_walk: the extent whose sums the walk forms itself.
  template <bool kTables>
  PendingGradient(const Tensor& x, const Map<T, kTables>& map, const Tensor& gradient, bool wanted,
                  Extent in_walk)
      : elements(gradient) {
    using A = accumulate_t<T>;
    if (!wanted || map.extent == Extent::kAbsent) return;
    if (map.extent == Extent::kElement || map.extent == Extent::kTable) {
      to.elements = data<T>(gradient);  // of a table every element's share of its row
    } else if (map.extent != in_walk) {
      extent = map.extent;
      elements = new_tensor(x, {x.numel()}, accumulate_type(x));
      to.wide = data<A>(elements);
      sums = data<A>(gradient);
    } else if (in_walk == Extent::kPixel) {
      to.pixels = data<A>(gradient);
    }
  }

  void sum(const Problem& problem, const Tensor& x) const {
    using A = accumulate_t<T>;
    if (sums == nullptr) return;
    const int64_t all = problem.images * problem.pixels;
    const int64_t C = problem.channels, P = problem.pixels, planes = problem.images * C;
    if (extent == Extent::kPixel) {
      const int64_t of_block = problem.channels_last ? kSumWarps : kWarpSize;
      launch(modulated_norm_channel_sum_kernel<A>, grid_of((all + of_block - 1) / of_block),
             dim3(kThreads), 0, current_stream(x), to.wide, sums, C, P, all, problem.channels_last);
    } else if (!problem.channels_last) {
      launch(modulated_norm_plane_sum_kernel<A>, grid_of(planes), dim3(kThreads), 0,
             current_stream(x), to.wide, sums, P);
    } else {
      const int64_t tiles = (C + kWarpSize - 1) / kWarpSize;
      const int64_t wanted = kEnoughBlocks / std::max<int64_t>(1, problem.images * tiles);
      const int64_t slices =
          std::clamp<int64_t>(P / (4 * kSumWarps), 1, std::clamp<int64_t>(wanted, 1, kMaxSlices));
      Tensor parts;
      if (slices > 1) parts = new_tensor(x, {planes * slices}, accumulate_type(x));
      launch(modulated_norm_plane_sum_channels_last_kernel<A>,
             grid_of(problem.images * slices * tiles), dim3(kThreads), 0, current_stream(x),
             to.wide, slices > 1 ? data<A>(parts) : sums, C, P, tiles, slices);
      if (slices > 1) {
        launch(modulated_norm_total_kernel<A>, grid_of((planes + kSumWarps - 1) / kSumWarps),
               dim3(kThreads), 0, current_stream(x), data<const A>(parts), slices, planes, sums,
               static_cast<A*>(nullptr));
      }
    }
  }
};

void compute(const ModulatedNormBackward& call) {
  const Tensor& x = call.x;
  const DeviceGuard guard(x);
  const Problem& problem = call.problem;
  const RegionView view = view_of(problem);
  const ScalarType type = accumulate_type(x);
  const int64_t C = problem.channels, R = problem.groups();
  if (x.numel() == 0 && call.sums.numel() == 0) return;

  // The sums of maps per channel are of each image; a batch's walk goes image by image only if
  // every image is a group of its own.
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto modulation = modulation_of<T>(problem, call.maps);
    const GradientInputs<T> in{data<const T>(call.grad), data<const T>(call.y), data<const T>(x),
                               problem.centred() ? data<const A>(call.mean) : nullptr,
                               problem.normalised() ? data<const A>(call.rstd) : nullptr};
    const Extent in_walk = problem.per_pixel()          ? Extent::kPixel
                           : view.images_per_group == 1 ? Extent::kChannel
                                                        : Extent::kAbsent;
    const bool maps = call.wants_maps();
    const PendingGradient<T> gamma(x, modulation.gamma, call.grad_gamma, maps, in_walk);
    const PendingGradient<T> beta(x, modulation.gamma, call.grad_beta,
                                  maps && !call.maps.beta_has_gradient_of_y(), in_walk);
    const PendingGradient<T> weight(x, modulation.weight, call.grad_weight,
                                    maps && call.wants_weight(), in_walk);
    const MapGradients<T> out{gamma.to, beta.to, weight.to};
    T* to = data<T>(call.grad_x);
    const int access =
        access_width(problem, modulation, in.x, in.grad, in.y, to, out.gamma.elements,
                     out.gamma.wide, out.gamma.pixels, out.beta.elements, out.beta.wide,
                     out.beta.pixels, out.weight.elements, out.weight.wide, out.weight.pixels);
    dispatch_access<T>(access, problem.channels_last, [&](auto width, auto format) {
      constexpr int V = decltype(width)::value;
      constexpr bool kChannelsLast = decltype(format)::value;
      if (problem.per_pixel()) {
        const auto tiling = tiling_of<T, V, kChannelsLast>(problem, call.unbiased, 0.0, 0);
        launch(modulated_norm_pixel_backward_kernel<T, V, kChannelsLast>,
               grid_of_tiles(problem, tiling), dim3(kThreads),
               sizeof(A) * 5 * (kChannelsLast ? 1 : V) * kThreads, current_stream(x), tiling, in,
               modulation.without_tables(), out, to);
        return;
      }
      using Shape = Threading<T, V, kChannelsLast>;
      const Slicing slicing = slicing_of<Shape>(view);
      Tensor planes, map_planes;
      Partials<A> partials{nullptr, nullptr, slicing.slices}, map_partials = partials;
      const int64_t results = 2 * R * C;
      const bool channel_map =
          maps && modulation.gamma.extent == Extent::kChannel && in_walk == Extent::kChannel;
      const auto total = [&](const A* of, A* first, A* second) {
        launch(modulated_norm_total_kernel<A>, grid_of((results + kSumWarps - 1) / kSumWarps),
               dim3(kThreads), 0, current_stream(x), of, slicing.slices, results / 2, first,
               second);
      };
      if (maps) {
        const bool final_sums = slicing.slices == 1 && call.sums.numel() > 0;
        if (problem.per_channel()) {
          planes = final_sums ? call.sums : new_tensor(x, {results * slicing.slices}, type);
          partials.planes = data<A>(planes);
        }
        if (channel_map) {
          map_planes = new_tensor(x, {results * slicing.slices}, type);
          map_partials.planes = data<A>(map_planes);
        }
        launch(modulated_norm_backward_sums_kernel<T, V, kChannelsLast>, slicing.grid(view),
               dim3(kThreads), sizeof(A) * 4 * Shape::kSums * kThreads, current_stream(x), view,
               slicing, in, modulation, out, partials, map_partials);
        if (channel_map)
          total(map_partials.planes, data<A>(call.grad_gamma), data<A>(call.grad_beta));
        if (call.sums.numel() > 0 && !final_sums)
          total(partials.planes, data<A>(call.sums), data<A>(call.sums) + results / 2);
      }
      if (!call.wants_grad_x()) return;
      const bool divided = call.mean_sums.has_value();
      if (divided) partials = {const_cast<A*>(data<const A>(call.mean_sums)), nullptr, 1};
      launch(modulated_norm_backward_apply_kernel<T, V, kChannelsLast>, slicing.grid(view),
             dim3(kThreads), 0, current_stream(x), view, slicing, in, modulation, partials, divided,
             call.unbiased, to);
    });
    for (const auto* pending : {&gamma, &beta, &weight}) pending->sum(problem, x);
  });
}

void compute(const SegmentedSum& call) {
  const DeviceGuard guard(call.values);
  const int64_t C = call.values.size(1), P = call.values.size(2) * call.values.size(3);
  const int64_t rows = call.sums.size(0);
  expects(call.order.has_value() && call.offsets.has_value(),
          "order, offsets: expected the sorted pixels");
  dispatch_floating(call.values.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const int32_t* sorted = data<const int32_t>(call.order);
    const int32_t* first = data<const int32_t>(call.offsets);
    if (call.channels_last) {
      const int64_t tiles = (C + kWarpSize - 1) / kWarpSize;
      launch(segmented_sum_channels_last_kernel<T>, grid_of(rows * tiles), dim3(kThreads), 0,
             current_stream(call.values), data<const T>(call.values), sorted, first, tiles, C,
             data<A>(call.sums));
    } else {
      launch(segmented_sum_kernel<T>, grid_of((rows * C + kSumWarps - 1) / kSumWarps),
             dim3(kThreads), 0, current_stream(call.values), data<const T>(call.values), sorted,
             first, rows * C, C, P, data<A>(call.sums));
    }
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
