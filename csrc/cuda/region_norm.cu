// Region normalisation: "Region Normalization for Image Inpainting" (AAAI 2020).
//
//   y = (x - mean_k) * rstd_k * weight_k + bias_k,   k = the pixel's region
//
// Passes over memory (T = one tensor) and launches, after region_labels:
//   forward     3T in 2: moments of slices (region_statistics.cuh) read T; apply reads T, writes T.
//               Every block of the second first merges its channels' partial results itself.
//   backward    5T in 2: partial sums read 2T; apply reads 2T, writes T. With a spatial affine 5T
//               in 3: its sums also run over channels, so a tile kernel forms both kinds of sums
//               in one pass and a small kernel adds up the partial results.
// The floor is the same unless a whole channel stays in the cache between the passes.
//
// Launch: apply kernels take 128 threads per tile of channels (8 when contiguous, 64 bytes in
// channels last) and slice of pixels; coefficients of every region and channel of the tile lie in
// shared memory.
#include "../region_norm.h"
#include "region_labels.cuh"
#include "region_norm_backward.cuh"
#include "region_norm_sums.cuh"

namespace torchext {
namespace {

RegionView view_of(const Regions& regions) {
  RegionView view;
  view.images = regions.images;
  view.channels = regions.channels;
  view.pixels = regions.pixels;
  view.groups = regions.groups;
  view.images_per_group = regions.per_instance ? 1 : regions.images;
  view.regions = static_cast<int>(regions.regions);
  view.shared_labels = regions.shared_labels && regions.images != 1;
  view.ignore_holes = regions.ignore_holes;
  return view;
}

// The apply kernels' cut: enough blocks to fill a large device, but each reading rather more of
// the tensor than of the partial results that it combines.
template <typename T, int V, bool kChannelsLast>
Slicing apply_slicing(const RegionView& view, int64_t partial_slices) {
  constexpr int kChannels = apply_channels<T, kChannelsLast>();
  const int64_t step = kChannelsLast ? kApplyThreads / (kChannels / V) : kApplyThreads * V;
  const int64_t tiles = (view.channels + kChannels - 1) / kChannels;
  const int64_t tile_groups = std::max<int64_t>(1, tiles * view.groups);
  const int64_t paying =
      view.group_pixels() * static_cast<int64_t>(sizeof(T)) /
      (8 * view.regions * partial_slices * static_cast<int64_t>(sizeof(accumulate_t<T>)));
  const int64_t slices = std::max(std::min(paying, 2048 / tile_groups), 256 / tile_groups);
  return Slicing(view, tiles, step, slices);
}

// Calls f(width tag, channels-last tag) with the accesses that everything allows that is read or
// written V elements at a time.
template <typename T, typename F, typename... Maps>
void dispatch_apply(const RegionView& view, bool channels_last, F&& f, const T* x, const T* other,
                    const T* result, const Maps*... maps) {
  const int width = channels_last ? vector_width(view.channels, x, other, result)
                                  : vector_width(view.pixels, x, other, result, maps...);
  dispatch_access<T>(width, channels_last, f);
}

template <typename T>
void launch_apply(const RegionView& view, bool channels_last, const Tensor& x, const Tensor& labels,
                  const Tensor& y, const Statistics<accumulate_t<T>>& statistics,
                  const Affine<accumulate_t<T>>& affine) {
  using A = accumulate_t<T>;
  dispatch_apply<T>(
      view, channels_last,
      [&](auto width, auto format) {
        constexpr int V = decltype(width)::value;
        constexpr bool kChannelsLast = decltype(format)::value;
        constexpr int kChannels = apply_channels<T, kChannelsLast>();
        const bool given = statistics.partials.planes == nullptr;
        const Slicing slicing =
            apply_slicing<T, V, kChannelsLast>(view, given ? 1 : statistics.partials.slices);
        launch(region_norm_apply_kernel<T, V, kChannelsLast>, slicing.grid(view),
               dim3(kApplyThreads),
               Table<A, kChannels, kChannelsLast>::bytes(view.regions, kForwardCoefficients),
               current_stream(x), view, slicing, data<const T>(x), data<const uint8_t>(labels),
               data<T>(y), statistics, affine);
      },
      data<const T>(x), static_cast<const T*>(nullptr), data<const T>(y),
      data<const uint8_t>(labels), affine.spatial_weight, affine.spatial_bias);
}

template <typename A>
Affine<A> affine_of(const RegionAffine& given) {
  return {data<const A>(given.weight), data<const A>(given.bias),
          data<const A>(given.spatial_weight), data<const A>(given.spatial_bias)};
}

void compute(const RegionLabels& call) {
  const Tensor& mask = call.mask;
  const DeviceGuard guard(mask);
  const int64_t rows = mask.size(0) * call.height;
  constexpr int kRowsPerBlock = 8;
  auto run = [&](auto type) {
    using M = typename decltype(type)::type;
    auto run_width = [&](auto kernel) {
      launch(kernel, dim3(static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock)),
             dim3(kWarpSize, kRowsPerBlock), 0, current_stream(mask), data<const M>(mask),
             data<uint8_t>(call.labels), rows, call.height, call.width, mask.size(2), mask.size(3),
             static_cast<int>(call.regions), call.check_values);
    };
    if (call.width % 4 == 0) {
      run_width(region_labels_kernel<M, 4>);
    } else {
      run_width(region_labels_kernel<M, 1>);
    }
  };
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
      run(Type<bool>{});
      break;
    case ScalarType::Byte:
      run(Type<uint8_t>{});
      break;
    case ScalarType::Char:
      run(Type<int8_t>{});
      break;
    case ScalarType::Short:
      run(Type<int16_t>{});
      break;
    case ScalarType::Int:
      run(Type<int32_t>{});
      break;
    case ScalarType::Long:
      run(Type<int64_t>{});
      break;
    default:
      dispatch_floating(mask.scalar_type(), run);
  }
}

