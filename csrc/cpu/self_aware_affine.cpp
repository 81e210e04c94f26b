// The self-aware affine of region normalisation's RN-L on the CPU (AAAI 2020, its learnable form):
//
//   saliency = sigmoid(conv(mean over C, max over C)),  gamma = conv(saliency), beta =
//   conv(saliency)
//
// channel_mean_max reads x once (T, the floor) and writes two maps of T / C. Everything else works
// on maps of one channel: each is copied once into a zero-bordered buffer and convolved row by row.
#include "self_aware_affine_kernels.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;

// Rows of a map that one unit of parallel work takes.
constexpr int64_t kRows = 8;

std::tuple<Tensor, Tensor> channel_mean_max_cpu(const Tensor& x) {
  const bool channels_last = is_channels_last(x);
  const int64_t N = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
  expects(C > 0, "x: expected at least one channel");
  Tensor pooled = empty(x, {N, 2, x.size(2), x.size(3)}, accumulate_type(x));
  Tensor argmax = empty(x, {N, 1, x.size(2), x.size(3)}, ScalarType::Int);
  int32_t* index = mutable_data<int32_t>(argmax);
  dispatch_floating(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const T* in = data<T>(x);
    A* out = mutable_data<A>(pooled);
    // Small enough tiles to share an image of 64 x 64 among many threads.
    const int64_t tile = std::min<int64_t>(kTile, std::max<int64_t>(64, P / 16));
    const int64_t tiles = (P + tile - 1) / tile;
    parallel_for(0, N * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / tiles, first = unit % tiles * tile;
        const int64_t pixels = std::min(tile, P - first);
        A* mean = out + 2 * n * P + first;
        if (channels_last)
          TORCHEXT_AT_SIMD_LEVEL(pixels_mean_max<T>)(in + (n * P + first) * C, pixels, C, mean,
                                                     mean + P, index + n * P + first);
        else
          TORCHEXT_AT_SIMD_LEVEL(plane_mean_max<T>)(in + n * C * P + first, pixels, C, P, mean,
                                                    mean + P, index + n * P + first);
      }
    });
  });
  return {pooled, argmax};
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

struct Maps {
  int64_t images, height, width, kernel;
  int64_t pixels() const { return height * width; }
  int64_t taps() const { return kernel * kernel; }
};

Maps describe(const Tensor& pooled, const Tensor& conv_weight, const Tensor& gamma_weight,
              const Tensor& beta_weight) {
  expects(pooled.dim() == 4 && pooled.size(1) == 2 && pooled.is_contiguous(),
          "pooled: expected a contiguous (N, 2, H, W) tensor");
  expects(conv_weight.dim() == 4, "conv_weight: expected the shape (1, 2, k, k)");
  const Maps maps{pooled.size(0), pooled.size(2), pooled.size(3), conv_weight.size(3)};
  const ScalarType type = pooled.scalar_type();
  expects(type == ScalarType::Float || type == ScalarType::Double,
          "pooled: expected float32 or float64");
  expects(maps.kernel % 2 == 1 && maps.kernel <= kMaxKernel,
          "conv_weight: expected an odd kernel size up to 15");
  expects_plain(conv_weight, type, 2 * maps.taps(), "conv_weight: expected (1, 2, k, k)");
  expects_plain(gamma_weight, type, maps.taps(), "gamma_weight: expected (1, 1, k, k)");
  expects_plain(beta_weight, type, maps.taps(), "beta_weight: expected (1, 1, k, k)");
  return maps;
}

