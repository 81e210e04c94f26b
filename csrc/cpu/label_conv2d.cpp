// The convolution of a one-hot label map on the CPU, as table look-ups (torchext.label_conv2d).
//
//   y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap]
//
// The weights are turned into a table (taps, labels, channels), so that a look-up adds a vector.
// Passes over memory: forward writes y, backward reads its gradient (the floors); labels, and a
// table of classes * taps * channels, stay in the cache. A run of pixels in a row whose windows
// hold the same labels is computed once. Backward sums into one table per band of rows, at most
// kBands, which are added up in order: the result does not depend on the number of threads.
#include "label_conv2d_kernels.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBands = 8;

struct Problem {
  int64_t images, height, width, classes, channels, kernel;

  int64_t pixels() const { return height * width; }
  int64_t taps() const { return kernel * kernel; }
  int64_t tap_stride() const { return (classes + 1) * channels; }  // one more row: of zeros
  int64_t table() const { return taps() * tap_stride(); }
};

Problem describe(const Tensor& labels, int64_t classes, int64_t channels, int64_t kernel) {
  expects(labels.dim() == 3 && labels.size(1) > 0 && labels.size(2) > 0,
          "labels: expected the shape (N, H, W)");
  expects_plain(labels, ScalarType::Int, labels.numel(), "labels: expected contiguous int32");
  expects(kernel % 2 == 1 && kernel >= 1 && kernel <= kMaxLabelKernel,
          "weight: expected an odd kernel size up to 7");
  expects(classes > 0 && channels > 0, "weight: expected at least one class and channel");
  return {labels.size(0), labels.size(1), labels.size(2), classes, channels, kernel};
}

// The labels of a row's surroundings as rows of the table.
class RowReader {
 public:
  RowReader(const Problem& problem, const int32_t* labels)
      : problem_(problem),
        labels_(labels),
        columns_(problem.width + problem.kernel - 1),
        rows_(problem.kernel * columns_),
        changed_(columns_ + 1),
        same_(problem.width) {}

  // Reads the surroundings of row y and finds its runs.
  LabelRows read(int64_t image, int64_t y) {
    const int64_t half = problem_.kernel / 2, W = problem_.width;
    const int32_t zeros = static_cast<int32_t>(problem_.classes);
    LabelRows result{{}, problem_.kernel, W, problem_.tap_stride(), problem_.channels};
    std::fill(rows_.begin(), rows_.end(), zeros);
    for (int64_t ky = 0; ky < problem_.kernel; ++ky) {
      int32_t* row = rows_.data() + ky * columns_;
      result.rows[ky] = row;
      const int64_t from = y + ky - half;
      if (from < 0 || from >= problem_.height) continue;
      const int32_t* labels = labels_ + (image * problem_.height + from) * W;
      for (int64_t x = 0; x < W; ++x)
        row[half + x] = labels[x] >= 0 && labels[x] < zeros ? labels[x] : zeros;
    }
    TORCHEXT_AT_SIMD_LEVEL(same_windows)(result, changed_.data(), same_.data());
    return result;
  }
  const uint8_t* same() const { return same_.data(); }

 private:
  const Problem& problem_;
  const int32_t* labels_;
  int64_t columns_;
  std::vector<int32_t> rows_;
  std::vector<uint8_t> changed_, same_;
};

void check_labels(const int32_t* labels, int64_t count, int64_t classes) {
  int invalid = 0;
  for (int64_t i = 0; i < count; ++i) invalid |= labels[i] < 0 || labels[i] >= classes;
  if (invalid == 0) return;
  const int32_t wrong = *std::find_if(labels, labels + count,
                                      [&](int32_t label) { return label < 0 || label >= classes; });
  throw std::invalid_argument("labels: expected classes from 0 to " + std::to_string(classes - 1) +
                              ", got " + std::to_string(wrong));
}

// weight (channels, classes, taps) to the table; the last row of each tap is zeros.
template <class A>
std::unique_ptr<A[]> table_of(const Problem& problem, const A* weight) {
  std::unique_ptr<A[]> table(new A[problem.table()]);
  const int64_t taps = problem.taps(), C = problem.channels, K = problem.classes;
  for (int64_t tap = 0; tap < taps; ++tap)
    std::fill_n(table.get() + tap * problem.tap_stride() + K * C, C, A(0));
  parallel_for(0, K, 8, [&](int64_t begin, int64_t end) {
    for (int64_t label = begin; label < end; ++label)
      for (int64_t tap = 0; tap < taps; ++tap) {
        A* to = table.get() + tap * problem.tap_stride() + label * C;
        const A* from = weight + label * taps + tap;
        for (int64_t c = 0; c < C; ++c) to[c] = from[c * K * taps];
      }
  });
  return table;
}

