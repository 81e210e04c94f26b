// Partial convolution around PyTorch's convolution (arXiv 1804.07723, arXiv 1811.11718):
//
//   y = conv(x * m) * scale + bias * updated,  scale and updated from the mask's window sums
//
// Passes over memory (T the feature map, maps of one channel not counted):
//   mask_window                     a mask of one channel: none. Of all channels: reads it once.
//   mask_product                    reads T, writes T (the floor of an unfused product).
//   partial_conv_epilogue           reads the raw output, writes the result: 2T, the floor.
//   partial_conv_epilogue_backward  reads the gradient, writes the raw output's: 2T, the floor;
//   also
//                                   reads y after an activation, raw for a norm weight's gradient;
//                                   what the parameters' gradients need is summed up on the way.
//
// The window sum is a sum over rows into one row of column sums, then over columns: k additions
// each per output pixel.
#include "../partial_conv.h"

#include "partial_conv_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

// Elements of a plane that one unit of parallel work takes.
constexpr int64_t kUnit = 8 * kTile;

int64_t units_of(int64_t count) {
  return (count + kUnit - 1) / kUnit;
}

// --- mask window -------------------------------------------------------------------------------

// The mask's channels added up, each as often as it counts: (N, pixels).
template <class T>
std::vector<accumulate_t<T>> channel_sums(const Tensor& mask, bool channels_last, int64_t pixels,
                                          const std::vector<accumulate_t<T>>& factors) {
  using A = accumulate_t<T>;
  const int64_t N = mask.size(0), G = mask.size(1), units = units_of(pixels);
  std::vector<A> sums(N * pixels);
  parallel_for(0, N * units, std::max<int64_t>(1, 4 / G), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / units, first = unit % units * kUnit;
      const int64_t count = std::min(kUnit, pixels - first);
      A* out = sums.data() + n * pixels + first;
      if (channels_last) {
        TORCHEXT_AT_SIMD_LEVEL(sum_channels<T>)(data<const T>(mask) + (n * pixels + first) * G,
                                                factors.data(), count, G, out);
      } else {
        for (int64_t g = 0; g < G; ++g)
          TORCHEXT_AT_SIMD_LEVEL(add_scaled<T>)(data<const T>(mask) + (n * G + g) * pixels + first,
                                                factors[g], count, out);
      }
    }
  });
  return sums;
}

// Adds the rows of a window, without its last dimension, into `columns` of `width` sums.
template <class A>
void sum_rows(const Window& window, const A* image, int64_t plane, int64_t row, A* columns,
              int64_t width) {
  for (int64_t a = 0; a < window.kernel[0]; ++a) {
    const int64_t d = plane * window.stride[0] - window.padding[0] + a * window.dilation[0];
    if (d < 0 || d >= window.input[0]) continue;
    for (int64_t b = 0; b < window.kernel[1]; ++b) {
      const int64_t h = row * window.stride[1] - window.padding[1] + b * window.dilation[1];
      if (h < 0 || h >= window.input[1]) continue;
      TORCHEXT_AT_SIMD_LEVEL(add_scaled<A>)(image + (d * window.input[1] + h) * window.input[2],
                                            A(1), width, columns);
    }
  }
}

void compute(const MaskWindow& call) {
  const Window& window = call.window;
  const int64_t N = call.mask.size(0), G = call.mask.size(1);
  dispatch_floating(call.mask.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    std::vector<A> factors(G, A(1));
    std::copy(call.mask_channels.begin(), call.mask_channels.end(), factors.begin());
    A channels = 0;
    for (A factor : factors) channels += factor;
    const WindowRule<A> rule{call.options.ratio, call.options.bias,
                             channels * static_cast<A>(window.taps()),
                             static_cast<A>(call.options.eps)};
    const std::vector<A> sums =
        channel_sums<T>(call.mask, call.channels_last, window.input_pixels(), factors);
    // The columns with their zero padding; what lies beyond the last window is left out.
    const int64_t width = window.output[2];
    const int64_t length = window.columns(width);
    const int64_t inside =
        std::max<int64_t>(0, std::min(window.input[2], length - window.padding[2]));
    const int64_t rows = window.output_rows();
    if (width == 0) return;
    parallel_for(0, N * rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<A> columns(std::max(length, window.padding[2])), row_sums(width);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / rows, plane = unit % rows / window.output[1];
        std::fill(columns.begin(), columns.end(), A(0));
        sum_rows(window, sums.data() + n * window.input_pixels(), plane, unit % window.output[1],
                 columns.data() + window.padding[2], inside);
        TORCHEXT_AT_SIMD_LEVEL(window_row<A>)(columns.data(), window.kernel[2], window.stride[2],
                                              window.dilation[2], width, rule, row_sums.data(),
                                              data<A>(call.scale) + unit * width,
                                              data<A>(call.updated) + unit * width);
      }
    });
  });
}