void compute(const RegionStatistics& call) {
  const DeviceGuard guard(call.x);
  const RegionView view = view_of(call.regions);
  dispatch_floating(call.x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const auto buffer =
        region_partials<T>(view, call.x, call.regions.channels_last, data<const T>(call.x), nullptr,
                           data<const uint8_t>(call.labels), nullptr, nullptr);
    const int64_t rows_per_block = kApplyThreads / kWarpSize;
    launch(combine_moments_kernel<A>,
           grid_of((call.mean.numel() + rows_per_block - 1) / rows_per_block), dim3(kApplyThreads),
           0, current_stream(call.x), view, buffer.partials, data<int64_t>(call.count),
           data<A>(call.mean), data<A>(call.variance));
  });
}

void compute(const RegionNorm& call) {
  const DeviceGuard guard(call.x);
  const RegionView view = view_of(call.regions);
  dispatch_floating(call.x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const auto buffer =
        region_partials<T>(view, call.x, call.regions.channels_last, data<const T>(call.x), nullptr,
                           data<const uint8_t>(call.labels), nullptr, nullptr);
    launch_apply<T>(view, call.regions.channels_last, call.x, call.labels, call.y,
                    Statistics<A>{buffer.partials, data<int64_t>(call.count), data<A>(call.mean),
                                  data<A>(call.rstd), call.eps, call.scale_eps},
                    affine_of<A>(call.affine));
  });
}

void compute(const RegionNormApply& call) {
  const DeviceGuard guard(call.x);
  const RegionView view = view_of(call.regions);
  dispatch_floating(call.x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    // the kernel writes mean and rstd only where it combined them from partial results
    A* const mean = const_cast<A*>(data<const A>(call.mean));
    A* const rstd = const_cast<A*>(data<const A>(call.rstd));
    launch_apply<T>(view, call.regions.channels_last, call.x, call.labels, call.y,
                    Statistics<A>{{}, nullptr, mean, rstd, 0.0, false}, affine_of<A>(call.affine));
  });
}

