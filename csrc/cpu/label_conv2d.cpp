// The convolution of a one-hot label map on the CPU, as table look-ups (torchext.label_conv2d).
//
//   y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap]
//
// The weights are turned into a table (taps, labels, channels), so that a look-up adds a vector.
// Passes over memory: forward writes y, backward reads its gradient (the floors); labels, and a
// table of classes * taps * channels, stay in the cache. A run of pixels in a row whose windows
// hold the same labels is computed once. Backward sums into one table per band of rows, at most
// kBands, which are added up in order: the result does not depend on the number of threads.
#include "../label_conv2d.h"

#include <memory>

#include "label_conv2d_kernels.h"
#include "tensors.h"

namespace torchext {
namespace {

constexpr int64_t kBands = 8;

// Of the table: a tap has one row more than classes, of zeros.
int64_t tap_stride(const LabelMaps& maps) {
  return (maps.classes + 1) * maps.channels;
}
int64_t table_size(const LabelMaps& maps) {
  return maps.taps() * tap_stride(maps);
}

// The labels of a row's surroundings as rows of the table.
class RowReader {
 public:
  RowReader(const LabelMaps& maps, const int32_t* labels)
      : maps_(maps),
        labels_(labels),
        columns_(maps.width + maps.kernel - 1),
        rows_(maps.kernel * columns_),
        changed_(columns_ + 1),
        same_(maps.width) {}

  // Reads the surroundings of row y and finds its runs.
  LabelRows read(int64_t image, int64_t y) {
    const int64_t half = maps_.kernel / 2, W = maps_.width;
    const int32_t zeros = static_cast<int32_t>(maps_.classes);
    LabelRows result{{}, maps_.kernel, W, tap_stride(maps_), maps_.channels};
    std::fill(rows_.begin(), rows_.end(), zeros);
    for (int64_t ky = 0; ky < maps_.kernel; ++ky) {
      int32_t* row = rows_.data() + ky * columns_;
      result.rows[ky] = row;
      const int64_t from = y + ky - half;
      if (from < 0 || from >= maps_.height) continue;
      const int32_t* labels = labels_ + (image * maps_.height + from) * W;
      for (int64_t x = 0; x < W; ++x)
        row[half + x] = labels[x] >= 0 && labels[x] < zeros ? labels[x] : zeros;
    }
    TORCHEXT_AT_SIMD_LEVEL(same_windows)(result, changed_.data(), same_.data());
    return result;
  }
  const uint8_t* same() const { return same_.data(); }

 private:
  const LabelMaps& maps_;
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
std::unique_ptr<A[]> table_of(const LabelMaps& maps, const A* weight) {
  std::unique_ptr<A[]> table(new A[table_size(maps)]);
  const int64_t taps = maps.taps(), C = maps.channels, K = maps.classes;
  for (int64_t tap = 0; tap < taps; ++tap)
    std::fill_n(table.get() + tap * tap_stride(maps) + K * C, C, A(0));
  parallel_for(0, K, 8, [&](int64_t begin, int64_t end) {
    for (int64_t label = begin; label < end; ++label)
      for (int64_t tap = 0; tap < taps; ++tap) {
        A* to = table.get() + tap * tap_stride(maps) + label * C;
        const A* from = weight + label * taps + tap;
        for (int64_t c = 0; c < C; ++c) to[c] = from[c * K * taps];
      }
  });
  return table;
}

void compute(const LabelConv2d& call) {
  const LabelMaps& maps = call.maps;
  const int64_t C = maps.channels, P = maps.pixels();
  const int32_t* classes = data<const int32_t>(call.labels);
  if (call.check_values) check_labels(classes, call.labels.numel(), maps.classes);
  dispatch_floating(call.y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const auto table = table_of(maps, data<const A>(call.weight));
    T* out = data<T>(call.y);
    parallel_for(0, maps.images * maps.height, 1, [&](int64_t begin, int64_t end) {
      RowReader reader(maps, classes);
      std::vector<A> scratch((kLabelStride + 1) * C);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t image = row / maps.height, y_row = row % maps.height;
        const LabelRows rows = reader.read(image, y_row);
        TORCHEXT_AT_SIMD_LEVEL(label_conv_row<T>)(rows, reader.same(), table.get(),
                                                  data<const A>(call.bias), P, scratch.data(),
                                                  out + image * C * P + y_row * maps.width);
      }
    });
  });
}

void compute(const LabelConv2dBackward& call) {
  const LabelMaps& maps = call.maps;
  const int64_t C = maps.channels, P = maps.pixels(), taps = maps.taps();
  dispatch_floating(call.grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const int64_t rows = maps.images * maps.height;
    const int64_t bands = std::max<int64_t>(1, std::min(kBands, rows / 8));
    std::vector<A> tables(bands * table_size(maps));
    const T* g = data<const T>(call.grad);
    parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
      RowReader reader(maps, data<const int32_t>(call.labels));
      std::vector<A> scratch((kLabelStride + 1) * C);
      for (int64_t band = begin; band < end; ++band)
        for (int64_t row = rows * band / bands; row < rows * (band + 1) / bands; ++row) {
          const int64_t image = row / maps.height, y = row % maps.height;
          const LabelRows around = reader.read(image, y);
          TORCHEXT_AT_SIMD_LEVEL(label_conv_gradient_row<T>)(
              around, reader.same(), g + image * C * P + y * maps.width, P, scratch.data(),
              tables.data() + band * table_size(maps));
        }
    });
    A* out = data<A>(call.grad_weight);
    parallel_for(0, maps.classes, 8, [&](int64_t begin, int64_t end) {
      for (int64_t label = begin; label < end; ++label)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t c = 0; c < C; ++c) {
            double sum = 0;
            for (int64_t band = 0; band < bands; ++band)
              sum += tables[band * table_size(maps) + tap * tap_stride(maps) + label * C + c];
            out[(c * maps.classes + label) * taps + tap] = static_cast<A>(sum);
          }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  implement(m);
}

}  // namespace torchext