// --- product -----------------------------------------------------------------------------------

// Where the plane of channel c of image n begins in contiguous masks.
class MaskPlanes {
 public:
  MaskPlanes(const MaskRuns& runs, int64_t pixels) : runs_(runs), pixels_(pixels) {
    int64_t end = 0;
    for (int64_t length : runs.lengths) ends_.push_back(end += length);
  }
  int64_t image(int64_t n) const { return runs_.shared ? 0 : n * runs_.masks * pixels_; }
  int64_t operator()(int64_t n, int64_t c) const {
    const auto first = ends_.begin();
    const int64_t of = runs_.each ? c : std::upper_bound(first, ends_.end(), c) - first;
    return image(n) + of * pixels_;
  }

 private:
  const MaskRuns& runs_;
  int64_t pixels_;
  Sizes ends_;
};

void compute(const MaskProduct& call) {
  const Tensor& x = call.x;
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const MaskPlanes planes(call.runs, P);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<const T>(x);
    const T* masks = data<const T>(call.mask);
    T* out = data<T>(call.y);
    if (call.runs.each && call.channels_last) {
      const int64_t image = C * P, units = units_of(image);
      parallel_for(0, N * units, 2, [&](int64_t begin, int64_t stop) {
        for (int64_t unit = begin; unit < stop; ++unit) {
          const int64_t n = unit / units, first = unit % units * kUnit;
          TORCHEXT_AT_SIMD_LEVEL(multiply_mask<T>)(
              in + n * image + first, masks + planes.image(n) + first,
              std::min(kUnit, image - first), out + n * image + first);
        }
      });
      return;
    }
    if (call.channels_last) {
      parallel_for(
          0, N * P, std::max<int64_t>(1, 16 * kTile / C), [&](int64_t begin, int64_t stop) {
            for (int64_t pixel = begin; pixel < stop; ++pixel) {
              const T* values = masks + planes.image(pixel / P) + pixel % P;
              for (int64_t g = 0, c = 0; g < call.runs.masks; c += call.runs.lengths[g++])
                TORCHEXT_AT_SIMD_LEVEL(multiply_mask_value<T>)(
                    in + pixel * C + c, values[g * P], call.runs.lengths[g], out + pixel * C + c);
            }
          });
      return;
    }
    const int64_t units = units_of(P);
    parallel_for(0, N * C * units, 2, [&](int64_t begin, int64_t stop) {
      for (int64_t unit = begin; unit < stop; ++unit) {
        const int64_t plane = unit / units, first = unit % units * kUnit;
        TORCHEXT_AT_SIMD_LEVEL(multiply_mask<T>)(
            in + plane * P + first, masks + planes(plane / C, plane % C) + first,
            std::min(kUnit, P - first), out + plane * P + first);
      }
    });
  });
}

// --- epilogue ----------------------------------------------------------------------------------

int64_t pixel_grain(int64_t channels) {
  return std::max<int64_t>(1, 16 * kTile / std::max<int64_t>(channels, 1));
}

template <class A>
ChannelEpilogue<A> channel_epilogue(const EpilogueOptions& options) {
  return {data<const A>(options.bias), data<const A>(options.norm_weight),
          data<const A>(options.norm_bias), static_cast<A>(options.negative_slope),
          options.mask_output};
}