Tensor label_conv2d_cpu(const Tensor& labels, const Tensor& weight,
                        const std::optional<Tensor>& bias, ScalarType dtype, bool check_values) {
  expects(weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.is_contiguous(),
          "weight: expected a contiguous (O, classes, k, k) tensor");
  const Problem problem = describe(labels, weight.size(1), weight.size(0), weight.size(2));
  const ScalarType type = weight.scalar_type();
  expects(type == ScalarType::Float || type == ScalarType::Double,
          "weight: expected float32 or float64");
  expects((dtype == ScalarType::Double) == (type == ScalarType::Double),
          "dtype: expected float64 with a weight of float64 only");
  expects_plain(bias, type, problem.channels, "bias: expected contiguous (O) like weight");
  const int32_t* classes = data<int32_t>(labels);
  if (check_values) check_labels(classes, labels.numel(), problem.classes);
  const int64_t C = problem.channels, P = problem.pixels();
  Tensor y = empty(weight, {problem.images, C, problem.height, problem.width}, dtype);
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const auto table = table_of(problem, data<A>(weight));
    T* out = mutable_data<T>(y);
    parallel_for(0, problem.images * problem.height, 1, [&](int64_t begin, int64_t end) {
      RowReader reader(problem, classes);
      std::vector<A> scratch((kLabelStride + 1) * C);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t image = row / problem.height, y_row = row % problem.height;
        const LabelRows rows = reader.read(image, y_row);
        TORCHEXT_AT_SIMD_LEVEL(label_conv_row<T>)(rows, reader.same(), table.get(), data<A>(bias),
                                                  P, scratch.data(),
                                                  out + image * C * P + y_row * problem.width);
      }
    });
  });
  return y;
}

Tensor label_conv2d_backward_cpu(const Tensor& grad, const Tensor& labels, int64_t classes,
                                 int64_t kernel) {
  expects(grad.dim() == 4 && grad.is_contiguous(), "grad: expected a contiguous (N, O, H, W)");
  const Problem problem = describe(labels, classes, grad.size(1), kernel);
  const int64_t C = problem.channels, P = problem.pixels(), taps = problem.taps();
  expects(grad.numel() == problem.images * C * P && grad.size(3) == problem.width,
          "grad: expected the height and width of labels");
  Tensor grad_weight = empty(grad, {C, classes, kernel, kernel}, accumulate_type(grad));
  dispatch_floating(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const int64_t rows = problem.images * problem.height;
    const int64_t bands = std::max<int64_t>(1, std::min(kBands, rows / 8));
    std::vector<A> tables(bands * problem.table());
    const T* g = data<T>(grad);
    parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
      RowReader reader(problem, data<int32_t>(labels));
      std::vector<A> scratch((kLabelStride + 1) * C);
      for (int64_t band = begin; band < end; ++band)
        for (int64_t row = rows * band / bands; row < rows * (band + 1) / bands; ++row) {
          const int64_t image = row / problem.height, y = row % problem.height;
          const LabelRows around = reader.read(image, y);
          TORCHEXT_AT_SIMD_LEVEL(label_conv_gradient_row<T>)(
              around, reader.same(), g + image * C * P + y * problem.width, P, scratch.data(),
              tables.data() + band * problem.table());
        }
    });
    A* out = mutable_data<A>(grad_weight);
    parallel_for(0, classes, 8, [&](int64_t begin, int64_t end) {
      for (int64_t label = begin; label < end; ++label)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t c = 0; c < C; ++c) {
            double sum = 0;
            for (int64_t band = 0; band < bands; ++band)
              sum += tables[band * problem.table() + tap * problem.tap_stride() + label * C + c];
            out[(c * classes + label) * taps + tap] = static_cast<A>(sum);
          }
    });
  });
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  m.impl("label_conv2d", TORCH_BOX(&label_conv2d_cpu));
  m.impl("label_conv2d_backward", TORCH_BOX(&label_conv2d_backward_cpu));
}

}  // namespace torchext
