// Dual attention up-sampling's pools and gates: their calls, checked, with their results allocated.
// cpu/dual_attention.cpp and cuda/dual_attention.cu compute them.
#pragma once

#include <climits>

#include "tensors.h"

namespace torchext {
namespace {

struct DualAttentionPools {
  const Tensor& high;
  const Tensor& low;
  Tensor averages, pooled, argmax;
};

struct DualAttention {
  const Tensor& high;
  const Tensor& low;
  const Tensor& gate;
  const Tensor& attention;
  double slope;
  Tensor y;
};

struct DualAttentionBackward {
  const Tensor& grad;
  const Tensor& y;
  const Tensor& low;
  const Tensor& gate;
  const Tensor& attention;
  double slope;
  Tensor grad_high, grad_low, grad_gate, grad_attention;
};

// By the device's file.
void compute(const DualAttentionPools& call);
void compute(const DualAttention& call);
void compute(const DualAttentionBackward& call);

void expects_alike(const Tensor& low, const Tensor& other) {
  expects_like(other, low, "expected tensors of one shape, dtype and memory format");
  expects(low.size(1) > 0 && low.size(2) > 0 && low.size(3) > 0,
          "low: expected at least one channel and one pixel");
  expects(low.size(1) <= INT_MAX / 2, "low: too many channels");
}

void expects_scales(const Tensor& low, const Tensor& gate, const Tensor& attention) {
  const ScalarType type = accumulate_type(low);
  expects_plain(gate, type, low.size(0) * low.size(1), "gate: expected contiguous (N, C)");
  expects_plain(attention, type, low.size(0) * low.size(2) * low.size(3),
                "attention: expected contiguous (N, 1, H, W)");
}

std::tuple<Tensor, Tensor, Tensor> dual_attention_pools(const Tensor& high, const Tensor& low) {
  expects_alike(low, high);
  const ScalarType type = accumulate_type(low);
  const int64_t N = low.size(0), H = low.size(2), W = low.size(3);
  Tensor averages = new_tensor(low, {N, 2 * low.size(1)}, type);
  Tensor pooled = new_tensor(low, {N, 2, H, W}, type);
  Tensor argmax = new_tensor(low, {N, 1, H, W}, ScalarType::Int);
  compute(DualAttentionPools{high, low, averages, pooled, argmax});
  return {averages, pooled, argmax};
}

Tensor dual_attention(const Tensor& high, const Tensor& low, const Tensor& gate,
                      const Tensor& attention, double slope) {
  expects_alike(low, high);
  expects_scales(low, gate, attention);
  Tensor y = torch::stable::empty_like(low);
  compute(DualAttention{high, low, gate, attention, slope, y});
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dual_attention_backward(
    const Tensor& grad, const Tensor& y, const Tensor& low, const Tensor& gate,
    const Tensor& attention, double slope) {
  expects_alike(low, grad);
  expects_alike(low, y);
  expects_scales(low, gate, attention);
  Tensor grad_high = torch::stable::empty_like(low), grad_low = torch::stable::empty_like(low);
  Tensor grad_gate = torch::stable::empty_like(gate);
  Tensor grad_attention = torch::stable::empty_like(attention);
  compute(DualAttentionBackward{grad, y, low, gate, attention, slope, grad_high, grad_low,
                                grad_gate, grad_attention});
  return {grad_high, grad_low, grad_gate, grad_attention};
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, dual_attention_pools);
  TORCHEXT_IMPLEMENT(m, dual_attention);
  TORCHEXT_IMPLEMENT(m, dual_attention_backward);
}

}  // namespace
}  // namespace torchext