void compute(const Epilogue& call) {
  const OutputMaps& maps = call.maps;
  const int64_t C = maps.channels, P = maps.pixels;
  dispatch_floating(call.raw.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const ChannelEpilogue<A> epilogue = channel_epilogue<A>(call.options);
    const T* in = data<const T>(call.raw);
    const A* scales = data<const A>(call.scale);
    const A* masks = data<const A>(call.updated);
    T* out = data<T>(call.y);
    if (maps.channels_last) {
      parallel_for(0, maps.images * P, pixel_grain(C), [&](int64_t begin, int64_t end) {
        while (begin < end) {  // image by image, as the maps may be shared
          const int64_t stop = std::min(end, (begin / P + 1) * P);
          const int64_t at = maps.shared ? begin % P : begin;
          TORCHEXT_AT_SIMD_LEVEL(epilogue_pixels<T>)(in + begin * C, scales + at, masks + at,
                                                     stop - begin, C, epilogue, out + begin * C);
          begin = stop;
        }
      });
      return;
    }
    const int64_t units = units_of(P);
    parallel_for(0, maps.images * C * units, 2, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / units, first = unit % units * kUnit;
        const int64_t at = (maps.shared ? 0 : plane / C * P) + first;
        TORCHEXT_AT_SIMD_LEVEL(epilogue_plane<T>)(in + plane * P + first, scales + at, masks + at,
                                                  std::min(kUnit, P - first), plane % C, epilogue,
                                                  out + plane * P + first);
      }
    });
  });
}

void compute(const EpilogueBackward& call) {
  const OutputMaps& maps = call.maps;
  const int64_t N = maps.images, C = maps.channels, P = maps.pixels;
  dispatch_floating(call.grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const EpilogueGradient<T> of{data<const T>(call.grad),
                                 data<const T>(call.y),
                                 data<const T>(call.raw),
                                 data<const A>(call.scale),
                                 data<const A>(call.updated),
                                 data<const A>(call.norm_weight),
                                 static_cast<A>(call.negative_slope),
                                 call.mask_output};
    T* out = data<T>(call.grad_raw);
    // Sums over parts of a fixed size, then over the parts in order.
    const int64_t length = maps.channels_last ? std::max<int64_t>(64, (N * P + 255) / 256) : kUnit;
    const int64_t parts = maps.channels_last ? (N * P + length - 1) / length : N * units_of(P);
    std::vector<A> partial(parts * kSums * C);
    if (maps.channels_last) {
      parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          int64_t first = part * length;
          const int64_t last = std::min(first + length, N * P);
          while (first < last) {
            const int64_t stop = std::min(last, (first / P + 1) * P);
            const int64_t at = maps.shared ? first % P : first;
            TORCHEXT_AT_SIMD_LEVEL(epilogue_backward_pixels<T>)(of.from(first * C, at),
                                                                stop - first, C, out + first * C,
                                                                partial.data() + part * kSums * C);
            first = stop;
          }
        }
      });
    } else {
      const int64_t units = units_of(P);
      parallel_for(0, N * C * units, 2, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t plane = unit / units, c = plane % C, first = unit % units * kUnit;
          const int64_t at = (maps.shared ? 0 : plane / C * P) + first;
          const int64_t part = plane / C * units + unit % units;
          TORCHEXT_AT_SIMD_LEVEL(epilogue_backward_plane<T>)(
              of.from(plane * P + first, at), std::min(kUnit, P - first), c,
              out + plane * P + first, partial.data() + part * kSums * C + c, C);
        }
      });
    }
    std::vector<double> sums(kSums * C);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < kSums * C; ++i)
        sums[i] += static_cast<double>(partial[part * kSums * C + i]);
    std::transform(sums.begin(), sums.end(), data<A>(call.sums),
                   [](double sum) { return static_cast<A>(sum); });
  });
}

// --- tiles -------------------------------------------------------------------------------------
// A convolution of only those tiles of the output whose windows are not all hole: gathered with
// their borders and times the mask into a batch (x's share of them read, and written), convolved
// by PyTorch, scattered through the epilogue (read; the whole result written).

// slots: int32 (N, rows, columns) of tiles, each tile's place in the batch, -1 where it is dead.
void expects_slots(const Tensor& slots, int64_t N) {
  expects(slots.dim() == 3 && slots.size(0) == N && slots.is_contiguous() &&
              slots.scalar_type() == ScalarType::Int,
          "slots: expected contiguous int32 (N, rows, columns)");
}

