// The self-aware affine of region normalisation's RN-L: its calls, checked, with their results
// allocated. cpu/self_aware_affine.cpp and cuda/self_aware_affine.cu compute them.
#pragma once

#include <climits>

#include "tensors.h"

namespace torchext {
namespace {

struct ChannelMeanMax {
  const Tensor& x;
  bool channels_last;
  Tensor pooled, argmax;
};

// Maps of one channel and the side of the kernels over them.
struct SelfAware {
  int64_t images, height, width, kernel;

  SelfAware(const Tensor& pooled, const Tensor& conv_weight, const Tensor& gamma_weight,
            const Tensor& beta_weight) {
    expects(pooled.dim() == 4 && pooled.size(1) == 2 && pooled.size(2) > 0 && pooled.size(3) > 0 &&
                pooled.is_contiguous(),
            "pooled: expected a contiguous (N, 2, H, W) tensor");
    images = pooled.size(0);
    height = pooled.size(2);
    width = pooled.size(3);
    kernel = conv_weight.dim() == 4 ? conv_weight.size(3) : 0;
    const ScalarType type = pooled.scalar_type();
    expects(type == accumulate_type(pooled), "pooled: expected float32 or float64");
    expects(kernel % 2 == 1 && kernel <= kMaxSelfAwareKernel,
            "conv_weight: expected (1, 2, k, k) with an odd size up to 15");
    expects_plain(conv_weight, type, 2 * taps(), "conv_weight: expected (1, 2, k, k)");
    expects_plain(gamma_weight, type, taps(), "gamma_weight: expected (1, 1, k, k)");
    expects_plain(beta_weight, type, taps(), "beta_weight: expected (1, 1, k, k)");
  }
  int64_t pixels() const { return height * width; }
  int64_t taps() const { return kernel * kernel; }
  Tensor new_map(const Tensor& like, ScalarType type) const {
    return new_tensor(like, {images, 1, height, width}, type);
  }
};

struct SelfAwareMaps {
  const Tensor& pooled;
  const Tensor& conv_weight;
  const Tensor& gamma_weight;
  const Tensor& gamma_bias;
  const Tensor& beta_weight;
  const Tensor& beta_bias;
  double threshold;
  SelfAware maps;
  Tensor saliency, gamma, beta, labels;
};

struct SelfAwareMapsBackward {
  const Tensor& grad_saliency;
  const Tensor& grad_gamma;
  const Tensor& grad_beta;
  const Tensor& pooled;
  const Tensor& saliency;
  const Tensor& conv_weight;
  const Tensor& gamma_weight;
  const Tensor& beta_weight;
  SelfAware maps;
  Tensor grad_pooled, grad_conv_weight, grad_gamma_weight, grad_gamma_bias, grad_beta_weight,
      grad_beta_bias;
};

// By the device's file.
void compute(const ChannelMeanMax& call);
void compute(const SelfAwareMaps& call);
void compute(const SelfAwareMapsBackward& call);

std::tuple<Tensor, Tensor> channel_mean_max(const Tensor& x) {
  const bool channels_last = is_channels_last(x);
  expects(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0,
          "x: expected channels, a height and a width");
  expects(x.size(1) <= INT_MAX / 2, "x: too many channels");
  Tensor pooled = new_tensor(x, {x.size(0), 2, x.size(2), x.size(3)}, accumulate_type(x));
  Tensor argmax = new_tensor(x, {x.size(0), 1, x.size(2), x.size(3)}, ScalarType::Int);
  compute(ChannelMeanMax{x, channels_last, pooled, argmax});
  return {pooled, argmax};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> self_aware_maps(
    const Tensor& pooled, const Tensor& conv_weight, const Tensor& gamma_weight,
    const Tensor& gamma_bias, const Tensor& beta_weight, const Tensor& beta_bias,
    double threshold) {
  const SelfAware maps(pooled, conv_weight, gamma_weight, beta_weight);
  const ScalarType type = pooled.scalar_type();
  expects_plain(gamma_bias, type, 1, "gamma_bias: expected one element");
  expects_plain(beta_bias, type, 1, "beta_bias: expected one element");
  Tensor saliency = maps.new_map(pooled, type), gamma = maps.new_map(pooled, type);
  Tensor beta = maps.new_map(pooled, type), labels = maps.new_map(pooled, ScalarType::Byte);
  compute(SelfAwareMaps{pooled, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias,
                        threshold, maps, saliency, gamma, beta, labels});
  return {saliency, gamma, beta, labels};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> self_aware_maps_backward(
    const Tensor& grad_saliency, const Tensor& grad_gamma, const Tensor& grad_beta,
    const Tensor& pooled, const Tensor& saliency, const Tensor& conv_weight,
    const Tensor& gamma_weight, const Tensor& beta_weight) {
  const SelfAware maps(pooled, conv_weight, gamma_weight, beta_weight);
  const ScalarType type = pooled.scalar_type();
  const int64_t all = maps.images * maps.pixels();
  expects_plain(grad_saliency, type, all, "grad_saliency: expected contiguous (N, 1, H, W)");
  expects_plain(grad_gamma, type, all, "grad_gamma: expected contiguous (N, 1, H, W)");
  expects_plain(grad_beta, type, all, "grad_beta: expected contiguous (N, 1, H, W)");
  expects_plain(saliency, type, all, "saliency: expected contiguous (N, 1, H, W)");
  const SelfAwareMapsBackward call{grad_saliency,
                                   grad_gamma,
                                   grad_beta,
                                   pooled,
                                   saliency,
                                   conv_weight,
                                   gamma_weight,
                                   beta_weight,
                                   maps,
                                   torch::stable::empty_like(pooled),
                                   torch::stable::empty_like(conv_weight),
                                   torch::stable::empty_like(gamma_weight),
                                   new_tensor(pooled, {1}, type),
                                   torch::stable::empty_like(beta_weight),
                                   new_tensor(pooled, {1}, type)};
  compute(call);
  return {call.grad_pooled,     call.grad_conv_weight, call.grad_gamma_weight,
          call.grad_gamma_bias, call.grad_beta_weight, call.grad_beta_bias};
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, channel_mean_max);
  TORCHEXT_IMPLEMENT(m, self_aware_maps);
  TORCHEXT_IMPLEMENT(m, self_aware_maps_backward);
}

}  // namespace
}  // namespace torchext