// Both kinds of sums of a spatial affine, in their final form.
template <typename T>
void launch_spatial_sums(const RegionView& view, const RegionNormBackward& call) {
  const Tensor& x = call.x;
  using A = accumulate_t<T>;
  constexpr size_t kSharedBytes = 48 * 1024;
  const size_t warp_bytes =
      sizeof(A) * (2 * kTile * kTilePitch + 2 * kTile + 2 * view.regions * kTile);
  int warps = 4;
  while (warps > 1 && warps * warp_bytes > kSharedBytes) warps /= 2;

  SpatialSplit split;
  const int64_t channel_tiles = (view.channels + kTile - 1) / kTile;
  split.channel_warps = 1;
  while (split.channel_warps < warps && split.channel_warps < channel_tiles) {
    split.channel_warps *= 2;
  }
  split.splits =
      static_cast<unsigned>((channel_tiles + split.channel_warps - 1) / split.channel_warps);
  split.image_tiles = (view.pixels + kTile - 1) / kTile;
  const int64_t per_step = warps / split.channel_warps;
  const int64_t steps =
      std::max<int64_t>(1, (split.image_tiles * view.images_per_group + per_step - 1) / per_step);
  const int64_t wanted =
      std::max<int64_t>(1, 1024 / std::max<int64_t>(1, view.groups * split.splits));
  split.length = (steps + wanted - 1) / wanted;
  split.slices = (steps + split.length - 1) / split.length;

  const int64_t results = view.groups * view.regions * view.channels;
  const int64_t pixels = view.images * view.pixels;
  const bool final_sums = split.slices == 1;
  const bool final_maps = split.splits == 1;
  Tensor partial_sums =
      final_sums ? call.sums : new_tensor(x, {2 * results * split.slices}, accumulate_type(x));
  Tensor parts = final_maps ? call.grad_spatial_weight
                            : new_tensor(x, {2 * split.splits * pixels}, accumulate_type(x));
  A* weight_parts = data<A>(parts);
  A* bias_parts =
      final_maps ? data<A>(call.grad_spatial_bias) : weight_parts + split.splits * pixels;
  const Partials<A> partials{data<A>(partial_sums), nullptr, split.slices};

  dispatch_apply<T>(
      view, call.regions.channels_last,
      [&](auto width, auto format) {
        launch(spatial_sums_kernel<T, decltype(width)::value, decltype(format)::value>,
               grid_of(view.groups * split.slices * split.splits), dim3(warps * kWarpSize),
               warps * warp_bytes, current_stream(x), view, split, data<const T>(call.grad),
               data<const T>(x), data<const uint8_t>(call.labels), data<const A>(call.mean),
               data<const A>(call.rstd), data<const A>(call.spatial_weight), partials, weight_parts,
               bias_parts);
      },
      data<const T>(x), data<const T>(call.grad), static_cast<const T*>(nullptr));
  if (final_sums && final_maps) return;
  const int64_t rows_per_block = kApplyThreads / kWarpSize;
  const unsigned row_blocks =
      final_sums ? 0 : static_cast<unsigned>((results + rows_per_block - 1) / rows_per_block);
  const unsigned pixel_blocks =
      final_maps ? 0 : static_cast<unsigned>((pixels + kApplyThreads - 1) / kApplyThreads);
  launch(combine_sums_kernel<A>, dim3(row_blocks + pixel_blocks), dim3(kApplyThreads), 0,
         current_stream(x), results, static_cast<int>(split.slices),
         static_cast<const A*>(partials.planes), data<A>(call.sums), row_blocks, pixels,
         static_cast<int>(split.splits), static_cast<const A*>(weight_parts),
         static_cast<const A*>(bias_parts), data<A>(call.grad_spatial_weight),
         data<A>(call.grad_spatial_bias));
}

