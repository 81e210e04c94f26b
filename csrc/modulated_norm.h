// Modulated normalisation: its calls, checked, with their results allocated.
// cpu/modulated_norm.cpp and cuda/modulated_norm.cu compute them.
#pragma once

#include "tensors.h"

namespace torchext {
namespace {

enum class Statistics { kNone, kInstance, kBatch, kPosition, kRms };

Statistics statistics_of(const std::string& name) {
  if (name == "none") return Statistics::kNone;
  if (name == "instance") return Statistics::kInstance;
  if (name == "batch") return Statistics::kBatch;
  if (name == "position") return Statistics::kPosition;
  expects(name == "rms", "statistics: expected none, instance, batch, position or rms");
  return Statistics::kRms;
}

Gain gain_of(const std::string& name) {
  if (name == "one_plus") return Gain::kOnePlus;
  if (name == "plain") return Gain::kPlain;
  expects(name == "sigmoid", "gain: expected one_plus, plain or sigmoid");
  return Gain::kSigmoid;
}

struct Problem {
  int64_t images, channels, height, width, pixels;
  bool channels_last;
  Statistics statistics;
  bool given;  // mean and rstd are constants, one per channel

  Problem(const Tensor& x, const std::string& name, bool given)
      : channels_last(is_channels_last(x)), statistics(statistics_of(name)), given(given) {
    images = x.size(0);
    channels = x.size(1);
    height = x.size(2);
    width = x.size(3);
    pixels = height * width;
    expects(channels > 0 && pixels > 0, "x: expected C, H and W of at least 1");
    expects(!given || statistics == Statistics::kBatch,
            "mean, rstd: expected only for the statistics of the batch");
  }
  bool per_pixel() const {
    return statistics == Statistics::kPosition || statistics == Statistics::kRms;
  }
  bool per_channel() const { return !given && !per_pixel() && statistics != Statistics::kNone; }
  bool per_image() const { return statistics == Statistics::kInstance; }
  bool normalised() const { return given || statistics != Statistics::kNone; }
  bool centred() const { return normalised() && statistics != Statistics::kRms; }
  int64_t groups() const { return per_image() ? images : 1; }
};

// Which elements one value of a map belongs to: a row of a table to the pixels with its index. Of
// statistics there is one per channel and group.
enum class Extent { kAbsent, kElement, kPixel, kChannel, kGroupChannel, kTable };

struct GivenMap {
  MaybeTensor tensor;
  Extent extent = Extent::kAbsent;

  GivenMap(const Problem& problem, const Tensor& x, const MaybeTensor& map,
           const MaybeTensor& index, const char* message)
      : tensor(map) {
    if (!map.has_value()) return;
    const ScalarType type = accumulate_type(x);
    if (index.has_value()) {
      extent = Extent::kTable;
      expects(map->dim() == 2 && map->size(0) > 0 && map->size(1) == problem.channels &&
                  map->scalar_type() == type &&
                  (!problem.channels_last || problem.channels == 1 || map->stride(1) == 1),
              message);
    } else if (map->dim() == 2) {
      extent = Extent::kChannel;
      expects_plain(map, type, problem.images * problem.channels, message);
    } else if (map->dim() == 4 && map->size(1) == x.size(1)) {
      extent = Extent::kElement;
      expects_like(*map, x, message);
    } else {
      extent = Extent::kPixel;
      expects_plain(map, type, problem.images * problem.pixels, message);
    }
  }
};

// Where an element's scale and offset come from.
struct Maps {
  GivenMap gamma, beta, weight;
  MaybeTensor index;
  Gain gain;
  double slope;

  Maps(const Problem& problem, const Tensor& x, const MaybeTensor& gamma, const MaybeTensor& beta,
       const MaybeTensor& weight, const MaybeTensor& index, const std::string& gain, double slope)
      : gamma(problem, x, gamma, index, "gamma: expected (N, C), (N, 1, H, W), x's form or rows"),
        beta(problem, x, beta, index, "beta: expected (N, C), (N, 1, H, W), x's form or rows"),
        weight(problem, x, weight, std::nullopt, "weight: expected (N, 1, H, W) or x's form"),
        index(index),
        gain(gain_of(gain)),
        slope(slope) {
    expects_plain(index, ScalarType::Int, problem.images * problem.pixels,
                  "index: expected contiguous int32 (N, H, W)");
  }
  // Whether the gradient of an element's beta is that of y, so that none has to be written.
  bool beta_has_gradient_of_y() const {
    return (gamma.extent == Extent::kElement || gamma.extent == Extent::kTable) &&
           weight.extent == Extent::kAbsent && slope == 1.0;
  }
};

struct ModulatedNorm {
  const Problem& problem;
  const Tensor& x;
  const Maps& maps;
  const MaybeTensor& mean;  // given
  const MaybeTensor& rstd;
  bool unbiased;
  double eps;
  Tensor y, means, rstds;  // taken
};

struct ModulatedNormBackward {
  const Problem& problem;
  const Tensor& grad;
  const MaybeTensor& y;
  const Tensor& x;
  const Maps& maps;
  const MaybeTensor& mean;  // present where the problem is centred, rstd where it is normalised
  const MaybeTensor& rstd;
  MaybeTensor mean_sums;  // (2, R, C), if the sums have been taken
  bool unbiased;
  // Empty where they are not wanted (of beta: where it is grad). Of a table: every element's share
  // of its row.
  Tensor grad_x, grad_gamma, grad_beta, grad_weight, sums;

