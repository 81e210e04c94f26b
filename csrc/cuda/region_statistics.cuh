// Sums over the pixels of each region, per channel: the moments (count, mean, M2) that
// normalisations need forward, and the pairs (sum g, sum g * (x - mean)) that they need backward.
//
// One pass over the tensor. The pixels of a statistics group (one image, or the whole batch) are
// cut into slices; a block takes one slice of one tile of channels and writes one partial result
// per region and channel. Whoever needs the total (an apply kernel's block, or a combining kernel)
// merges a channel's partial results, at most 64, in a fixed order: nothing is accumulated
// atomically, so every run gives the same bits.
//
// A thread keeps sums of its own for every region: short runs in registers, folded into its slots
// of shared memory after at most a few hundred terms. Moments are taken about the run's first
// value, which is near the rest (a mean of 1e4 deviations costs nothing), and merged by Chan's
// formula, so neither long chains nor an outlier in the first place lose accuracy.
//
// Launch: 256 threads (fewer for many regions, to fit the slots into shared memory), grid =
// channel tiles x slices x groups. Contiguous: a tile is one channel, threads run along pixels.
// Channels last: a tile is 64 bytes of channels, a thread owns V of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace torchext {

constexpr int kStatisticsThreads = 256;
constexpr int kMaxSlices = 64;
constexpr int kRunLength = 256;
constexpr int kChannelTileBytes = 64;

// ---- the problem --------------------------------------------------------------------------------

struct RegionView {
  int64_t images, channels, pixels;
  int64_t groups, images_per_group;  // of statistics: every image by itself, or the batch as one
  int regions;
  bool shared_labels;  // one label map serves every image
  bool ignore_holes;   // pixels of region 0 may hold anything and are not computed with

  __host__ __device__ int64_t group_pixels() const { return images_per_group * pixels; }
  // Labels are trusted nowhere: one outside the regions counts as the last region.
  __device__ int region(uint8_t label) const { return label < regions ? label : regions - 1; }
  __device__ bool is_hole(int region) const { return ignore_holes && region == 0; }
};

// The pixels of every group cut into slices of equal length, and how a thread steps through one.
struct Slicing {
  int64_t slices, length;            // length in pixels, a multiple of the block's step
  int64_t step;                      // pixels that the block covers at once
  int64_t step_images, step_pixels;  // the same step as whole images and a rest
  unsigned tiles;                    // of channels

  Slicing(const RegionView& view, int64_t tiles, int64_t step, int64_t wanted_slices)
      : step(step),
        step_images(step / view.pixels),
        step_pixels(step % view.pixels),
        tiles(static_cast<unsigned>(tiles)) {
    // an empty batch is one slice without pixels, so that its (empty) statistics are written
    const int64_t steps = std::max<int64_t>(1, (view.group_pixels() + step - 1) / step);
    wanted_slices = std::max<int64_t>(1, std::min(wanted_slices, steps));
    length = (steps + wanted_slices - 1) / wanted_slices * step;
    slices = std::max<int64_t>(1, (view.group_pixels() + length - 1) / length);
  }

  dim3 grid(const RegionView& view) const { return grid_of(view.groups * slices * tiles); }
};

// Slices that make enough blocks, as long as these have two steps each, or there are few to merge.
inline int64_t slices_for_blocks(const RegionView& view, int64_t tiles, int64_t step) {
  const int64_t steps = view.group_pixels() / step;
  return std::min(kEnoughBlocks / std::max<int64_t>(1, tiles * view.groups),
                  std::max(steps / 2, std::min<int64_t>(steps, 4)));
}

// Which slice, channel tile and group the block works on. Tiles run fastest: blocks that share a
// label map, and in channels last a line of memory, are in flight together.
struct BlockWork {
  int64_t group, slice;
  unsigned tile;

  __device__ explicit BlockWork(const Slicing& slicing) {
    tile = blockIdx.x % slicing.tiles;
    const unsigned rest = blockIdx.x / slicing.tiles;
    group = rest / static_cast<unsigned>(slicing.slices);
    slice = rest % static_cast<unsigned>(slicing.slices);
  }
};

