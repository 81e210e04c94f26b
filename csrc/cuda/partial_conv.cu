// Partial convolution around PyTorch's convolution (arXiv 1804.07723, arXiv 1811.11718):
//
//   y = conv(x * m) * scale + bias * updated,  scale and updated from the mask's window sums
//
// Passes over memory (T = the feature map, maps of one channel not counted) and launches:
//   mask_window                     a mask of one channel: none, in 1. Of more: read once, in 2.
//   mask_product                    reads T, writes T in 1 (the floor of an unfused product).
//   partial_conv_epilogue           reads the raw output, writes the result, in 1: 2T, the floor.
//   partial_conv_epilogue_backward  reads the gradient, writes the raw output's: 2T, the floor;
//   also
//                                   reads y after an activation, raw for a norm weight's gradient;
//                                   sums for the parameters' on the way, parts added up in a 2nd.
//
// Launch: 256 threads. Elementwise kernels: a thread takes accesses of 128 bits of a plane
// (contiguous; the epilogue's of several planes at the same pixels, whose maps it then reads once)
// or of an image (channels last). mask_window: a block takes a piece of an output row,
// sums the window's rows into shared column sums, then adds up columns: k + k additions per pixel.
#include "partial_conv.cuh"

namespace torchext {
namespace {

MaskChannels describe_channels(const Sizes& mask_channels) {
  expects(mask_channels.size() <= kMaxMaskChannels, "mask_channels: expected at most 64 numbers");
  MaskChannels result{static_cast<int>(mask_channels.size()), {}};
  std::copy(mask_channels.begin(), mask_channels.end(), result.channels);
  return result;
}

void compute(const MaskWindow& call) {
  const DeviceGuard guard(call.mask);
  const Window& window = call.window;
  const int64_t N = call.mask.size(0), G = call.mask.size(1), pixels = window.input_pixels();
  const MaskChannels counts = describe_channels(call.mask_channels);
  int64_t channels = counts.count > 0 ? 0 : G;
  for (int64_t number : call.mask_channels) channels += number;
  dispatch_floating(call.mask.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const WindowRule<A> rule{call.options.ratio, call.options.bias,
                             static_cast<A>(channels) * static_cast<A>(window.taps()),
                             static_cast<A>(call.options.eps)};
    // As many outputs per block as their column sums fit into shared memory without opting in.
    constexpr int64_t kColumns = 48 * 1024 / sizeof(A);
    int64_t outputs = std::min<int64_t>(kThreads, window.output[2]);
    while (outputs > 1 && window.columns(outputs) > kColumns) outputs = (outputs + 1) / 2;
    expects(outputs == 0 || window.columns(outputs) <= kColumns,
            "dilation: expected a window of at most 6144 columns");
    const int64_t pieces = outputs == 0 ? 0 : (window.output[2] + outputs - 1) / outputs;
    const dim3 grid = grid_of(N * window.output_rows() * pieces);
    const auto run = [&](auto source, const Tensor& input, A factor) {
      using S = typename decltype(source)::type;
      launch(mask_window_kernel<S>, grid, dim3(kThreads),
             sizeof(A) * static_cast<size_t>(outputs == 0 ? 0 : window.columns(outputs)),
             current_stream(call.mask), window, data<const S>(input), factor, rule, outputs, pieces,
             data<A>(call.scale), data<A>(call.updated));
    };
    if (G == 1) {
      run(Type<T>{}, call.mask, static_cast<A>(channels));
    } else {
      Tensor sums = new_tensor(call.mask, {N, pixels}, call.scale.scalar_type());
      launch(mask_channel_sum_kernel<T>, grid_of((N * pixels + kThreads - 1) / kThreads),
             dim3(kThreads), 0, current_stream(call.mask), data<const T>(call.mask), data<A>(sums),
             N, G, pixels, call.channels_last, counts);
      run(Type<A>{}, sums, A(1));
    }
  });
}

void compute(const MaskProduct& call) {
  const Tensor& x = call.x;
  const DeviceGuard guard(x);
  const bool channels_last = call.channels_last;
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  const int64_t count = call.runs.masks;
  const MaskView view{C,
                      P,
                      count,
                      call.runs.shared,
                      call.runs.each,
                      describe_channels(count == 1 ? Sizes() : call.runs.lengths)};
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* in = data<const T>(x);
    const T* masks = data<const T>(call.mask);
    T* out = data<T>(call.y);
    const bool reads_mask_wide = !channels_last || call.runs.each;
    const int64_t extent = channels_last ? C : P;
    const int width =
        reads_mask_wide ? vector_width(extent, in, masks, out) : vector_width(extent, in, out);
    dispatch_access<T>(width, channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      const Runs runs = channels_last ? Runs::of<T, V>(N, C * P) : Runs::of<T, V>(N * C, P);
      launch(mask_product_kernel<T, V, decltype(format)::value>, grid_of(runs.count * runs.blocks),
             dim3(kThreads), 0, current_stream(x), runs, view, in, masks, out);
    });
  });
}

