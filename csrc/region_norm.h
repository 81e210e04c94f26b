// Region normalisation: its calls, checked, with their results allocated. cpu/region_norm.cpp and
// cuda/region_norm.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

struct Regions {
  int64_t images, channels, pixels;
  int64_t regions, groups;  // groups of statistics: images, or 1
  bool per_instance, ignore_holes, channels_last;
  bool shared_labels;  // one label map for every image

  Regions(const Tensor& x, const Tensor& labels, int64_t num_regions, bool per_instance,
          bool ignore_holes)
      : regions(num_regions),
        per_instance(per_instance),
        ignore_holes(ignore_holes),
        channels_last(is_channels_last(x)) {
    images = x.size(0);
    channels = x.size(1);
    pixels = x.size(2) * x.size(3);
    groups = per_instance ? images : 1;
    expects(regions >= 1 && regions <= kMaxRegions, "num_regions: expected 1 to 64");
    expects(channels > 0 && pixels > 0, "x: expected C, H and W of at least 1");
    expects(labels.dim() == 4 && labels.size(1) == 1 && labels.size(2) == x.size(2) &&
                labels.size(3) == x.size(3) && (labels.size(0) == 1 || labels.size(0) == images),
            "labels: expected the shape (N or 1, 1, H, W) of x");
    shared_labels = labels.size(0) == 1;
    expects_plain(labels, ScalarType::Byte, labels.size(0) * pixels,
                  "labels: expected a contiguous uint8 tensor");
  }
  int64_t statistics() const { return groups * regions * channels; }
  int64_t map() const { return images * pixels; }
};

// What follows the normalisation: a weight and a bias per region and channel, or per pixel.
struct RegionAffine {
  const MaybeTensor& weight;
  const MaybeTensor& bias;
  const MaybeTensor& spatial_weight;
  const MaybeTensor& spatial_bias;

  void check(const Regions& r, ScalarType type) const {
    expects(weight.has_value() == bias.has_value() &&
                spatial_weight.has_value() == spatial_bias.has_value() &&
                !(weight.has_value() && spatial_weight.has_value()),
            "expected weight and bias, or spatial_weight and spatial_bias, or none of them");
    const int64_t parameters = r.regions * r.channels;
    expects_plain(weight, type, parameters, "weight: expected contiguous (K, C)");
    expects_plain(bias, type, parameters, "bias: expected contiguous (K, C)");
    expects_plain(spatial_weight, type, r.map(),
                  "spatial_weight: expected contiguous (N, 1, H, W)");
    expects_plain(spatial_bias, type, r.map(), "spatial_bias: expected contiguous (N, 1, H, W)");
  }
};

struct RegionLabels {
  const Tensor& mask;
  int64_t height, width, regions;
  bool check_values;
  Tensor labels;
};

struct RegionStatistics {
  const Tensor& x;
  const Tensor& labels;
  Regions regions;
  Tensor count, mean, variance;
};

struct RegionNorm {
  const Tensor& x;
  const Tensor& labels;
  RegionAffine affine;
  Regions regions;
  double eps;
  bool scale_eps;
  Tensor y, count, mean, rstd;
};

struct RegionNormApply {
  const Tensor& x;
  const Tensor& labels;
  const Tensor& mean;
  const Tensor& rstd;
  RegionAffine affine;
  Regions regions;
  Tensor y;
};

struct RegionNormBackward {
  const Tensor& grad;
  const Tensor& x;
  const Tensor& labels;
  const MaybeTensor& count;  // (R, K), for the gradient of x
  const Tensor& mean;
  const Tensor& rstd;
  const MaybeTensor& weight;
  const MaybeTensor& spatial_weight;
  const MaybeTensor& pooled_gradient;  // to be added to the gradient of x
  const MaybeTensor& argmax;
  Regions regions;
  bool wants_sums, wants_grad_x;
  Tensor grad_x, sums, grad_spatial_weight, grad_spatial_bias;  // empty where not wanted
};