// A thread's walk along the pixels of a slice, without a division per step.
template <bool kChannelsLast>
class Cursor {
 public:
  __device__ Cursor(const RegionView& view, const Slicing& slicing, const BlockWork& work,
                    int64_t first_pixel, int64_t channel) {
    const int64_t first_image = work.group * view.images_per_group;
    index_ = work.slice * slicing.length + first_pixel;
    end_ = min((work.slice + 1) * slicing.length, view.group_pixels());
    const int64_t image = view.images_per_group == 1 ? 0 : index_ / view.pixels;
    pixel_ = index_ - image * view.pixels;
    index_ += first_image * view.pixels;
    end_ += first_image * view.pixels;
    pixels_ = view.pixels;
    step_ = slicing.step;
    step_pixels_ = slicing.step_pixels;
    if (kChannelsLast) {
      offset_ = index_ * view.channels + channel;
      step_offset_ = step_ * view.channels;
      wrap_ = 0;
    } else {
      offset_ = ((first_image + image) * view.channels + channel) * view.pixels + pixel_;
      step_offset_ = slicing.step_images * view.channels * view.pixels + step_pixels_;
      wrap_ = (view.channels - 1) * view.pixels;
    }
    shared_labels_ = view.shared_labels;
  }

  __device__ bool inside() const { return index_ < end_; }
  __device__ void stop() { index_ = end_; }
  __device__ int64_t index() const { return index_; }    // of the pixel in an (N,1,H,W) map
  __device__ int64_t offset() const { return offset_; }  // of the element in x
  __device__ int64_t label() const { return shared_labels_ ? pixel_ : index_; }
  __device__ int64_t pixel() const { return pixel_; }  // within the image

  __device__ void advance() {
    index_ += step_;
    offset_ += step_offset_;
    pixel_ += step_pixels_;
    if (pixel_ >= pixels_) {
      pixel_ -= pixels_;
      offset_ += wrap_;
    }
  }

 private:
  int64_t index_, end_, pixel_, offset_;
  int64_t pixels_, step_, step_pixels_, step_offset_, wrap_;
  bool shared_labels_;
};

// How a block's threads lie on a tile of channels and the pixels.
template <typename T, int V, bool kChannelsLast>
struct Threading {
  static constexpr int kChannels = kChannelsLast ? kChannelTileBytes / sizeof(T) : 1;  // of a tile
  static constexpr int kLanes = kChannelsLast ? kChannels / V : 1;  // threads across channels
  static constexpr int kPixels = kChannelsLast ? 1 : V;             // of one access
  static constexpr int kSums = kChannelsLast ? V : 1;  // channels, so sums per region, of a thread
};

// ---- merging partial results --------------------------------------------------------------------

template <typename A>
struct SumPair {
  A first, second;
};

template <typename A>
__device__ __forceinline__ SumPair<A> merge(const SumPair<A>& a, const SumPair<A>& b) {
  return {a.first + b.first, a.second + b.second};
}

template <typename A>
__device__ __forceinline__ SumPair<A> shuffle_xor(const SumPair<A>& value, int offset) {
  return {__shfl_xor_sync(kFullMask, value.first, offset),
          __shfl_xor_sync(kFullMask, value.second, offset)};
}

template <typename A>
__device__ __forceinline__ Moments<A> shuffle_xor(const Moments<A>& value, int offset) {
  return {__shfl_xor_sync(kFullMask, value.count, offset),
          __shfl_xor_sync(kFullMask, value.mean, offset),
          __shfl_xor_sync(kFullMask, value.m2, offset)};
}

// Merges `members` values of each of `rows` rows and hands every row's result to one thread, all
// threads of the block taking part. Many rows get a thread each, few rows up to a warp each.
template <typename Value, typename Load, typename Emit>
__device__ __forceinline__ void reduce_rows(int rows, int members, Load load, Emit emit) {
  const int threads = blockDim.x;
  int width = 1;
  while (width < kWarpSize && width < members && rows * width * 2 <= threads) width *= 2;
  const int lane = threadIdx.x % width;
  for (int base = 0; base < rows; base += threads / width) {
    const int row = base + threadIdx.x / width;
    Value value{};
    if (row < rows) {
      for (int member = lane; member < members; member += width) {
        value = merge(value, load(row, member));
      }
    }
    for (int offset = 1; offset < width; offset *= 2) {
      const Value other = shuffle_xor(value, offset);
      value = (lane & offset) ? merge(other, value) : merge(value, other);
    }
    if (row < rows && lane == 0) emit(row, value);
  }
}

