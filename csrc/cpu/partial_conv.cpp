// Partial convolution around PyTorch's convolution (arXiv 1804.07723, arXiv 1811.11718):
//
//   y = conv(x * m) * scale + bias * updated,  scale and updated from the mask's window sums
//
// Passes over memory (T the feature map, maps of one channel not counted):
//   mask_window                     a mask of one channel: none. Of all channels: reads it once.
//   mask_product                    reads T, writes T (the floor of an unfused product).
//   partial_conv_epilogue           reads the raw output, writes the result: 2T, the floor.
//   partial_conv_epilogue_backward  reads the gradient, writes the raw output's: 2T, the floor; the
//                                   bias's gradient is summed up on the way.
//
// The window sum is a sum over rows into one row of column sums, then over columns: k additions
// each per output pixel.
#include "partial_conv_kernels.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;
using Sizes = std::vector<int64_t>;

// Elements of a plane that one unit of parallel work takes.
constexpr int64_t kUnit = 8 * kTile;

int64_t units_of(int64_t count) {
  return (count + kUnit - 1) / kUnit;
}

// --- mask window -------------------------------------------------------------------------------

// A window over two or three dimensions, as over three.
struct Window {
  int64_t input[3], output[3], kernel[3], stride[3], padding[3], dilation[3];

  Window(const Tensor& mask, const Sizes& kernel_size, const Sizes& strides, const Sizes& paddings,
         const Sizes& dilations, const Sizes& output_size) {
    const size_t dimensions = mask.dim() - 2;
    for (const Sizes* sizes : {&kernel_size, &strides, &paddings, &dilations, &output_size})
      expects(sizes->size() == dimensions, "mask: expected one size per spatial dimension");
    for (size_t i = 0; i < 3; ++i) {
      const bool given = i + dimensions >= 3;
      const size_t from = i + dimensions - 3;
      input[i] = given ? mask.size(2 + from) : 1;
      output[i] = given ? output_size[from] : 1;
      kernel[i] = given ? kernel_size[from] : 1;
      stride[i] = given ? strides[from] : 1;
      padding[i] = given ? paddings[from] : 0;
      dilation[i] = given ? dilations[from] : 1;
      expects(output[i] >= 0 && kernel[i] > 0 && stride[i] > 0 && padding[i] >= 0 &&
                  dilation[i] > 0 && input[i] > 0,
              "mask: expected positive sizes, and a padding of at least 0");
    }
  }
  int64_t input_pixels() const { return input[0] * input[1] * input[2]; }
  int64_t output_pixels() const { return output[0] * output[1] * output[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

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
        TORCHEXT_AT_SIMD_LEVEL(sum_channels<T>)(data<T>(mask) + (n * pixels + first) * G,
                                                factors.data(), count, G, out);
      } else {
        for (int64_t g = 0; g < G; ++g)
          TORCHEXT_AT_SIMD_LEVEL(add_scaled<T>)(data<T>(mask) + (n * G + g) * pixels + first,
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

std::tuple<Tensor, Tensor> mask_window_cpu(const Tensor& mask, const Sizes& channels_of_x,
                                           const Sizes& kernel_size, const Sizes& stride,
                                           const Sizes& padding, const Sizes& dilation,
                                           const Sizes& output_size, bool ratio, bool bias,
                                           double eps) {
  expects(mask.dim() == 4 || mask.dim() == 5, "mask: expected four or five dimensions");
  const bool channels_last = mask.dim() == 4 && is_channels_last(mask);
  expects(channels_last || mask.is_contiguous(), "mask: expected a contiguous mask");
  const Window window(mask, kernel_size, stride, padding, dilation, output_size);
  const int64_t N = mask.size(0), G = mask.size(1);
  const Sizes mask_channels = grouped(channels_of_x);
  expects(G > 0 && (mask_channels.empty() || static_cast<int64_t>(mask_channels.size()) == G),
          "mask_channels: expected a number for each mask channel");
  Sizes shape{N, 1};
  shape.insert(shape.end(), output_size.begin(), output_size.end());
  Tensor scale = torch::stable::new_empty(mask, shape, accumulate_type(mask));
  Tensor updated = torch::stable::new_empty(mask, shape, accumulate_type(mask));
  dispatch_floating(mask.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    std::vector<A> factors(G, A(1));
    std::copy(mask_channels.begin(), mask_channels.end(), factors.begin());
    A channels = 0;
    for (A factor : factors) channels += factor;
    const WindowRule<A> rule{ratio, bias, channels * static_cast<A>(window.taps()),
                             static_cast<A>(eps)};
    const std::vector<A> sums =
        channel_sums<T>(mask, channels_last, window.input_pixels(), factors);
    // The columns with their zero padding; what lies beyond the last window is left out.
    const int64_t width = window.output[2];
    const int64_t length =
        (width - 1) * window.stride[2] + window.dilation[2] * (window.kernel[2] - 1) + 1;
    const int64_t inside =
        std::max<int64_t>(0, std::min(window.input[2], length - window.padding[2]));
    const int64_t rows = window.output[0] * window.output[1];
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
                                              mutable_data<A>(scale) + unit * width,
                                              mutable_data<A>(updated) + unit * width);
      }
    });
  });
  return {scale, updated};
}

