// Oriented filters and their maximum: their calls, checked, with their results allocated.
// cpu/gabor_orientation.cpp and cuda/gabor_orientation.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

struct OrientedFilterMax {
  const Tensor& image;
  const Tensor& bank;
  bool absolute;
  Tensor response, index;
};

struct OrientedFilterStatistics {
  const Tensor& image;
  const Tensor& bank;
  const Tensor& positions;
  bool spread;
  double eps;
  Tensor strength, confidence, index;
};

struct ImageGradient {
  const Tensor& grad;
  const Tensor& index;
  const Tensor& bank;
  Tensor grad_image;
};

struct BankGradient {
  const Tensor& grad;
  const Tensor& index;
  const Tensor& image;
  Tensor grad_bank;  // (K, k, k)
};

// By the device's file. An index of the caller's may hold anything.
void compute(const OrientedFilterMax& call);
void compute(const OrientedFilterStatistics& call);
void compute(const ImageGradient& call);
void compute(const BankGradient& call);

void expects_map(const Tensor& map, const char* message) {
  expects(map.dim() == 4 && map.size(1) == 1 && map.size(2) > 0 && map.size(3) > 0 &&
              map.is_contiguous(),
          message);
}

void expects_filters(int64_t count, int64_t size) {
  expects(
      count >= 1 && count <= kMaxFilters && size >= 1 && size % 2 == 1 && size <= kMaxFilterSize,
      "bank: expected at most 1024 filters of an odd size up to 63");
}

void expects_bank(const Tensor& bank, ScalarType type) {
  expects(bank.dim() == 3 && bank.is_contiguous() && bank.scalar_type() == type &&
              bank.size(1) == bank.size(2),
          "bank: expected a contiguous (K, k, k) tensor of the accumulate type");
  expects_filters(bank.size(0), bank.size(2));
}

std::tuple<Tensor, Tensor> oriented_filter_max(const Tensor& image, const Tensor& bank,
                                               bool absolute) {
  expects_map(image, "image: expected a contiguous (N, 1, H, W) tensor");
  const ScalarType type = accumulate_type(image);
  expects_bank(bank, type);
  const int64_t N = image.size(0), H = image.size(2), W = image.size(3);
  Tensor response = new_tensor(image, {N, 1, H, W}, type);
  Tensor index = new_tensor(image, {N, 1, H, W}, ScalarType::Int);
  compute(OrientedFilterMax{image, bank, absolute, response, index});
  return {response, index};
}

std::tuple<Tensor, Tensor, Tensor> oriented_filter_statistics(const Tensor& image,
                                                              const Tensor& bank,
                                                              const Tensor& positions, bool spread,
                                                              double eps) {
  expects_map(image, "image: expected a contiguous (N, 1, H, W) tensor");
  const ScalarType type = accumulate_type(image);
  expects_bank(bank, type);
  expects_plain(positions, type, bank.size(0), "positions: expected (K) in the accumulate type");
  const int64_t H = image.size(2) - bank.size(2) + 1, W = image.size(3) - bank.size(2) + 1;
  expects(H >= 1 && W >= 1, "image: expected at least the filters' size");
  const auto map = [&](ScalarType dtype) {
    return new_tensor(image, {image.size(0), 1, H, W}, dtype);
  };
  Tensor strength = map(type), confidence = map(type), index = map(ScalarType::Int);
  compute(
      OrientedFilterStatistics{image, bank, positions, spread, eps, strength, confidence, index});
  return {strength, confidence, index};
}

void expects_gradient(const Tensor& grad, const Tensor& index) {
  expects_map(grad, "grad: expected a contiguous (N, 1, H, W) tensor");
  expects(grad.scalar_type() == accumulate_type(grad), "grad: expected float32 or float64");
  expects_plain(index, ScalarType::Int, grad.numel(),
                "index: expected a contiguous int32 (N, 1, H, W)");
}

Tensor oriented_filter_max_backward_image(const Tensor& grad, const Tensor& index,
                                          const Tensor& bank) {
  expects_gradient(grad, index);
  expects_bank(bank, grad.scalar_type());
  Tensor grad_image = torch::stable::empty_like(grad);
  compute(ImageGradient{grad, index, bank, grad_image});
  return grad_image;
}

Tensor oriented_filter_max_backward_bank(const Tensor& grad, const Tensor& index,
                                         const Tensor& image, int64_t count, int64_t size) {
  expects_gradient(grad, index);
  expects_filters(count, size);
  expects_plain(image, image.scalar_type(), grad.numel(),
                "image: expected a contiguous (N, 1, H, W) tensor");
  expects(accumulate_type(image) == grad.scalar_type(), "grad: expected the accumulate type");
  Tensor grad_bank = new_tensor(grad, {count, size, size}, grad.scalar_type());
  compute(BankGradient{grad, index, image, grad_bank});
  return grad_bank;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, oriented_filter_max);
  TORCHEXT_IMPLEMENT(m, oriented_filter_statistics);
  TORCHEXT_IMPLEMENT(m, oriented_filter_max_backward_image);
  TORCHEXT_IMPLEMENT(m, oriented_filter_max_backward_bank);
}

}  // namespace
}  // namespace torchext