// Partial results in global memory. Planes (2, groups, regions, channels, slices): mean and M2, or
// the two sums of a SumPair; counts (groups, regions, slices), for moments only. One slice of sums
// is laid out as the total is.
template <typename A>
struct Partials {
  A* planes;
  int64_t* counts;
  int64_t slices;

  __device__ int64_t index(const RegionView& view, int64_t group, int region,
                           int64_t channel) const {
    return ((group * view.regions + region) * view.channels + channel) * slices;
  }
  __device__ int64_t plane(const RegionView& view) const {
    return view.groups * view.regions * view.channels * slices;
  }
  __device__ const int64_t* region_counts(const RegionView& view, int64_t group, int region) const {
    return counts + (group * view.regions + region) * slices;
  }
  __device__ int64_t count(const RegionView& view, int64_t group, int region) const {
    int64_t total = 0;
    for (int64_t slice = 0; slice < slices; ++slice) {
      total += load(region_counts(view, group, region) + slice);
    }
    return total;
  }
};

// A channel tile's totals: emit(region, channel of the tile, value) for each region and channel.
template <typename Value, typename A, typename Emit>
__device__ __forceinline__ void combine_slices(const RegionView& view, const Partials<A>& partials,
                                               int64_t group, int64_t first_channel, int channels,
                                               Emit emit) {
  const int64_t plane = partials.plane(view);
  reduce_rows<Value>(
      view.regions * channels, static_cast<int>(partials.slices),
      [&](int row, int slice) -> Value {
        const int region = row / channels;
        const int64_t at =
            partials.index(view, group, region, first_channel + row % channels) + slice;
        const A first = load(partials.planes + at);
        const A second = load(partials.planes + plane + at);
        if constexpr (std::is_same_v<Value, Moments<A>>) {
          const auto count = load(partials.region_counts(view, group, region) + slice);
          return {static_cast<A>(count), first, second};
        } else {
          return {first, second};
        }
      },
      [&](int row, const Value& value) { emit(row / channels, row % channels, value); });
}

// ---- the pass over the tensor -------------------------------------------------------------------

// A thread's slots in shared memory: running sums of every region, [region][sum][thread].
template <typename A, int kSums, bool kGradient>
struct RegionSlots {
  A* first;    // mean, or sum of g
  A* second;   // M2, or sum of g * (x - mean)
  int* count;  // of moments only

  static size_t bytes(int regions, int threads) {
    return static_cast<size_t>(regions) * threads *
           (2 * kSums * sizeof(A) + (kGradient ? 0 : sizeof(int)));
  }
  __device__ RegionSlots(A* shared, int regions, int threads)
      : first(shared),
        second(first + regions * kSums * threads),
        count(reinterpret_cast<int*>(second + regions * kSums * threads)) {}

  __device__ void clear(int regions) {
    const int threads = blockDim.x;
    for (int i = threadIdx.x; i < regions * kSums * threads; i += threads) {
      first[i] = second[i] = A(0);
    }
    if constexpr (!kGradient) {
      for (int i = threadIdx.x; i < regions * threads; i += threads) count[i] = 0;
    }
  }
};

// One region's short run of terms in registers.
template <typename A, int kSums, bool kGradient>
struct Run {
  A center[kSums];  // the run's first values, or the means
  A first[kSums];
  A second[kSums];
  int count;