// --- product -----------------------------------------------------------------------------------

// Which mask channel, of which image, a channel of x meets.
struct MaskLayout {
  int64_t masks, pixels, shared;  // shared: 0 if one mask serves all images, else 1
  Sizes ends;                     // where each mask channel's run of x's channels ends
  bool each;                      // each channel of x has its own

  MaskLayout(const Tensor& x, const Tensor& mask, const Sizes& channels_of_x)
      : masks(mask.dim() == 4 ? mask.size(1) : 0),
        pixels(x.size(2) * x.size(3)),
        shared(mask.dim() == 4 && mask.size(0) == 1 ? 0 : 1),
        each(masks > 1 && grouped(channels_of_x).empty()) {
    expects(mask.dim() == 4 && (mask.size(0) == x.size(0) || mask.size(0) == 1) &&
                mask.size(2) == x.size(2) && mask.size(3) == x.size(3) &&
                mask.scalar_type() == x.scalar_type(),
            "mask: expected x's dtype, height and width, and its batch size or 1");
    const int64_t C = x.size(1);
    if (each) {
      expects(masks == C, "mask: expected one channel, or x's");
      expects(is_channels_last(mask) == is_channels_last(x), "mask: expected x's memory format");
      return;
    }
    expects(mask.is_contiguous(), "mask: expected a contiguous mask");
    int64_t end = 0;
    for (int64_t channels : masks == 1 ? Sizes{C} : channels_of_x) ends.push_back(end += channels);
    expects(static_cast<int64_t>(ends.size()) == masks && end == C,
            "mask_channels: expected a number for each mask channel, x's channels in all");
  }
  int64_t of(int64_t c) const {
    return each ? c : std::upper_bound(ends.begin(), ends.end(), c) - ends.begin();
  }
  // Of contiguous masks: where the plane of channel c of image n begins.
  int64_t plane(int64_t n, int64_t c) const { return (shared * n * masks + of(c)) * pixels; }
};

void multiply_mask_into(const Tensor& x, const Tensor& mask, const Sizes& mask_channels,
                        const Tensor& y) {
  const bool channels_last = is_channels_last(x);
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const MaskLayout layout(x, mask, mask_channels);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<T>(x);
    const T* masks = data<T>(mask);
    T* out = mutable_data<T>(y);
    if (layout.each && channels_last) {
      const int64_t image = C * P, units = units_of(image);
      parallel_for(0, N * units, 2, [&](int64_t begin, int64_t stop) {
        for (int64_t unit = begin; unit < stop; ++unit) {
          const int64_t n = unit / units, first = unit % units * kUnit;
          TORCHEXT_AT_SIMD_LEVEL(multiply_mask<T>)(
              in + n * image + first, masks + layout.shared * n * image + first,
              std::min(kUnit, image - first), out + n * image + first);
        }
      });
      return;
    }
    if (channels_last) {
      parallel_for(
          0, N * P, std::max<int64_t>(1, 16 * kTile / C), [&](int64_t begin, int64_t stop) {
            for (int64_t pixel = begin; pixel < stop; ++pixel) {
              const T* values = masks + layout.shared * (pixel / P) * layout.masks * P + pixel % P;
              for (int64_t g = 0, c = 0; g < layout.masks; c = layout.ends[g++])
                TORCHEXT_AT_SIMD_LEVEL(multiply_mask_value<T>)(
                    in + pixel * C + c, values[g * P], layout.ends[g] - c, out + pixel * C + c);
            }
          });
      return;
    }
    const int64_t units = units_of(P);
    parallel_for(0, N * C * units, 2, [&](int64_t begin, int64_t stop) {
      for (int64_t unit = begin; unit < stop; ++unit) {
        const int64_t plane = unit / units, first = unit % units * kUnit;
        TORCHEXT_AT_SIMD_LEVEL(multiply_mask<T>)(
            in + plane * P + first, masks + layout.plane(plane / C, plane % C) + first,
            std::min(kUnit, P - first), out + plane * P + first);
      }
    });
  });
}

Tensor mask_product_cpu(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  Tensor y = torch::stable::empty_like(x);
  multiply_mask_into(x, mask, mask_channels, y);
  return y;
}

void mask_product_in_place_cpu(const Tensor& x, const Tensor& mask, const Sizes& mask_channels) {
  multiply_mask_into(x, mask, mask_channels, x);
}

// --- epilogue ----------------------------------------------------------------------------------