// Runs body(image, row) over all rows of all images, in parallel.
template <class Body>
void for_each_row(const Maps& maps, Body body) {
  parallel_for(0, maps.images * maps.height, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / maps.height, i % maps.height);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> self_aware_maps_cpu(
    const Tensor& pooled, const Tensor& conv_weight, const Tensor& gamma_weight,
    const Tensor& gamma_bias, const Tensor& beta_weight, const Tensor& beta_bias,
    double threshold) {
  const Maps maps = describe(pooled, conv_weight, gamma_weight, beta_weight);
  const ScalarType type = pooled.scalar_type();
  expects_plain(gamma_bias, type, 1, "gamma_bias: expected one element");
  expects_plain(beta_bias, type, 1, "beta_bias: expected one element");
  Tensor saliency = empty(pooled, {maps.images, 1, maps.height, maps.width}, type);
  Tensor gamma = torch::stable::empty_like(saliency);
  Tensor beta = torch::stable::empty_like(saliency);
  Tensor labels = empty(pooled, {maps.images, 1, maps.height, maps.width}, ScalarType::Byte);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const int64_t half = maps.kernel / 2, P = maps.pixels();
    const A* in = data<A>(pooled);
    A* saliency_out = mutable_data<A>(saliency);
    A* gamma_out = mutable_data<A>(gamma);
    A* beta_out = mutable_data<A>(beta);
    uint8_t* labels_out = mutable_data<uint8_t>(labels);
    PaddedBatch<A> pooled_maps(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> saliency_maps(maps.images, maps.height, maps.width, half);
    for (int64_t m = 0; m < 2 * maps.images; ++m) pooled_maps.fill(m, in + m * P);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> inputs[2] = {pooled_maps.map(2 * n), pooled_maps.map(2 * n + 1)};
      A* row = saliency_out + n * P + y * maps.width;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(inputs, 2, data<A>(conv_weight), maps.kernel, y, A(0),
                                              maps.width, row);
      TORCHEXT_AT_SIMD_LEVEL(sigmoid_row<A>)(row, maps.width, static_cast<A>(threshold),
                                             labels_out + n * P + y * maps.width);
      std::copy_n(row, maps.width, saliency_maps.row(n, y));
    });
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> input = saliency_maps.map(n);
      const int64_t row = n * P + y * maps.width;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, data<A>(gamma_weight), maps.kernel, y,
                                              *data<A>(gamma_bias), maps.width, gamma_out + row);
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, data<A>(beta_weight), maps.kernel, y,
                                              *data<A>(beta_bias), maps.width, beta_out + row);
    });
  };
  if (type == ScalarType::Double)
    run(double{});
  else
    run(float{});
  return {saliency, gamma, beta, labels};
}

// The weights of the transposed convolution: both axes reversed.
template <class A>
std::vector<A> reversed(const A* taps, int64_t count) {
  return std::vector<A>(std::make_reverse_iterator(taps + count), std::make_reverse_iterator(taps));
}