  __device__ __forceinline__ Run() : count(0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) center[i] = first[i] = second[i] = A(0);
  }

  __device__ __forceinline__ void add(int i, A value, A gradient) {
    const A deviation = value - center[i];
    const A term = kGradient ? gradient : deviation;
    first[i] += term;
    second[i] += term * deviation;
  }

  // Empties the run into the thread's slots of `region`.
  __device__ __forceinline__ void fold(RegionSlots<A, kSums, kGradient>& slots, int region) {
    const int threads = blockDim.x;
    if constexpr (kGradient) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int slot = (region * kSums + i) * threads + threadIdx.x;
        slots.first[slot] += first[i];
        slots.second[slot] += second[i];
        first[i] = second[i] = A(0);
      }
    } else if (count > 0) {
      int& total = slots.count[region * threads + threadIdx.x];
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int slot = (region * kSums + i) * threads + threadIdx.x;
        const Moments<A> merged =
            merge(Moments<A>{static_cast<A>(total), slots.first[slot], slots.second[slot]},
                  moments_from_sums(static_cast<A>(count), center[i], first[i], second[i]));
        slots.first[slot] = merged.mean;
        slots.second[slot] = merged.m2;
        center[i] = first[i] = second[i] = A(0);
      }
      total += count;
    }
    count = 0;
  }
};

