// The tail of DAGAN: "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020).
//
//   y = leaky(high + low * (gate + attention)),  gate per channel, attention per pixel
//
// Passes over memory (T = one feature map) and launches:
//   dual_attention_pools      2T in 2, the floor, and 1 that adds up the blocks' sums.
//   dual_attention            3T in 1, the floor.
//   dual_attention_backward   5T in 1, the floor: reads grad, y and low, writes both gradients and
//                             sums on the way; and 1 that adds up the blocks' sums.
//
// One walk serves all: a block takes some pixels of an image with all their channels, so that it
// can reduce over channels for each pixel, and over its pixels for each channel. 256 threads:
// contiguous 2 to 32 across pixels and the rest across channels, channels last up to a warp per
// pixel.
#include "../dual_attention.h"
#include "dual_attention.cuh"

namespace torchext {
namespace {

void compute(const DualAttentionPools& call) {
  const DeviceGuard guard(call.low);
  const Walk walk(call.low);
  const int64_t C = walk.channels;
  dispatch_floating(call.low.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const T* highs = data<const T>(call.high);
    const T* lows = data<const T>(call.low);
    A* out = data<A>(call.averages);
    const int width = vector_width(walk.extent(), lows, highs);
    const double factor = 1.0 / static_cast<double>(walk.pixels);
    dispatch_access<T>(width, walk.channels_last, [&](auto v, auto format) {
      constexpr int V = decltype(v)::value;
      constexpr bool kLast = decltype(format)::value;
      walk.run(call.low, Average<T, V, kLast>{highs}, out, 2 * C, factor);
      const AverageAndPool<T, V, kLast> pool{
          {lows}, data<A>(call.pooled), data<int32_t>(call.argmax), walk.pixels};
      walk.run(call.low, pool, out + C, 2 * C, factor);
    });
  });
}

void compute(const DualAttention& call) {
  const DeviceGuard guard(call.low);
  const Walk walk(call.low);
  dispatch_floating(call.low.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const T* highs = data<const T>(call.high);
    const T* lows = data<const T>(call.low);
    const A* gates = data<const A>(call.gate);
    const A* maps = data<const A>(call.attention);
    T* out = data<T>(call.y);
    const int width = vector_width(walk.extent(), lows, highs, out, gates, maps);
    dispatch_access<T>(width, walk.channels_last, [&](auto v, auto format) {
      constexpr int V = decltype(v)::value;
      constexpr bool kLast = decltype(format)::value;
      walk.run(call.low,
               Forward<T, V, kLast>{highs, lows, {gates, maps}, out, static_cast<A>(call.slope)});
    });
  });
}

void compute(const DualAttentionBackward& call) {
  const DeviceGuard guard(call.low);
  const Walk walk(call.low);
  dispatch_floating(call.low.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const T* grads = data<const T>(call.grad);
    const T* ys = data<const T>(call.y);
    const T* lows = data<const T>(call.low);
    const A* gates = data<const A>(call.gate);
    const A* maps = data<const A>(call.attention);
    T* highs_out = data<T>(call.grad_high);
    T* lows_out = data<T>(call.grad_low);
    const int width =
        vector_width(walk.extent(), lows, grads, ys, highs_out, lows_out, gates, maps);
    dispatch_access<T>(width, walk.channels_last, [&](auto v, auto format) {
      constexpr int V = decltype(v)::value;
      constexpr bool kLast = decltype(format)::value;
      const Backward<T, V, kLast> visit{grads,
                                        ys,
                                        lows,
                                        {gates, maps},
                                        highs_out,
                                        lows_out,
                                        data<A>(call.grad_attention),
                                        walk.pixels,
                                        static_cast<A>(call.slope)};
      walk.run(call.low, visit, data<A>(call.grad_gate), walk.channels);
    });
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