// Sum over all pixels of gradient * shifted map, per tap, in chunks of rows added up in order.
template <class A>
void tap_gradients(const Maps& maps, const A* gradient, const PaddedBatch<A>& inputs,
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> self_aware_maps_backward_cpu(
    const Tensor& grad_saliency, const Tensor& grad_gamma, const Tensor& grad_beta,
    const Tensor& pooled, const Tensor& saliency, const Tensor& conv_weight,
    const Tensor& gamma_weight, const Tensor& beta_weight) {
  const Maps maps = describe(pooled, conv_weight, gamma_weight, beta_weight);
  const ScalarType type = pooled.scalar_type();
  const int64_t all = maps.images * maps.pixels();
  expects_plain(grad_saliency, type, all, "grad_saliency: expected contiguous (N, 1, H, W)");
  expects_plain(grad_gamma, type, all, "grad_gamma: expected contiguous (N, 1, H, W)");
  expects_plain(grad_beta, type, all, "grad_beta: expected contiguous (N, 1, H, W)");
  expects_plain(saliency, type, all, "saliency: expected contiguous (N, 1, H, W)");
  Tensor grad_pooled = torch::stable::empty_like(pooled);
  Tensor grad_conv_weight = torch::stable::empty_like(conv_weight);
  Tensor grad_gamma_weight = torch::stable::empty_like(gamma_weight);
  Tensor grad_gamma_bias = empty(pooled, {1}, type);
  Tensor grad_beta_weight = torch::stable::empty_like(beta_weight);
  Tensor grad_beta_bias = empty(pooled, {1}, type);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const int64_t half = maps.kernel / 2, P = maps.pixels(), taps = maps.taps();
    const A* gammas = data<A>(grad_gamma);
    const A* betas = data<A>(grad_beta);
    const A* map = data<A>(saliency);

    // gradient of the convolution's output: both affine convolutions transposed, then the sigmoid
    PaddedBatch<A> affine_gradients(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> saliency_maps(maps.images, maps.height, maps.width, half);
    PaddedBatch<A> pooled_maps(2 * maps.images, maps.height, maps.width, half);
    PaddedBatch<A> logit_gradients(maps.images, maps.height, maps.width, half);
    for (int64_t n = 0; n < maps.images; ++n) {
      affine_gradients.fill(2 * n, gammas + n * P);
      affine_gradients.fill(2 * n + 1, betas + n * P);
      saliency_maps.fill(n, map + n * P);
      pooled_maps.fill(2 * n, data<A>(pooled) + 2 * n * P);
      pooled_maps.fill(2 * n + 1, data<A>(pooled) + (2 * n + 1) * P);
    }
    std::vector<A> affine_taps = reversed(data<A>(gamma_weight), taps);
    const std::vector<A> beta_taps = reversed(data<A>(beta_weight), taps);
    affine_taps.insert(affine_taps.end(), beta_taps.begin(), beta_taps.end());
    std::vector<A> logits(all);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> inputs[2] = {affine_gradients.map(2 * n), affine_gradients.map(2 * n + 1)};
      const int64_t at = n * P + y * maps.width;
      A* row = logits.data() + at;
      TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(inputs, 2, affine_taps.data(), maps.kernel, y, A(0),
                                              maps.width, row);
      for (int64_t i = 0; i < maps.width; ++i) row[i] += data<A>(grad_saliency)[at + i];
      TORCHEXT_AT_SIMD_LEVEL(sigmoid_gradient_row<A>)(row, map + at, maps.width);
      std::copy_n(row, maps.width, logit_gradients.row(n, y));
    });

    const std::vector<A> conv_taps[2] = {reversed(data<A>(conv_weight), taps),
                                         reversed(data<A>(conv_weight) + taps, taps)};
    A* pooled_out = mutable_data<A>(grad_pooled);
    for_each_row(maps, [&](int64_t n, int64_t y) {
      const PaddedMap<A> input = logit_gradients.map(n);
      for (int64_t m = 0; m < 2; ++m)
        TORCHEXT_AT_SIMD_LEVEL(convolve_row<A>)(&input, 1, conv_taps[m].data(), maps.kernel, y,
                                                A(0), maps.width,
                                                pooled_out + (2 * n + m) * P + y * maps.width);
    });

    A* conv_out = mutable_data<A>(grad_conv_weight);
    tap_gradients(maps, logits.data(), pooled_maps, 2, 0, conv_out);
    tap_gradients(maps, logits.data(), pooled_maps, 2, 1, conv_out + taps);
    tap_gradients(maps, gammas, saliency_maps, 1, 0, mutable_data<A>(grad_gamma_weight));
    tap_gradients(maps, betas, saliency_maps, 1, 0, mutable_data<A>(grad_beta_weight));
    double gamma_sum = 0, beta_sum = 0;
    for (int64_t i = 0; i < all; ++i) {
      gamma_sum += static_cast<double>(gammas[i]);
      beta_sum += static_cast<double>(betas[i]);
    }
    *mutable_data<A>(grad_gamma_bias) = static_cast<A>(gamma_sum);
    *mutable_data<A>(grad_beta_bias) = static_cast<A>(beta_sum);
  };
  if (type == ScalarType::Double)
    run(double{});
  else
    run(float{});
  return {grad_pooled,     grad_conv_weight, grad_gamma_weight,
          grad_gamma_bias, grad_beta_weight, grad_beta_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("channel_mean_max", TORCH_BOX(&channel_mean_max_cpu));
  m.impl("self_aware_maps", TORCH_BOX(&self_aware_maps_cpu));
  m.impl("self_aware_maps_backward", TORCH_BOX(&self_aware_maps_backward_cpu));
}

}  // namespace torchext