void compute(const Epilogue& call) {
  const DeviceGuard guard(call.raw);
  const OutputMaps& maps = call.maps;
  const int64_t N = maps.images, C = maps.channels, P = maps.pixels;
  dispatch_floating(call.raw.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const T* in = data<const T>(call.raw);
    const A* scales = data<const A>(call.scale);
    const A* masks = data<const A>(call.updated);
    T* out = data<T>(call.y);
    const ChannelEpilogue<A> epilogue{
        data<const A>(call.options.bias), data<const A>(call.options.norm_weight),
        data<const A>(call.options.norm_bias), static_cast<A>(call.options.negative_slope),
        call.options.mask_output};
    const int width = maps.channels_last ? vector_width(C, in, out, epilogue.bias,
                                                        epilogue.norm_weight, epilogue.norm_bias)
                                         : vector_width(P, in, scales, masks, out);
    dispatch_access<T>(width, maps.channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      if constexpr (decltype(format)::value) {
        const Runs runs = Runs::of<T, V>(N, C * P);
        launch(pixel_epilogue_kernel<T, V>, grid_of(runs.count * runs.blocks), dim3(kThreads), 0,
               current_stream(call.raw), runs, maps, in, scales, masks, epilogue, out);
      } else {
        // as many planes for a block as leave enough blocks
        const int64_t blocks = (P + kThreads * V - 1) / (kThreads * V);
        const int64_t each = std::clamp<int64_t>(N * C * blocks / kEnoughBlocks, 1, kMostPlanes);
        const PlaneShares shares{blocks, (C + each - 1) / each, each};
        launch(plane_epilogue_kernel<T, V>, grid_of(N * shares.groups * blocks), dim3(kThreads), 0,
               current_stream(call.raw), maps, shares, in, scales, masks, epilogue, out);
      }
    });
  });
}

void compute(const EpilogueBackward& call) {
  const DeviceGuard guard(call.grad);
  const OutputMaps& maps = call.maps;
  const int64_t N = maps.images, C = maps.channels, P = maps.pixels;
  dispatch_floating(call.grad.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
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
    const int width = maps.channels_last
                          ? vector_width(C, of.grad, of.y, of.raw, of.norm_weight, out)
                          : vector_width(P, of.grad, of.y, of.raw, of.scale, of.updated, out);
    dispatch_access<T>(width, maps.channels_last, [&](auto width_tag, auto format) {
      constexpr int V = decltype(width_tag)::value;
      // Enough blocks for a large device, few enough that their parts are a small tensor.
      constexpr int64_t kBlocks = 2048;
      int64_t count = 0;
      Tensor parts;
      if constexpr (decltype(format)::value) {
        const int64_t vectors = (C + V - 1) / V;
        int lanes = 1;
        while (lanes < 32 && lanes < vectors) lanes *= 2;
        const int64_t groups = (vectors + lanes - 1) / lanes;
        const int64_t rows = kThreads / lanes;
        count = std::max<int64_t>(
            1, std::min((N * P + rows - 1) / rows, std::max<int64_t>(1, kBlocks / groups)));
        parts = new_tensor(call.grad, {count, kSums, C}, call.sums.scalar_type());
        launch(pixel_epilogue_backward_kernel<T, V>, grid_of(groups * count), dim3(kThreads), 0,
               current_stream(call.grad), maps, N * P, count, lanes, of, out, data<A>(parts));
      } else {
        const int64_t shares = (P + kThreads * V - 1) / (kThreads * V);
        const int64_t wanted = std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, N * C));
        const int64_t splits = std::max<int64_t>(1, std::min(shares, wanted));
        count = N * splits;
        parts = new_tensor(call.grad, {count, kSums, C}, call.sums.scalar_type());
        launch(plane_epilogue_backward_kernel<T, V>, grid_of(N * C * splits), dim3(kThreads), 0,
               current_stream(call.grad), maps, splits, of, out, data<A>(parts));
      }
      launch(combine_epilogue_sums_kernel<A>, grid_of((kSums * C + kWarpSize - 1) / kWarpSize),
             dim3(kThreads), 0, current_stream(call.grad), data<const A>(parts), count, kSums * C,
             data<A>(call.sums));
    });
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
