// The self-aware affine, vectorised (compiled once per SIMD level, see simd.h).
#include "self_aware_affine_kernels.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Outputs convolved at a time: they stay in registers over all taps.
constexpr int64_t kOutputs = 64;

}  // namespace

template <class T>
void plane_mean_max(const T* x, int64_t pixels, int64_t channels, int64_t channel_stride,
                    accumulate_t<T>* mean, accumulate_t<T>* maximum, int32_t* argmax) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  const A* first = input(x, pixels);
  for (int64_t i = 0; i < pixels; ++i) {
    mean[i] = maximum[i] = first[i];
    argmax[i] = 0;
  }
  for (int64_t c = 1; c < channels; ++c) {
    const A* __restrict values = input(x + c * channel_stride, pixels);
    A* __restrict sums = mean;
    A* __restrict best = maximum;
    int32_t* __restrict index = argmax;
    const int32_t channel = static_cast<int32_t>(c);
    for (int64_t i = 0; i < pixels; ++i) {
      const A value = values[i], held = best[i];
      sums[i] += value;
      // NaN counts as the largest, and the first of equals wins: what torch.max does.
      const bool larger = value > held || (value != value && held == held);
      best[i] = larger ? value : held;
      index[i] = larger ? channel : index[i];
    }
  }
  for (int64_t i = 0; i < pixels; ++i) mean[i] /= static_cast<A>(channels);
}

template <class T>
void pixels_mean_max(const T* x, int64_t pixels, int64_t channels, accumulate_t<T>* mean,
                     accumulate_t<T>* maximum, int32_t* argmax) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  for (int64_t p = 0; p < pixels; ++p) {
    A sum = 0, best = 0;
    int64_t index = -1;
    for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
      const int64_t width = smaller(kTile, channels - c0);
      const A* values = input(x + p * channels + c0, width);
      A part = 0, largest = values[0];
      int unordered = 0;
#pragma omp simd reduction(+ : part, unordered) reduction(max : largest)
      for (int64_t c = 0; c < width; ++c) {
        part += values[c];
        largest = values[c] > largest ? values[c] : largest;
        unordered += values[c] != values[c];
      }
      sum += part;
      if (best != best) continue;  // a NaN was found before
      if (index >= 0 && unordered == 0 && !(largest > best)) continue;
      for (int64_t c = 0; c < width; ++c)
        if (unordered > 0 ? values[c] != values[c] : values[c] == largest) {
          best = values[c];
          index = c0 + c;
          break;
        }
    }
    mean[p] = sum / static_cast<A>(channels);
    maximum[p] = best;
    argmax[p] = static_cast<int32_t>(index);
  }
}

template <class A>
void convolve_row(const PaddedMap<A>* maps, int64_t num_maps, const A* taps, int64_t kernel,
                  int64_t row, A bias, int64_t width, A* out) {
  for (int64_t begin = 0; begin < width; begin += kOutputs) {
    const int64_t count = smaller(kOutputs, width - begin);
    A sums[kOutputs];
    for (int64_t i = 0; i < kOutputs; ++i) sums[i] = bias;
    for (int64_t m = 0; m < num_maps; ++m)
      for (int64_t ky = 0; ky < kernel; ++ky) {
        const A* from = maps[m].values + (row + ky) * maps[m].stride + begin;
        for (int64_t kx = 0; kx < kernel; ++kx) {
          const A tap = taps[(m * kernel + ky) * kernel + kx];
          if (count == kOutputs)
            for (int64_t i = 0; i < kOutputs; ++i) sums[i] += tap * from[kx + i];
          else
            for (int64_t i = 0; i < count; ++i) sums[i] += tap * from[kx + i];
        }
      }
    for (int64_t i = 0; i < count; ++i) out[begin + i] = sums[i];
  }
}

template <class A>
void sigmoid_row(A* values, int64_t width, A threshold, uint8_t* labels) {
  for (int64_t i = 0; i < width; ++i) {
    const A saliency = A(1) / (A(1) + static_cast<A>(exp(-values[i])));
    values[i] = saliency;
    labels[i] = saliency >= threshold;
  }
}

template <class A>
void sigmoid_gradient_row(A* gradient, const A* saliency, int64_t width) {
  for (int64_t i = 0; i < width; ++i) gradient[i] *= saliency[i] * (A(1) - saliency[i]);
}

template <class A>
void tap_gradient_row(const A* gradient, const PaddedMap<A>& map, int64_t kernel, int64_t row,
                      int64_t width, A* lanes) {
  for (int64_t ky = 0; ky < kernel; ++ky)
    for (int64_t kx = 0; kx < kernel; ++kx) {
      const A* __restrict from = map.values + (row + ky) * map.stride + kx;
      A* __restrict sums = lanes + (ky * kernel + kx) * kLanes;
      int64_t begin = 0;
      for (; begin + kLanes <= width; begin += kLanes)
        for (int64_t i = 0; i < kLanes; ++i) sums[i] += gradient[begin + i] * from[begin + i];
      for (int64_t i = begin; i < width; ++i) sums[i - begin] += gradient[i] * from[i];
    }
}

#define TORCHEXT_INSTANTIATE_POOL(T)                                                               \
  template void plane_mean_max<T>(const T*, int64_t, int64_t, int64_t, accumulate_t<T>*,           \
                                  accumulate_t<T>*, int32_t*);                                     \
  template void pixels_mean_max<T>(const T*, int64_t, int64_t, accumulate_t<T>*, accumulate_t<T>*, \
                                   int32_t*);
TORCHEXT_INSTANTIATE_POOL(float)
TORCHEXT_INSTANTIATE_POOL(double)
TORCHEXT_INSTANTIATE_POOL(Half)
TORCHEXT_INSTANTIATE_POOL(BFloat16)

#define TORCHEXT_INSTANTIATE_MAPS(A)                                                         \
  template void convolve_row<A>(const PaddedMap<A>*, int64_t, const A*, int64_t, int64_t, A, \
                                int64_t, A*);                                                \
  template void sigmoid_row<A>(A*, int64_t, A, uint8_t*);                                    \
  template void sigmoid_gradient_row<A>(A*, const A*, int64_t);                              \
  template void tap_gradient_row<A>(const A*, const PaddedMap<A>&, int64_t, int64_t, int64_t, A*);
TORCHEXT_INSTANTIATE_MAPS(float)
TORCHEXT_INSTANTIATE_MAPS(double)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