template <typename T>
void launch_backward_apply(const RegionView& view, const RegionNormBackward& call,
                           const BackwardTerms<accumulate_t<T>>& terms) {
  using A = accumulate_t<T>;
  dispatch_apply<T>(
      view, call.regions.channels_last,
      [&](auto width, auto format) {
        constexpr int V = decltype(width)::value;
        constexpr bool kChannelsLast = decltype(format)::value;
        constexpr int kChannels = apply_channels<T, kChannelsLast>();
        const Slicing slicing = apply_slicing<T, V, kChannelsLast>(view, terms.sums.slices);
        const bool spatial = terms.spatial_weight != nullptr || terms.pooled_gradient != nullptr;
        launch(spatial ? region_norm_backward_apply_kernel<T, V, kChannelsLast, true>
                       : region_norm_backward_apply_kernel<T, V, kChannelsLast, false>,
               slicing.grid(view), dim3(kApplyThreads),
               Table<A, kChannels, kChannelsLast>::bytes(view.regions, kBackwardCoefficients),
               current_stream(call.x), view, slicing, data<const T>(call.grad),
               data<const T>(call.x), data<const uint8_t>(call.labels), data<T>(call.grad_x),
               terms);
      },
      data<const T>(call.x), data<const T>(call.grad), data<const T>(call.grad_x),
      data<const uint8_t>(call.labels), terms.spatial_weight, terms.pooled_gradient, terms.argmax);
}

// The sums' partial results into call.sums.
template <typename A>
void combine_sums(const PartialsBuffer<A>& buffer, RegionNormBackward& call) {
  const Regions& r = call.regions;
  if (buffer.partials.slices == 1) {
    call.sums = torch::stable::view(buffer.planes, {{2, r.groups, r.regions, r.channels}});
    return;
  }
  const int64_t rows_per_block = kApplyThreads / kWarpSize;
  const int64_t row_blocks = (r.statistics() + rows_per_block - 1) / rows_per_block;
  const A* none = nullptr;
  launch(combine_sums_kernel<A>, grid_of(row_blocks), dim3(kApplyThreads), 0,
         current_stream(call.x), r.statistics(), static_cast<int>(buffer.partials.slices),
         static_cast<const A*>(buffer.partials.planes), data<A>(call.sums),
         static_cast<unsigned>(row_blocks), int64_t{0}, 0, none, none, static_cast<A*>(nullptr),
         static_cast<A*>(nullptr));
}

void compute(RegionNormBackward& call) {
  const DeviceGuard guard(call.x);
  const RegionView view = view_of(call.regions);
  dispatch_floating(call.x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    BackwardTerms<A> terms{data<const int64_t>(call.count),
                           data<const A>(call.mean),
                           data<const A>(call.rstd),
                           {},
                           nullptr,
                           data<const A>(call.weight),
                           data<const A>(call.spatial_weight),
                           data<const A>(call.pooled_gradient),
                           data<const int32_t>(call.argmax)};
    PartialsBuffer<A> buffer;
    const bool partial = call.wants_sums && !call.spatial_weight.has_value();
    if (partial) {
      buffer = region_partials<T, true>(
          view, call.x, call.regions.channels_last, data<const T>(call.x), data<const T>(call.grad),
          data<const uint8_t>(call.labels), data<const A>(call.mean), data<const A>(call.rstd));
      terms.sums = buffer.partials;
      terms.total_sums = data<A>(call.sums);
    } else {
      if (call.wants_sums) launch_spatial_sums<T>(view, call);
      // a single slice is only read: Partials is the view that kernels write through, too
      terms.sums = Partials<A>{const_cast<A*>(data<const A>(call.sums)), nullptr, 1};
    }
    if (call.wants_grad_x) {
      launch_backward_apply<T>(view, call, terms);
    } else if (partial) {
      combine_sums(buffer, call);
    }
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