Tensor gather_tiles(const Tensor& x, const MaybeTensor& mask, const Sizes& mask_channels,
                    const Tensor& slots, int64_t count, const Sizes& extent, const Sizes& stride,
                    const Sizes& padding) {
  expects(!is_channels_last(x), "x: expected a contiguous tensor");
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  expects_slots(slots, N);
  expects(extent.size() == 2 && stride.size() == 2 && padding.size() == 2 && extent[0] > 0 &&
              extent[1] > 0,
          "extent: expected two sizes");
  std::optional<MaskRuns> runs;
  std::optional<MaskPlanes> planes;
  if (mask.has_value()) planes.emplace(runs.emplace(x, *mask, mask_channels), H * W);
  Tensor tiles = new_tensor(x, {count, C, extent[0], extent[1]}, x.scalar_type());
  const int64_t rows = slots.size(1), columns = slots.size(2);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const PlaneWindows windows{H,         W,         -padding[1], kTileSide * stride[1],
                               extent[0], extent[1], columns};
    const int64_t area = extent[0] * extent[1];
    parallel_for(0, N * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / rows, top = unit % rows * kTileSide * stride[0] - padding[0];
        for (int64_t c = 0; c < C; ++c)
          TORCHEXT_AT_SIMD_LEVEL(gather_row<T>)(
              data<const T>(x) + (n * C + c) * H * W,
              planes ? data<const T>(mask) + (*planes)(n, c) : nullptr, windows, top,
              data<const int32_t>(slots) + unit * columns, count, C * area,
              data<T>(tiles) + c * area);
      }
    });
  });
  return tiles;
}

Tensor scatter_tiles(const Tensor& tiles, const Tensor& slots, const Tensor& scale,
                     const Tensor& updated, const MaybeTensor& bias, const MaybeTensor& norm_weight,
                     const MaybeTensor& norm_bias, double negative_slope, bool mask_output) {
  expects(tiles.dim() == 4 && tiles.is_contiguous(), "tiles: expected a contiguous batch");
  expects(scale.dim() == 4 && slots.dim() == 3, "scale: expected four dimensions");
  constexpr int64_t side = kTileSide;
  const int64_t N = slots.size(0), C = tiles.size(1);
  const int64_t H = scale.size(2), W = scale.size(3);
  expects_slots(slots, N);
  expects(tiles.size(2) == side && tiles.size(3) == side &&
              slots.size(1) == (H + side - 1) / side && slots.size(2) == (W + side - 1) / side &&
              (scale.size(0) == N || scale.size(0) == 1),
          "slots: expected a place for each tile of scale");
  const ScalarType type = accumulate_type(tiles);
  expects_plain(scale, type, scale.size(0) * H * W, "scale: expected contiguous (N or 1, 1, H, W)");
  expects_plain(updated, type, scale.size(0) * H * W, "updated: expected the shape of scale");
  const int64_t shared = scale.size(0) == 1 ? 0 : 1;
  const EpilogueOptions options{bias, norm_weight, norm_bias, negative_slope, mask_output};
  options.check(type, C);
  Tensor y = new_tensor(tiles, {N, C, H, W}, tiles.scalar_type());
  dispatch_floating(tiles.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const ChannelEpilogue<A> epilogue = channel_epilogue<A>(options);
    const int64_t rows = slots.size(1);
    parallel_for(0, N * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / rows, top = unit % rows * side;
        const int64_t map = shared * n * H * W + top * W;
        for (int64_t c = 0; c < C; ++c)
          TORCHEXT_AT_SIMD_LEVEL(scatter_row<T>)(
              data<const T>(tiles) + c * side * side,
              data<const int32_t>(slots) + unit * slots.size(2), tiles.size(0), C * side * side,
              data<const A>(scale) + map, data<const A>(updated) + map, std::min(side, H - top), W,
              c, epilogue, data<T>(y) + (n * C + c) * H * W + top * W);
      }
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
  TORCHEXT_IMPLEMENT(m, gather_tiles);
  TORCHEXT_IMPLEMENT(m, scatter_tiles);
}

}  // namespace torchext
