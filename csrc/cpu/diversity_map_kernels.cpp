// The diversity maps, vectorised (compiled once per SIMD level, see simd.h).
#include "diversity_map_kernels.h"

#include "vector_math.h"

namespace torchext {
namespace TORCHEXT_SIMD {

void next_distances(const uint8_t* known, const uint16_t* before, int64_t width, uint16_t cap,
                    uint16_t* distance) {
  for (int64_t x = 0; x < width; ++x) {
    const uint16_t next = before[x] < cap ? static_cast<uint16_t>(before[x] + 1) : cap;
    distance[x] = known[x] != 0 ? static_cast<uint16_t>(0) : next;
  }
}

void vertical_rings(const uint16_t* above, const uint16_t* below, int64_t width, int64_t radius,
                    uint8_t steps, uint8_t* rings) {
  const float inverse = 1.0f / static_cast<float>(radius);
  // Half a pixel more than the floor needs keeps the rounding of `inverse` out of the result.
  const float offset = static_cast<float>(radius) - 0.5f;
  const int32_t most = steps;
  for (int64_t x = 0; x < width; ++x) {
    const uint16_t nearest = above[x] < below[x] ? above[x] : below[x];
    const int32_t ring = static_cast<int32_t>(
        (static_cast<float>(static_cast<int32_t>(nearest)) + offset) * inverse);
    rings[x] = static_cast<uint8_t>(ring < most ? ring : most);
  }
}

void spread_rings(const uint8_t* vertical, int64_t width, int64_t radius, uint8_t steps,
                  uint8_t* rings) {
  uint8_t largest = 0;
  for (int64_t x = 0; x < width; ++x) {
    rings[x] = vertical[x];
    largest = rings[x] > largest ? rings[x] : largest;
  }
  for (int64_t ring = 1; ring < steps && largest > ring; ++ring) {
    const uint8_t least = static_cast<uint8_t>(ring);
    for (int64_t k = (ring - 1) * radius + 1; k <= ring * radius; ++k) {
      const uint8_t* __restrict left = vertical - k;
      const uint8_t* __restrict right = vertical + k;
      for (int64_t x = 0; x < width; ++x) {
        const uint8_t nearest = left[x] < right[x] ? left[x] : right[x];
        const uint8_t reached = nearest > least ? nearest : least;
        rings[x] = rings[x] < reached ? rings[x] : reached;
      }
    }
    largest = 0;
    for (int64_t x = 0; x < width; ++x) largest = rings[x] > largest ? rings[x] : largest;
  }
}

template <class T>
void soft_map_pixels(const T* logits, const uint8_t* known, int64_t count, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  OutputTile<T> output;
  const A* __restrict in = input(logits, count);
  A* __restrict out = output(y);
  for (int64_t i = 0; i < count; ++i) {
    const A soft = sigmoid(in[i]);
    out[i] = known[i] != 0 ? A(1) : soft;
  }
  output.commit(y, count);
}

template <class T>
void soft_map_channels(const T* logits, bool known, int64_t count, T* y) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  OutputTile<T> output;
  const A* __restrict in = input(logits, count);
  A* __restrict out = output(y);
  if (known)
    for (int64_t i = 0; i < count; ++i) out[i] = A(1);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = sigmoid(in[i]);
  output.commit(y, count);
}

template <class T>
void soft_map_gradient_pixels(const T* grad, const T* y, const uint8_t* known, int64_t count,
                              T* grad_logits) {
  using A = accumulate_t<T>;
  InputTile<T> grad_input, y_input;
  OutputTile<T> output;
  const A* __restrict g = grad_input(grad, count);
  const A* __restrict s = y_input(y, count);
  A* __restrict out = output(grad_logits);
  for (int64_t i = 0; i < count; ++i) {
    const A gradient = g[i] * s[i] * (A(1) - s[i]);
    out[i] = known[i] != 0 ? A(0) : gradient;
  }
  output.commit(grad_logits, count);
}

template <class T>
void soft_map_gradient_channels(const T* grad, const T* y, bool known, int64_t count,
                                T* grad_logits) {
  using A = accumulate_t<T>;
  InputTile<T> grad_input, y_input;
  OutputTile<T> output;
  const A* __restrict g = grad_input(grad, count);
  const A* __restrict s = y_input(y, count);
  A* __restrict out = output(grad_logits);
  if (known)
    for (int64_t i = 0; i < count; ++i) out[i] = A(0);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = g[i] * s[i] * (A(1) - s[i]);
  output.commit(grad_logits, count);
}

#define TORCHEXT_INSTANTIATE(T)                                                               \
  template void soft_map_pixels<T>(const T*, const uint8_t*, int64_t, T*);                    \
  template void soft_map_channels<T>(const T*, bool, int64_t, T*);                            \
  template void soft_map_gradient_pixels<T>(const T*, const T*, const uint8_t*, int64_t, T*); \
  template void soft_map_gradient_channels<T>(const T*, const T*, bool, int64_t, T*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