// Moments of x (kGradient false), or sums of grad and grad * (x - mean) * rstd, of a slice.
// labels may be null: then every pixel is of region 0. kTwoRegions (at most two) holds both
// regions' runs in registers; otherwise a thread has one run, of the region that it is in.
template <typename T, int V, bool kChannelsLast, bool kTwoRegions, bool kGradient>
__global__ void __launch_bounds__(kStatisticsThreads,
                                  Threading<T, V, kChannelsLast>::kSums == 8 || sizeof(T) == 8 ? 2
                                                                                               : 3)
    region_partials_kernel(RegionView view, Slicing slicing, const T* x, const T* grad,
                           const uint8_t* labels, const accumulate_t<T>* mean,
                           const accumulate_t<T>* rstd, Partials<accumulate_t<T>> partials) {
  using A = accumulate_t<T>;
  using Shape = Threading<T, V, kChannelsLast>;
  constexpr int kSums = Shape::kSums;
  constexpr int kPixels = Shape::kPixels;
  DYNAMIC_SHARED(A, shared);

  const int threads = blockDim.x;
  const BlockWork work(slicing);
  const int64_t first_channel = static_cast<int64_t>(work.tile) * Shape::kChannels;
  const int64_t channel = first_channel + threadIdx.x % Shape::kLanes * (kChannelsLast ? V : 1);

  RegionSlots<A, kSums, kGradient> slots(shared, view.regions, threads);
  slots.clear(view.regions);
  // a thread folds into its own slots, cleared by itself: no barrier needed before the reduction

  Cursor<kChannelsLast> cursor(
      view, slicing, work, static_cast<int64_t>(threadIdx.x / Shape::kLanes) * kPixels, channel);
  const bool active = channel < view.channels;
  const bool two_regions = kTwoRegions && view.regions == 2;
  if (!active) cursor.stop();

  auto load_means = [&](Run<A, kSums, kGradient>& run, int region) {
    if constexpr (kGradient) {
      const A* source = mean + (work.group * view.regions + region) * view.channels + channel;
#pragma unroll
      for (int i = 0; i < kSums; ++i) run.center[i] = load(source + i);
    }
  };

  Run<A, kSums, kGradient> run;    // of region 0, or of the current region
  Run<A, kSums, kGradient> other;  // of region 1
  int current = 0;
  if (active) {
    load_means(run, 0);
    if (two_regions) load_means(other, 1);
  }
  struct Access {
    Vec<T, V> values, gradients;
    Vec<uint8_t, kPixels> regions;
    bool inside;
  };
  auto fetch = [&] {
    Access access;
    access.inside = cursor.inside();
    if (access.inside) {
      access.values = load<V>(x + cursor.offset());
      if constexpr (kGradient) access.gradients = load<V>(grad + cursor.offset());
      if (labels != nullptr) {
        access.regions = load<kPixels>(labels + cursor.label());
      } else {
#pragma unroll
        for (int j = 0; j < kPixels; ++j) access.regions[j] = 0;
      }
      cursor.advance();
    }
    return access;
  };
  // Adds what the access holds of its j-th pixel, opening the run with it if it is the first.
  auto add_pixel = [&](Run<A, kSums, kGradient>& to, const Access& access, int j) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const A value = to_accumulate(access.values[kChannelsLast ? i : j]);
      if (!kGradient && to.count == 0) to.center[i] = value;
      to.add(i, value, kGradient ? to_accumulate(access.gradients[kChannelsLast ? i : j]) : A(0));
    }
    ++to.count;
  };

  if constexpr (kTwoRegions) {
    constexpr int kUnroll = V == 8 || (kGradient && kSums > 1) ? 2 : 4;  // accesses in flight
    for (int pixels = 0; cursor.inside();) {
      Access accesses[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) accesses[u] = fetch();
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!accesses[u].inside) continue;
        if constexpr (kChannelsLast) {
          if (two_regions && accesses[u].regions[0] != 0) {
            add_pixel(other, accesses[u], 0);
          } else if (view.ignore_holes) {
            ++run.count;
          } else {
            add_pixel(run, accesses[u], 0);
          }
        } else {
          // as add_pixel, but with the tests for a run's first value once per access
          bool second[V];
          int seconds = 0;
#pragma unroll
          for (int j = 0; j < V; ++j) {
            second[j] = two_regions && accesses[u].regions[j] != 0;
            seconds += second[j];
          }
          if (!kGradient &&
              ((other.count == 0 && seconds > 0) || (run.count == 0 && seconds < V))) {
#pragma unroll
            for (int j = V - 1; j >= 0; --j) {  // backwards: the first of each region stays
              const A value = to_accumulate(accesses[u].values[j]);
              if (second[j]) {
                if (other.count == 0) other.center[0] = value;
              } else if (run.count == 0 && !view.ignore_holes) {
                run.center[0] = value;
              }
            }
          }
          other.count += seconds;
          run.count += V - seconds;
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const A value = to_accumulate(accesses[u].values[j]);
            const A gradient = kGradient ? to_accumulate(accesses[u].gradients[j]) : A(0);
            if (second[j]) {
              other.add(0, value, gradient);
            } else if (!view.ignore_holes) {
              run.add(0, value, gradient);
            }
          }
        }
      }
      pixels += kUnroll * kPixels;
      if (pixels >= kRunLength) {
        run.fold(slots, 0);
        if (two_regions) other.fold(slots, 1);
        pixels = 0;
      }
    }
  } else {
    Access next = fetch();  // one ahead of the one that is added
    while (next.inside) {
      const Access access = next;
      next = fetch();
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int region = view.region(access.regions[j]);
        if (region != current || run.count >= kRunLength) {
          run.fold(slots, current);
          current = region;
          load_means(run, region);
        }
        if (view.is_hole(region)) {
          ++run.count;
        } else {
          add_pixel(run, access, j);
        }
      }
    }
  }
  run.fold(slots, current);
  if (two_regions) other.fold(slots, 1);
  __syncthreads();

  const int rows_of_threads = threads / Shape::kLanes;
  const int64_t plane = partials.plane(view);
  using Value = std::conditional_t<kGradient, SumPair<A>, Moments<A>>;
  reduce_rows<Value>(
      view.regions * Shape::kChannels, rows_of_threads,
      [&](int row, int member) -> Value {
        const int region = row / Shape::kChannels;
        const int tile_channel = row % Shape::kChannels;
        const int thread = member * Shape::kLanes + tile_channel / kSums;
        const int slot = (region * kSums + tile_channel % kSums) * threads + thread;
        if constexpr (kGradient) {
          return {slots.first[slot], slots.second[slot]};
        } else {
          return {static_cast<A>(slots.count[region * threads + thread]), slots.first[slot],
                  slots.second[slot]};
        }
      },
      [&](int row, const Value& value) {
        const int region = row / Shape::kChannels;
        const int64_t c = first_channel + row % Shape::kChannels;
        if (c >= view.channels) return;
        const int64_t at = partials.index(view, work.group, region, c) + work.slice;
        if constexpr (kGradient) {
          const A scale = load(rstd + (work.group * view.regions + region) * view.channels + c);
          store(partials.planes + at, value.first);
          store(partials.planes + plane + at, value.second * scale);
        } else {
          store(partials.planes + at, value.mean);
          store(partials.planes + plane + at, value.m2);
        }
      });
  if constexpr (!kGradient) {
    if (work.tile != 0) return;
    const int lane = threadIdx.x % kWarpSize;
    for (int region = threadIdx.x / kWarpSize; region < view.regions;
         region += threads / kWarpSize) {
      int64_t count = 0;
      for (int member = lane; member < rows_of_threads; member += kWarpSize) {
        count += slots.count[region * threads + member * Shape::kLanes];
      }
      count = warp_sum(count);
      if (lane == 0) {
        store(partials.counts + (work.group * view.regions + region) * partials.slices + work.slice,
              count);
      }
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------

// Owns the memory of Partials, kept in PyTorch's caching allocator.
template <typename A>
struct PartialsBuffer {
  Tensor planes, counts;
  Partials<A> partials;
};

// Launches the pass over x. kGradient: over x and grad, for sums, for which mean and rstd (groups,
// regions, channels) are needed; else for moments.
template <typename T, bool kGradient = false>
PartialsBuffer<accumulate_t<T>> region_partials(const RegionView& view, const Tensor& like,
                                                bool channels_last, const T* x, const T* grad,
                                                const uint8_t* labels, const accumulate_t<T>* mean,
                                                const accumulate_t<T>* rstd) {
  using A = accumulate_t<T>;
  constexpr size_t kSharedBytes = 48 * 1024;
  PartialsBuffer<A> buffer;

  auto launch_partials = [&](auto width, auto format, auto two_regions) {
    constexpr int V = decltype(width)::value;
    constexpr bool kChannelsLast = decltype(format)::value;
    using Shape = Threading<T, V, kChannelsLast>;
    using Slots = RegionSlots<A, Shape::kSums, kGradient>;
    int threads = kStatisticsThreads;
    while (threads > kWarpSize && Slots::bytes(view.regions, threads) > kSharedBytes) threads /= 2;

    // Enough blocks to fill a large device, beyond that each with enough to do to pay for its
    // reduction, and few enough slices that combining them is cheap.
    const int64_t tiles = (view.channels + Shape::kChannels - 1) / Shape::kChannels;
    const int64_t step = static_cast<int64_t>(threads / Shape::kLanes) * Shape::kPixels;
    const int64_t by_work = view.group_pixels() / (4 * step);
    const int64_t tile_groups = std::max<int64_t>(1, tiles * view.groups);
    const int64_t slices =
        std::max(std::min(by_work, 1024 / tile_groups), slices_for_blocks(view, tiles, step));
    const int64_t most = std::min(kMaxSlices, std::max(1, 1024 / view.regions));
    const Slicing slicing(view, tiles, step, std::min(slices, most));

    const int64_t results = view.groups * view.regions * slicing.slices;
    buffer.planes = new_tensor(like, {2 * results * view.channels}, accumulate_type(like));
    buffer.partials = {data<A>(buffer.planes), nullptr, slicing.slices};
    if (!kGradient) {
      buffer.counts = new_tensor(like, {results}, ScalarType::Long);
      buffer.partials.counts = data<int64_t>(buffer.counts);
    }
    launch(region_partials_kernel<T, V, kChannelsLast, decltype(two_regions)::value, kGradient>,
           slicing.grid(view), dim3(threads), Slots::bytes(view.regions, threads),
           current_stream(like), view, slicing, x, grad, labels, mean, rstd, buffer.partials);
  };

  int access = channels_last ? vector_width(view.channels, x, grad)
                             : vector_width(view.pixels, x, grad, labels);
  // In channels last a thread's slots hold V channels of every region: too much for many regions.
  using WideSlots = RegionSlots<A, kMaxAccessBytes / sizeof(T), false>;
  if (channels_last && WideSlots::bytes(view.regions, 2 * kWarpSize) > kSharedBytes) access = 1;
  dispatch_access<T>(access, channels_last, [&](auto width, auto format) {
    if constexpr (decltype(width)::value > 1) {
      if (view.regions <= 2) return launch_partials(width, format, std::true_type{});
    }
    launch_partials(width, format, std::false_type{});
  });
  return buffer;
}

}  // namespace torchext