  bool wants_grad_x() const { return grad_x.dim() == 4; }
  bool wants_maps() const { return !mean_sums.has_value(); }
  bool wants_weight() const { return grad_weight.dim() > 1; }
};

struct SegmentedSum {
  const Tensor& values;
  const Tensor& index;
  const MaybeTensor& order;
  const MaybeTensor& offsets;
  bool channels_last;
  Tensor sums;
};

// By the device's file.
void compute(const ModulatedNorm& call);
void compute(const ModulatedNormBackward& call);
void compute(const SegmentedSum& call);

std::tuple<Tensor, Tensor, Tensor> modulated_norm(
    const Tensor& x, const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& weight,
    const MaybeTensor& mean, const MaybeTensor& rstd, const MaybeTensor& index,
    const std::string& statistics, bool unbiased, double eps, const std::string& gain,
    double slope) {
  const Problem problem(x, statistics, mean.has_value());
  const ScalarType type = accumulate_type(x);
  const int64_t C = problem.channels;
  expects(gamma.has_value() == beta.has_value(), "gamma, beta: expected both or none");
  expects(mean.has_value() == rstd.has_value(), "mean, rstd: expected both or none");
  expects_plain(mean, type, C, "mean: expected contiguous (1, C) of accumulate type");
  expects_plain(rstd, type, C, "rstd: expected contiguous (1, C) of accumulate type");
  const Maps maps(problem, x, gamma, beta, weight, index, gain, slope);
  const auto new_statistics = [&](bool wanted) {
    if (problem.per_pixel() && wanted)
      return new_tensor(x, {problem.images, 1, problem.height, problem.width}, type);
    if (problem.per_channel()) return new_tensor(x, {problem.groups(), C}, type);
    return new_tensor(x, {0}, type);
  };
  Tensor y = torch::stable::empty_like(x);
  Tensor means = new_statistics(problem.statistics != Statistics::kRms);
  Tensor rstds = new_statistics(true);
  compute(ModulatedNorm{problem, x, maps, mean, rstd, unbiased, eps, y, means, rstds});
  return {y, means, rstds};
}

// The sums with the gradients of the maps, the gradient of x (from mean_sums, if they are given),
// or both.
ModulatedNormBackward differentiate(const Problem& problem, const Tensor& grad,
                                    const MaybeTensor& y, const Tensor& x, const Maps& maps,
                                    const MaybeTensor& mean, const MaybeTensor& rstd,
                                    const MaybeTensor& mean_sums, bool unbiased,
                                    bool weight_gradient, bool wants_grad_x) {
  const ScalarType type = accumulate_type(x);
  const int64_t C = problem.channels, R = problem.groups();
  expects_like(grad, x, "grad: expected the dtype, shape and memory format of x");
  if (y.has_value()) expects_like(*y, x, "y: expected the dtype, shape and memory format of x");
  const int64_t size = problem.per_pixel() ? problem.images * problem.pixels : R * C;
  expects(!problem.centred() || mean.has_value(), "mean: expected a tensor");
  expects(!problem.normalised() || rstd.has_value(), "rstd: expected a tensor");
  if (problem.centred())
    expects_plain(mean, type, size, "mean: expected what the forward pass gave");
  if (problem.normalised())
    expects_plain(rstd, type, size, "rstd: expected what the forward pass gave");
  expects_plain(mean_sums, type, 2 * R * C, "mean_sums: expected contiguous (2, R, C)");

  const bool wants_maps = !mean_sums.has_value();
  const auto nothing = [&] { return new_tensor(x, {0}, type); };  // outputs may not alias
  const auto gradient_of = [&](const GivenMap& map, bool wanted) {
    if (map.extent == Extent::kAbsent || !wants_maps || !wanted) return nothing();
    return torch::stable::empty_like(map.extent == Extent::kTable ? x : *map.tensor);
  };
  const bool wants_sums = problem.per_channel() && wants_maps && !wants_grad_x;
  Tensor grad_x = wants_grad_x ? torch::stable::empty_like(x) : nothing();
  Tensor grad_gamma = gradient_of(maps.gamma, true);
  Tensor grad_beta = gradient_of(maps.gamma, !maps.beta_has_gradient_of_y());
  Tensor grad_weight = gradient_of(maps.weight, weight_gradient);
  Tensor sums = wants_sums ? new_tensor(x, {2, R, C}, type) : nothing();
  ModulatedNormBackward call{problem,   grad,     y,      x,          maps,      mean,        rstd,
                             mean_sums, unbiased, grad_x, grad_gamma, grad_beta, grad_weight, sums};
  compute(call);
  return call;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_norm_backward(
    const Tensor& grad, const MaybeTensor& y, const Tensor& x, const MaybeTensor& gamma,
    const MaybeTensor& beta, const MaybeTensor& weight, const MaybeTensor& mean,
    const MaybeTensor& rstd, const MaybeTensor& index, const std::string& statistics, bool given,
    bool unbiased, const std::string& gain, double slope, bool weight_gradient) {
  const Problem problem(x, statistics, given);
  const Maps maps(problem, x, gamma, beta, weight, index, gain, slope);
  const auto call = differentiate(problem, grad, y, x, maps, mean, rstd, std::nullopt, unbiased,
                                  weight_gradient, true);
  return {call.grad_x, call.grad_gamma, call.grad_beta, call.grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_norm_backward_sums(
    const Tensor& grad, const MaybeTensor& y, const Tensor& x, const MaybeTensor& gamma,
    const MaybeTensor& beta, const MaybeTensor& weight, const Tensor& mean, const Tensor& rstd,
    const MaybeTensor& index, const std::string& gain, double slope, bool weight_gradient) {
  const Problem problem(x, "batch", false);
  const Maps maps(problem, x, gamma, beta, weight, index, gain, slope);
  const auto call = differentiate(problem, grad, y, x, maps, mean, rstd, std::nullopt, false,
                                  weight_gradient, false);
  return {call.sums, call.grad_gamma, call.grad_beta, call.grad_weight};
}

Tensor modulated_norm_backward_apply(const Tensor& grad, const MaybeTensor& y, const Tensor& x,
                                     const MaybeTensor& gamma, const MaybeTensor& weight,
                                     const Tensor& mean, const Tensor& rstd,
                                     const MaybeTensor& index, const Tensor& mean_sums,
                                     const std::string& gain, double slope) {
  const Problem problem(x, "batch", false);
  const Maps maps(problem, x, gamma, std::nullopt, weight, index, gain, slope);
  return differentiate(problem, grad, y, x, maps, mean, rstd, mean_sums, false, false, true).grad_x;
}

// The sums (rows, C) of the values whose pixel has that index; order and offsets, the pixels sorted
// by their index, for devices that need them.
Tensor segmented_sum(const Tensor& values, const Tensor& index, const MaybeTensor& order,
                     const MaybeTensor& offsets, int64_t rows) {
  const bool channels_last = is_channels_last(values);
  const int64_t all = values.size(0) * values.size(2) * values.size(3);
  expects_plain(index, ScalarType::Int, all, "index: expected contiguous int32 (N, H, W)");
  expects(rows > 0 && all < (int64_t{1} << 31), "rows: expected at least 1, of 2^31 pixels");
  expects_plain(order, ScalarType::Int, all, "order: expected contiguous int32 (N * H * W)");
  expects_plain(offsets, ScalarType::Int, rows + 1,
                "offsets: expected contiguous int32 (rows + 1)");
  Tensor sums = new_tensor(values, {rows, values.size(1)}, accumulate_type(values));
  compute(SegmentedSum{values, index, order, offsets, channels_last, sums});
  return sums;
}

template <class Library>
void implement(Library& m) {
  TORCHEXT_IMPLEMENT(m, modulated_norm);
  TORCHEXT_IMPLEMENT(m, modulated_norm_backward);
  TORCHEXT_IMPLEMENT(m, modulated_norm_backward_sums);
  TORCHEXT_IMPLEMENT(m, modulated_norm_backward_apply);
  TORCHEXT_IMPLEMENT(m, segmented_sum);
}

}  // namespace
}  // namespace torchext