struct EpilogueShape {
  int64_t N, C, P, shared;
  bool channels_last;

  EpilogueShape(const Tensor& raw, const Tensor& scale, const Tensor& updated)
      : N(raw.size(0)),
        C(raw.size(1)),
        P(raw.size(2) * raw.size(3)),
        shared(scale.size(0) == 1 ? 0 : 1),
        channels_last(is_channels_last(raw)) {
    expects(scale.dim() == 4 && (scale.size(0) == N || scale.size(0) == 1),
            "scale: expected the raw output's batch size or 1");
    const ScalarType type = accumulate_type(raw);
    expects_plain(scale, type, scale.size(0) * P, "scale: expected contiguous (N or 1, 1, H, W)");
    expects_plain(updated, type, scale.size(0) * P, "updated: expected the shape of scale");
  }
  int64_t pixel_grain() const { return std::max<int64_t>(1, 16 * kTile / std::max<int64_t>(C, 1)); }
};

template <class A>
ChannelEpilogue<A> channel_epilogue(int64_t C, ScalarType type, const std::optional<Tensor>& bias,
                                    const std::optional<Tensor>& norm_weight,
                                    const std::optional<Tensor>& norm_bias, double negative_slope,
                                    bool mask_output) {
  expects_plain(bias, type, C, "bias: expected a number per channel");
  expects_plain(norm_weight, type, C, "norm_weight: expected a number per channel");
  expects_plain(norm_bias, type, C, "norm_bias: expected a number per channel");
  expects(norm_weight.has_value() == norm_bias.has_value(),
          "norm_bias: expected both norm_weight and norm_bias, or none");
  return {data<A>(bias), data<A>(norm_weight), data<A>(norm_bias), static_cast<A>(negative_slope),
          mask_output};
}

void epilogue_into(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& norm_weight,
                   const std::optional<Tensor>& norm_bias, double negative_slope, bool mask_output,
                   const Tensor& y) {
  const EpilogueShape shape(raw, scale, updated);
  const int64_t C = shape.C, P = shape.P;
  dispatch_floating(raw.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const ChannelEpilogue<A> epilogue = channel_epilogue<A>(
        C, accumulate_type(raw), bias, norm_weight, norm_bias, negative_slope, mask_output);
    const T* in = data<T>(raw);
    const A* scales = data<A>(scale);
    const A* masks = data<A>(updated);
    T* out = mutable_data<T>(y);
    if (shape.channels_last) {
      parallel_for(0, shape.N * P, shape.pixel_grain(), [&](int64_t begin, int64_t end) {
        while (begin < end) {  // image by image, as the maps may be shared
          const int64_t stop = std::min(end, (begin / P + 1) * P);
          const int64_t at = shape.shared ? begin : begin % P;
          TORCHEXT_AT_SIMD_LEVEL(epilogue_pixels<T>)(in + begin * C, scales + at, masks + at,
                                                     stop - begin, C, epilogue, out + begin * C);
          begin = stop;
        }
      });
      return;
    }
    const int64_t units = units_of(P);
    parallel_for(0, shape.N * C * units, 2, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t plane = unit / units, first = unit % units * kUnit;
        const int64_t at = shape.shared * (plane / C) * P + first;
        TORCHEXT_AT_SIMD_LEVEL(epilogue_plane<T>)(in + plane * P + first, scales + at, masks + at,
                                                  std::min(kUnit, P - first), plane % C, epilogue,
                                                  out + plane * P + first);
      }
    });
  });
}

Tensor partial_conv_epilogue_cpu(const Tensor& raw, const Tensor& scale, const Tensor& updated,
                                 const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& norm_weight,
                                 const std::optional<Tensor>& norm_bias, double negative_slope,
                                 bool mask_output) {
  Tensor y = torch::stable::empty_like(raw);
  epilogue_into(raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output, y);
  return y;
}

void partial_conv_epilogue_in_place_cpu(const Tensor& raw, const Tensor& scale,
                                        const Tensor& updated, const std::optional<Tensor>& bias,
                                        const std::optional<Tensor>& norm_weight,
                                        const std::optional<Tensor>& norm_bias,
                                        double negative_slope, bool mask_output) {
  epilogue_into(raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output,
                raw);
}