// By the device's file. Labels may be any bytes.
void compute(const RegionLabels& call);
void compute(const RegionStatistics& call);
void compute(const RegionNorm& call);
void compute(const RegionNormApply& call);
void compute(RegionNormBackward& call);

Tensor region_labels(const Tensor& mask, int64_t height, int64_t width, int64_t num_regions,
                     bool check_values) {
  expects(mask.dim() == 4 && mask.size(1) == 1 && mask.is_contiguous(),
          "mask: expected a contiguous tensor of shape (N or 1, 1, H, W)");
  expects(mask.size(2) > 0 && mask.size(3) > 0 && height > 0 && width > 0,
          "mask: expected a height and width of at least 1");
  expects(num_regions >= 1 && num_regions <= kMaxRegions, "num_regions: expected 1 to 64");
  Tensor labels = new_tensor(mask, {mask.size(0), 1, height, width}, ScalarType::Byte);
  compute(RegionLabels{mask, height, width, num_regions, check_values, labels});
  return labels;
}

// Count, mean and a third tensor per region and channel.
std::tuple<Tensor, Tensor, Tensor> new_statistics(const Regions& r, const Tensor& x) {
  Tensor mean = new_tensor(x, {r.groups, r.regions, r.channels}, accumulate_type(x));
  return {new_tensor(x, {r.groups, r.regions}, ScalarType::Long), mean,
          torch::stable::empty_like(mean)};
}

void expects_statistics(const Regions& r, const Tensor& x, const Tensor& mean, const Tensor& rstd) {
  const ScalarType type = accumulate_type(x);
  expects_plain(mean, type, r.statistics(), "mean: expected contiguous (R, K, C)");
  expects_plain(rstd, type, r.statistics(), "rstd: expected contiguous (R, K, C)");
}

