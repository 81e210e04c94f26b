// The self-aware affine of region normalisation's RN-L on the CPU (AAAI 2020, its learnable form):
//
//   saliency = sigmoid(conv(mean over C, max over C)),  gamma = conv(saliency), beta =
//   conv(saliency)
//
// channel_mean_max reads x once (T, the floor) and writes two maps of T / C. Everything else works
// on maps of one channel: each is copied once into a zero-bordered buffer and convolved row by row.
#include "../self_aware_affine.h"

#include "self_aware_affine_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

// Rows of a map that one unit of parallel work takes.
constexpr int64_t kRows = 8;

void compute(const ChannelMeanMax& call) {
  const Tensor& x = call.x;
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  int32_t* index = data<int32_t>(call.argmax);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const T* in = data<const T>(x);
    A* out = data<A>(call.pooled);
    // Small enough tiles to share an image of 64 x 64 among many threads.
    const int64_t tile = std::min<int64_t>(kTile, std::max<int64_t>(64, P / 16));
    const int64_t tiles = (P + tile - 1) / tile;
    parallel_for(0, N * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / tiles, first = unit % tiles * tile;
        const int64_t pixels = std::min(tile, P - first);
        A* mean = out + 2 * n * P + first;
        if (call.channels_last)
          TORCHEXT_AT_SIMD_LEVEL(pixels_mean_max<T>)(in + (n * P + first) * C, pixels, C, mean,
                                                     mean + P, index + n * P + first);
        else
          TORCHEXT_AT_SIMD_LEVEL(plane_mean_max<T>)(in + n * C * P + first, pixels, C, P, mean,
                                                    mean + P, index + n * P + first);
      }
    });
  });
}

// A batch of single-channel maps with zero borders.
template <class A>
class PaddedBatch {
 public:
  PaddedBatch(int64_t maps, int64_t height, int64_t width, int64_t half)
      : height_(height),
        width_(width),
        half_(half),
        stride_(width + 2 * half),
        values_(maps * (height + 2 * half) * stride_) {}

  A* row(int64_t map, int64_t y) { return values_.data() + offset(map, y + half_) + half_; }
  PaddedMap<A> map(int64_t map) const { return {values_.data() + offset(map, 0), stride_}; }

  // Copies an unpadded map in.
  void fill(int64_t map, const A* from) {
    for (int64_t y = 0; y < height_; ++y) std::copy_n(from + y * width_, width_, row(map, y));
  }

 private:
  int64_t offset(int64_t map, int64_t y) const {
    return (map * (height_ + 2 * half_) + y) * stride_;
  }
  int64_t height_, width_, half_, stride_;
  std::vector<A> values_;
};

// Runs body(image, row) over all rows of all images, in parallel.
template <class Body>
void for_each_row(const SelfAware& maps, Body body) {
  parallel_for(0, maps.images * maps.height, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / maps.height, i % maps.height);
  });
}

void compute(const SelfAwareMaps& call) {
  const SelfAware& maps = call.maps;
  dispatch_accumulate(call.pooled.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    const int64_t half = maps.kernel / 2, P = maps.pixels();
    const A* in = data<const A>(call.pooled);
    A* saliency_out = data<A>(call.saliency);
    A* gamma_out = data<A>(call.gamma);
    A* beta_out = data<A>(call.beta);
    uint8_t* labels_out = data<uint8_t>(call.labels);
    PaddedBatch<A> pooled_maps(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> saliency_maps(maps.images, maps.height, maps.width, half);
    for (int64_t m = 0; m < 2 * maps.images; ++m) pooled_maps.fill(m, in + m * P);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> inputs[2] = {pooled_maps.map(2 * n), pooled_maps.map(2 * n + 1)};
      A* row = saliency_out + n * P + y * maps.width;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(inputs, 2, data<const A>(call.conv_weight),
                                              maps.kernel, y, A(0), maps.width, row);
      TORCHEXT_AT_SIMD_LEVEL(sigmoid_row<A>)(row, maps.width, static_cast<A>(call.threshold),
                                             labels_out + n * P + y * maps.width);
      std::copy_n(row, maps.width, saliency_maps.row(n, y));
    });
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> input = saliency_maps.map(n);
      const int64_t row = n * P + y * maps.width;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, data<const A>(call.gamma_weight),
                                              maps.kernel, y, *data<const A>(call.gamma_bias),
                                              maps.width, gamma_out + row);
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, data<const A>(call.beta_weight),
                                              maps.kernel, y, *data<const A>(call.beta_bias),
                                              maps.width, beta_out + row);
    });
  });
}

// The weights of the transposed convolution: both axes reversed.
template <class A>
std::vector<A> reversed(const A* taps, int64_t count) {
  return std::vector<A>(std::make_reverse_iterator(taps + count), std::make_reverse_iterator(taps));
}