std::tuple<Tensor, Tensor> partial_conv_epilogue_backward_cpu(const Tensor& grad,
                                                              const Tensor& scale,
                                                              const Tensor& updated) {
  const EpilogueShape shape(grad, scale, updated);
  const int64_t N = shape.N, C = shape.C, P = shape.P;
  Tensor grad_raw = torch::stable::empty_like(grad);
  Tensor grad_bias = empty(grad, {C}, accumulate_type(grad));
  dispatch_floating(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const T* in = data<T>(grad);
    const A* scales = data<A>(scale);
    const A* masks = data<A>(updated);
    T* out = mutable_data<T>(grad_raw);
    // Sums over parts of a fixed size, then over the parts in order.
    const int64_t length = shape.channels_last ? std::max<int64_t>(64, (N * P + 255) / 256) : kUnit;
    const int64_t parts = shape.channels_last ? (N * P + length - 1) / length : N * units_of(P);
    std::vector<A> partial(parts * C);
    if (shape.channels_last) {
      parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          int64_t first = part * length;
          const int64_t last = std::min(first + length, N * P);
          while (first < last) {
            const int64_t stop = std::min(last, (first / P + 1) * P);
            const int64_t at = shape.shared ? first : first % P;
            TORCHEXT_AT_SIMD_LEVEL(epilogue_backward_pixels<T>)(
                in + first * C, scales + at, masks + at, stop - first, C, out + first * C,
                partial.data() + part * C);
            first = stop;
          }
        }
      });
    } else {
      const int64_t units = units_of(P);
      parallel_for(0, N * C * units, 2, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t plane = unit / units, first = unit % units * kUnit;
          const int64_t at = shape.shared * (plane / C) * P + first;
          partial[(plane / C * units + unit % units) * C + plane % C] = TORCHEXT_AT_SIMD_LEVEL(
              epilogue_backward_plane<T>)(in + plane * P + first, scales + at, masks + at,
                                          std::min(kUnit, P - first), out + plane * P + first);
        }
      });
    }
    std::vector<double> sums(C);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t c = 0; c < C; ++c) sums[c] += static_cast<double>(partial[part * C + c]);
    std::transform(sums.begin(), sums.end(), mutable_data<A>(grad_bias),
                   [](double sum) { return static_cast<A>(sum); });
  });
  return {grad_raw, grad_bias};
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

Tensor gather_tiles_cpu(const Tensor& x, const std::optional<Tensor>& mask,
                        const Sizes& mask_channels, const Tensor& slots, int64_t count,
                        const Sizes& extent, const Sizes& stride, const Sizes& padding) {
  expects(!is_channels_last(x), "x: expected a contiguous tensor");
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  expects_slots(slots, N);
  expects(extent.size() == 2 && stride.size() == 2 && padding.size() == 2 && extent[0] > 0 &&
              extent[1] > 0,
          "extent: expected two sizes");
  std::optional<MaskLayout> layout;
  if (mask.has_value()) layout.emplace(x, *mask, mask_channels);
  Tensor tiles = empty(x, {count, C, extent[0], extent[1]}, x.scalar_type());
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
              data<T>(x) + (n * C + c) * H * W,
              layout ? data<T>(mask) + layout->plane(n, c) : nullptr, windows, top,
              data<int32_t>(slots) + unit * columns, count, C * area,
              mutable_data<T>(tiles) + c * area);
      }
    });
  });
  return tiles;
}

Tensor scatter_tiles_cpu(const Tensor& tiles, const Tensor& slots, const Tensor& scale,
                         const Tensor& updated, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& norm_weight,
                         const std::optional<Tensor>& norm_bias, double negative_slope,
                         bool mask_output) {
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
  Tensor y = empty(tiles, {N, C, H, W}, tiles.scalar_type());
  dispatch_floating(tiles.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const ChannelEpilogue<A> epilogue =
        channel_epilogue<A>(C, type, bias, norm_weight, norm_bias, negative_slope, mask_output);
    const int64_t rows = slots.size(1);
    parallel_for(0, N * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / rows, top = unit % rows * side;
        const int64_t map = shared * n * H * W + top * W;
        for (int64_t c = 0; c < C; ++c)
          TORCHEXT_AT_SIMD_LEVEL(scatter_row<T>)(
              data<T>(tiles) + c * side * side, data<int32_t>(slots) + unit * slots.size(2),
              tiles.size(0), C * side * side, data<A>(scale) + map, data<A>(updated) + map,
              std::min(side, H - top), W, c, epilogue,
              mutable_data<T>(y) + (n * C + c) * H * W + top * W);
      }
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("mask_window", TORCH_BOX(&mask_window_cpu));
  m.impl("mask_product", TORCH_BOX(&mask_product_cpu));
  m.impl("mask_product_", TORCH_BOX(&mask_product_in_place_cpu));
  m.impl("partial_conv_epilogue", TORCH_BOX(&partial_conv_epilogue_cpu));
  m.impl("partial_conv_epilogue_", TORCH_BOX(&partial_conv_epilogue_in_place_cpu));
  m.impl("gather_tiles", TORCH_BOX(&gather_tiles_cpu));
  m.impl("scatter_tiles", TORCH_BOX(&scatter_tiles_cpu));
  m.impl("partial_conv_epilogue_backward", TORCH_BOX(&partial_conv_epilogue_backward_cpu));
}

}  // namespace torchext