std::tuple<Tensor, Tensor, Tensor> region_statistics(const Tensor& x, const Tensor& labels,
                                                     int64_t num_regions, bool per_instance,
                                                     bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  auto [count, mean, variance] = new_statistics(regions, x);
  compute(RegionStatistics{x, labels, regions, count, mean, variance});
  return {count, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm(
    const Tensor& x, const Tensor& labels, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& spatial_weight, const MaybeTensor& spatial_bias, int64_t num_regions,
    bool per_instance, double eps, bool scale_eps, bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  const RegionAffine affine{weight, bias, spatial_weight, spatial_bias};
  affine.check(regions, accumulate_type(x));
  Tensor y = torch::stable::empty_like(x);
  auto [count, mean, rstd] = new_statistics(regions, x);
  compute(RegionNorm{x, labels, affine, regions, eps, scale_eps, y, count, mean, rstd});
  return {y, count, mean, rstd};
}

Tensor region_norm_apply(const Tensor& x, const Tensor& labels, const Tensor& mean,
                         const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                         const MaybeTensor& spatial_weight, const MaybeTensor& spatial_bias,
                         int64_t num_regions, bool per_instance, bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  const RegionAffine affine{weight, bias, spatial_weight, spatial_bias};
  affine.check(regions, accumulate_type(x));
  expects_statistics(regions, x, mean, rstd);
  Tensor y = torch::stable::empty_like(x);
  compute(RegionNormApply{x, labels, mean, rstd, affine, regions, y});
  return y;
}

// The sums into new tensors, the gradient of x from given sums, or both.
RegionNormBackward differentiate(const Tensor& grad, const Tensor& x, const Tensor& labels,
                                 const MaybeTensor& count, const Tensor& mean, const Tensor& rstd,
                                 const MaybeTensor& sums, const MaybeTensor& weight,
                                 const MaybeTensor& spatial_weight,
                                 const MaybeTensor& pooled_gradient, const MaybeTensor& argmax,
                                 const Regions& r, bool wants_grad_x) {
  const ScalarType type = accumulate_type(x);
  expects_like(grad, x, "grad: expected the dtype, shape and memory format of x");
  expects_statistics(r, x, mean, rstd);
  expects_plain(count, ScalarType::Long, r.groups * r.regions,
                "count: expected contiguous int64 (R, K)");
  expects_plain(sums, type, 2 * r.statistics(), "sums: expected contiguous (2, R, K, C)");
  expects_plain(weight, type, r.regions * r.channels, "weight: expected contiguous (K, C)");
  expects_plain(spatial_weight, type, r.map(), "spatial_weight: expected contiguous (N, 1, H, W)");
  expects(pooled_gradient.has_value() == argmax.has_value(),
          "pooled_gradient, argmax: expected both or none");
  expects_plain(pooled_gradient, type, 2 * r.map(),
                "pooled_gradient: expected contiguous (N, 2, H, W)");
  expects_plain(argmax, ScalarType::Int, r.map(), "argmax: expected contiguous int32 (N, 1, H, W)");
  const bool wants_sums = !sums.has_value();
  const auto new_map = [&] {
    return wants_sums && spatial_weight.has_value()
               ? new_tensor(x, {r.images, 1, x.size(2), x.size(3)}, type)
               : new_tensor(x, {0}, type);
  };
  RegionNormBackward call{
      grad,
      x,
      labels,
      count,
      mean,
      rstd,
      weight,
      spatial_weight,
      pooled_gradient,
      argmax,
      r,
      wants_sums,
      wants_grad_x,
      wants_grad_x ? torch::stable::empty_like(x) : new_tensor(x, {0}, type),
      wants_sums ? new_tensor(x, {2, r.groups, r.regions, r.channels}, type) : *sums,
      new_map(),
      new_map()};
  compute(call);
  return call;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> region_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& count,
    const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight,
    const MaybeTensor& spatial_weight, int64_t num_regions, bool per_instance, bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  const auto call = differentiate(grad, x, labels, count, mean, rstd, std::nullopt, weight,
                                  spatial_weight, std::nullopt, std::nullopt, regions, true);
  return {call.grad_x, call.sums, call.grad_spatial_weight, call.grad_spatial_bias};
}

std::tuple<Tensor, Tensor, Tensor> region_norm_backward_sums(const Tensor& grad, const Tensor& x,
                                                             const Tensor& labels,
                                                             const Tensor& mean, const Tensor& rstd,
                                                             const MaybeTensor& spatial_weight,
                                                             int64_t num_regions, bool per_instance,
                                                             bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  const auto call =
      differentiate(grad, x, labels, std::nullopt, mean, rstd, std::nullopt, std::nullopt,
                    spatial_weight, std::nullopt, std::nullopt, regions, false);
  return {call.sums, call.grad_spatial_weight, call.grad_spatial_bias};
}

Tensor region_norm_backward_apply(const Tensor& grad, const Tensor& x, const Tensor& labels,
                                  const Tensor& count, const Tensor& mean, const Tensor& rstd,
                                  const Tensor& sums, const MaybeTensor& weight,
                                  const MaybeTensor& spatial_weight,
                                  const MaybeTensor& pooled_gradient, const MaybeTensor& argmax,
                                  int64_t num_regions, bool per_instance, bool ignore_holes) {
  const Regions regions(x, labels, num_regions, per_instance, ignore_holes);
  return differentiate(grad, x, labels, count, mean, rstd, sums, weight, spatial_weight,
                       pooled_gradient, argmax, regions, true)
      .grad_x;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, region_labels);
  TORCHEXT_IMPLEMENT(m, region_statistics);
  TORCHEXT_IMPLEMENT(m, region_norm);
  TORCHEXT_IMPLEMENT(m, region_norm_apply);
  TORCHEXT_IMPLEMENT(m, region_norm_backward);
  TORCHEXT_IMPLEMENT(m, region_norm_backward_sums);
  TORCHEXT_IMPLEMENT(m, region_norm_backward_apply);
}

}  // namespace
}  // namespace torchext