// Sum over all pixels of gradient * shifted map, per tap, in chunks of rows added up in order.
template <class A>
void tap_gradients(const SelfAware& maps, const A* gradient, const PaddedBatch<A>& inputs,
                   int64_t inputs_per_image, int64_t input, A* out) {
  constexpr int64_t kChunkRows = 16;
  const int64_t chunks_per_image = (maps.height + kChunkRows - 1) / kChunkRows;
  const int64_t chunks = maps.images * chunks_per_image, size = maps.taps() * kLanes;
  std::vector<A> lanes(chunks * size);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / chunks_per_image, first = i % chunks_per_image * kChunkRows;
      const PaddedMap<A> map = inputs.map(n * inputs_per_image + input);
      for (int64_t y = first; y < std::min(first + kChunkRows, maps.height); ++y)
        TORCHEXT_AT_SIMD_LEVEL(tap_gradient_row<A>)(gradient + n * maps.pixels() + y * maps.width,
                                                    map, maps.kernel, y, maps.width,
                                                    &lanes[i * size]);
    }
  });
  for (int64_t tap = 0; tap < maps.taps(); ++tap) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        sum += static_cast<double>(lanes[i * size + tap * kLanes + lane]);
    out[tap] = static_cast<A>(sum);
  }
}

void compute(const SelfAwareMapsBackward& call) {
  const SelfAware& maps = call.maps;
  const int64_t all = maps.images * maps.pixels();
  dispatch_accumulate(call.pooled.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    const int64_t half = maps.kernel / 2, P = maps.pixels(), taps = maps.taps();
    const A* gammas = data<const A>(call.grad_gamma);
    const A* betas = data<const A>(call.grad_beta);
    const A* map = data<const A>(call.saliency);

    // gradient of the convolution's output: both affine convolutions transposed, then the sigmoid
    PaddedBatch<A> affine_gradients(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> saliency_maps(maps.images, maps.height, maps.width, half);
    PaddedBatch<A> pooled_maps(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> logit_gradients(maps.images, maps.height, maps.width, half);
    for (int64_t n = 0; n < maps.images; ++n) {
      affine_gradients.fill(2 * n, gammas + n * P);
      affine_gradients.fill(2 * n + 1, betas + n * P);
      saliency_maps.fill(n, map + n * P);
      pooled_maps.fill(2 * n, data<const A>(call.pooled) + 2 * n * P);
      pooled_maps.fill(2 * n + 1, data<const A>(call.pooled) + (2 * n + 1) * P);
    }
    std::vector<A> affine_taps = reversed(data<const A>(call.gamma_weight), taps);
    const std::vector<A> beta_taps = reversed(data<const A>(call.beta_weight), taps);
    affine_taps.insert(affine_taps.end(), beta_taps.begin(), beta_taps.end());
    std::vector<A> logits(all);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> inputs[2] = {affine_gradients.map(2 * n), affine_gradients.map(2 * n + 1)};
      const int64_t at = n * P + y * maps.width;
      A* row = logits.data() + at;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(inputs, 2, affine_taps.data(), maps.kernel, y, A(0),
                                              maps.width, row);
      for (int64_t i = 0; i < maps.width; ++i) row[i] += data<const A>(call.grad_saliency)[at + i];
      TORCHEXT_AT_SIMD_LEVEL(sigmoid_gradient_row<A>)(row, map + at, maps.width);
      std::copy_n(row, maps.width, logit_gradients.row(n, y));
    });

    const std::vector<A> conv_taps[2] = {reversed(data<const A>(call.conv_weight), taps),
                                         reversed(data<const A>(call.conv_weight) + taps, taps)};
    A* pooled_out = data<A>(call.grad_pooled);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> input = logit_gradients.map(n);
      for (int64_t m = 0; m < 2; ++m)
        TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, conv_taps[m].data(), maps.kernel, y,
                                                A(0), maps.width,
                                                pooled_out + (2 * n + m) * P + y * maps.width);
    });

    A* conv_out = data<A>(call.grad_conv_weight);
    tap_gradients(maps, logits.data(), pooled_maps, 2, 0, conv_out);
    tap_gradients(maps, logits.data(), pooled_maps, 2, 1, conv_out + taps);
    tap_gradients(maps, gammas, saliency_maps, 1, 0, data<A>(call.grad_gamma_weight));
    tap_gradients(maps, betas, saliency_maps, 1, 0, data<A>(call.grad_beta_weight));
    double gamma_sum = 0, beta_sum = 0;
    for (int64_t i = 0; i < all; ++i) {
      gamma_sum += static_cast<double>(gammas[i]);
      beta_sum += static_cast<double>(betas[i]);
    }
    *data<A>(call.grad_gamma_bias) = static_cast<A>(gamma_sum);
    *data<A>(call.grad_beta_bias) = static_cast<A>(beta_sum);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
