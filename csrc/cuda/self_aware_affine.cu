// The self-aware affine of RN-L: "Region Normalization for Image Inpainting" (AAAI 2020).
//
//   saliency = sigmoid(conv(mean over C, max over C)),  labels = saliency >= threshold
//   gamma = conv(saliency),  beta = conv(saliency)
//
// Passes over memory (T = the feature map) and launches:
//   channel_mean_max           T in 1 (the floor): mean and maximum together.
//   self_aware_maps            the maps once in 1: a tile recomputes the saliency of its border, so
//                              that all three convolutions share a kernel.
//   self_aware_maps_backward   the maps once in 2: gradients of the maps and a block's share of the
//                              weights' gradients; then the shares added up in a fixed order.
//
// Launch: channel_mean_max as channel_walk.cuh; the maps 128 threads per 16 x 8 tile, a thread
// convolving strips of 4 pixels down a column (each value read from shared memory serves 4 taps).
#include "../self_aware_affine.h"
#include "channel_walk.cuh"
#include "self_aware_affine.cuh"

namespace torchext {
namespace {

void compute(const ChannelMeanMax& call) {
  const DeviceGuard guard(call.x);
  const Walk walk(call.x);
  dispatch_floating(call.x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const T* x = data<const T>(call.x);
    dispatch_access<T>(
        vector_width(walk.extent(), x), walk.channels_last, [&](auto v, auto format) {
          walk.run(call.x,
                   Pool<T, decltype(v)::value, decltype(format)::value>{
                       {{x}, data<A>(call.pooled), data<int32_t>(call.argmax), walk.pixels}});
        });
  });
}

// Calls f(element type, size tag): the published sizes are compiled in, 0 stands for any other.
template <typename F>
void dispatch_maps(ScalarType dtype, int64_t size, F&& f) {
  auto with_size = [&](auto type) {
    if (size == 7) {
      f(type, std::integral_constant<int, 7>{});
    } else if (size == 3) {
      f(type, std::integral_constant<int, 3>{});
    } else {
      f(type, std::integral_constant<int, 0>{});
    }
  };
  dispatch_accumulate(dtype, with_size);
}

void compute(const SelfAwareMaps& call) {
  const DeviceGuard guard(call.pooled);
  const int64_t size = call.maps.kernel;
  const MapShape shape(call.maps.images, call.maps.height, call.maps.width);
  dispatch_maps(call.pooled.scalar_type(), size, [&](auto type, auto size_tag) {
    using A = typename decltype(type)::type;
    const Fields fields(static_cast<int>(size));
    const size_t bytes = sizeof(A) * (2 * fields.outer() + fields.inner() + 4 * fields.taps());
    launch(self_aware_maps_kernel<A, decltype(size_tag)::value>, grid_of(shape.tiles()),
           dim3(kMapThreads), bytes, current_stream(call.pooled), shape, static_cast<int>(size),
           data<const A>(call.pooled),
           MapWeights<A>{data<const A>(call.conv_weight), data<const A>(call.gamma_weight),
                         data<const A>(call.gamma_bias), data<const A>(call.beta_weight),
                         data<const A>(call.beta_bias)},
           static_cast<A>(call.threshold), data<A>(call.saliency), data<A>(call.gamma),
           data<A>(call.beta), data<uint8_t>(call.labels));
  });
}

void compute(const SelfAwareMapsBackward& call) {
  const DeviceGuard guard(call.pooled);
  const int64_t size = call.maps.kernel;
  const MapShape shape(call.maps.images, call.maps.height, call.maps.width);
  dispatch_maps(call.pooled.scalar_type(), size, [&](auto type, auto size_tag) {
    using A = typename decltype(type)::type;
    const Fields fields(static_cast<int>(size));
    const int taps = fields.taps();
    const size_t bytes =
        sizeof(A) * (2 * fields.outer() + 4 * fields.inner() + 4 * taps + 4 * taps + 2);
    // enough blocks for a large device, few enough that their shares are a small tensor
    const int64_t blocks = std::min<int64_t>(shape.tiles(), 1024);
    Tensor parts = new_tensor(call.pooled, {4 * taps + 2, blocks}, call.pooled.scalar_type());
    launch(self_aware_maps_backward_kernel<A, decltype(size_tag)::value>, grid_of(blocks),
           dim3(kMapThreads), bytes, current_stream(call.pooled), shape, static_cast<int>(size),
           MapGradients<A>{data<const A>(call.grad_saliency), data<const A>(call.grad_gamma),
                           data<const A>(call.grad_beta)},
           data<const A>(call.pooled), data<const A>(call.saliency),
           MapWeights<A>{data<const A>(call.conv_weight), data<const A>(call.gamma_weight), nullptr,
                         data<const A>(call.beta_weight), nullptr},
           data<A>(call.grad_pooled), data<A>(parts));
    constexpr int kRows = kMapThreads / kWarpSize;
    launch(combine_weight_gradients_kernel<A>, grid_of((4 * taps + 2 + kRows - 1) / kRows),
           dim3(kMapThreads), 0, current_stream(call.pooled), taps, static_cast<int>(blocks),
           data<const A>(parts),
           WeightGradients<A>{data<A>(call.grad_conv_weight), data<A>(call.grad_gamma_weight),
                              data<A>(call.grad_beta_weight), data<A>(call.grad_gamma_bias),
                              data<A>(call.grad_beta_bias)});
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
