// Convolution by 3 x 3 or 2 x 2 with stride 1 in Winograd's form, F(4x4, 3x3) and F(4x4, 2x2), in
// float32:
//
//   y = A^T [sum over channels of (G w G^T) * (B^T x B)] A, tile by tile
//
// winograd_weight makes G w G^T, panels of output channels. winograd_apply takes blocks of tiles:
// each one's transformed input stays in the second-level cache while every panel is multiplied with
// it, and what follows the sums (partial convolution's epilogue, or a bias) is done where they are
// transformed back. x is read 1.5 to 2.25 times, mostly from caches, y is written once.
#include "winograd_conv_kernels.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "tensors.h"

namespace torchext {
namespace {

int64_t up(int64_t number, int64_t step) {
  return (number + step - 1) / step;
}

void expects_contiguous(const Tensor& tensor, int64_t dimensions, const char* message) {
  expects(tensor.scalar_type() == ScalarType::Float && tensor.dim() == dimensions &&
              tensor.is_contiguous(),
          message);
}

int64_t kernel_of(int64_t height, int64_t width) {
  expects(height == width && (height == 3 || height == 2),
          "weight: expected kernels of 3 x 3 or 2 x 2");
  return height;
}

Tensor winograd_weight(const Tensor& weight, bool transposed) {
  expects_contiguous(weight, 4, "weight: expected a contiguous float32 tensor (Co, Ci, k, k)");
  const int64_t kernel = kernel_of(weight.size(2), weight.size(3));
  const int64_t outs = weight.size(transposed ? 1 : 0), ins = weight.size(transposed ? 0 : 1);
  const int64_t taps = kernel * kernel, products = winograd_products(kernel);
  const int64_t out_step = transposed ? taps : taps * ins;
  const int64_t in_step = transposed ? taps * outs : taps;
  const int64_t count = up(outs, kWinogradPanel), size = products * ins * kWinogradPanel;
  Tensor panels = new_tensor(weight, {count, products, ins, kWinogradPanel}, ScalarType::Float);
  const float* from = data<const float>(weight);
  float* to = data<float>(panels);
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kWinogradPanel;
      TORCHEXT_AT_SIMD_LEVEL(winograd_weight)(kernel, from + first * out_step, out_step, in_step,
                                              transposed, std::min(kWinogradPanel, outs - first),
                                              ins, to + p * size);
    }
  });
  return panels;
}

WinogradShape shape_of(int64_t kernel, const Tensor& x, int64_t out_channels, const Sizes& padding,
                       const Sizes& dilation) {
  expects_contiguous(x, 4, "x: expected a contiguous float32 tensor (N, Ci, H, W)");
  expects(padding.size() == 2 && dilation.size() == 2 && padding[0] >= 0 && padding[1] >= 0 &&
              dilation[0] >= 1 && dilation[1] >= 1,
          "padding, dilation: expected two each, from 0 and from 1");
  WinogradShape shape{kernel, x.size(0), x.size(1), x.size(2), x.size(3), out_channels,
                      0,      0,         {},        {},        0,         0};
  for (int64_t i = 0; i < 2; ++i) {
    shape.padding[i] = padding[i];
    shape.dilation[i] = dilation[i];
  }
  shape.out_height = shape.height + 2 * padding[0] - (kernel - 1) * dilation[0];
  shape.out_width = shape.width + 2 * padding[1] - (kernel - 1) * dilation[1];
  expects(shape.out_height > 0 && shape.out_width > 0, "x: expected windows that fit into it");
  shape.tile_rows = up(up(shape.out_height, dilation[0]), kWinogradOutput);
  shape.tile_columns = up(up(shape.out_width, dilation[1]), kWinogradOutput);
  return shape;
}

// A map of the output, of each image or of all; returns the step from one image to the next.
int64_t image_step(const Tensor& map, const WinogradShape& shape) {
  const int64_t plane = shape.out_height * shape.out_width;
  const int64_t images = map.numel() == plane ? 1 : shape.images;
  expects_plain(map, ScalarType::Float, images * plane,
                "scale, updated: expected a map of the result, for each image or for all");
  return images == 1 ? 0 : plane;
}

// Tile numbers, those with an output pixel that is not hole first; returns their count.
int64_t sort_by_life(const WinogradShape& shape, const WinogradTail& tail,
                     std::vector<int32_t>& order) {
  if (shape.tiles() > INT32_MAX) return shape.tiles();
  const int64_t each = shape.tiles() / std::max<int64_t>(1, shape.images);
  // The tile of each output pixel is the sum of a number of its row and one of its column.
  std::vector<int64_t> of_row(shape.out_height), of_column(shape.out_width);
  const int64_t grid = shape.tile_rows * shape.tile_columns;
  for (int64_t i = 0; i < shape.out_height; ++i)
    of_row[i] = i % shape.dilation[0] * shape.dilation[1] * grid +
                i / shape.dilation[0] / kWinogradOutput * shape.tile_columns;
  for (int64_t i = 0; i < shape.out_width; ++i)
    of_column[i] = i % shape.dilation[1] * grid + i / shape.dilation[1] / kWinogradOutput;
  std::vector<char> alive(each * shape.images, 0);
  const int64_t different = tail.image_step ? shape.images : 1;
  for (int64_t image = 0; image < different; ++image)
    for (int64_t row = 0; row < shape.out_height; ++row) {
      const float* updated = tail.updated + image * tail.image_step + row * shape.out_width;
      char* tiles = alive.data() + image * each + of_row[row];
      for (int64_t column = 0; column < shape.out_width; ++column)
        tiles[of_column[column]] |= updated[column] != 0.0f;
    }
  for (int64_t image = different; image < shape.images; ++image)
    std::copy_n(alive.begin(), each, alive.begin() + image * each);
  for (const bool wanted : {true, false})
    for (size_t tile = 0; tile < alive.size(); ++tile)
      if (alive[tile] == wanted) order.push_back(static_cast<int32_t>(tile));
  return std::count(alive.begin(), alive.end(), 1);
}

Tensor winograd_apply(const Tensor& x, const MaybeTensor& mask, const Tensor& panels,
                      int64_t out_channels, const MaybeTensor& scale, const MaybeTensor& updated,
                      const MaybeTensor& bias, const MaybeTensor& norm_weight,
                      const MaybeTensor& norm_bias, double negative_slope, bool mask_output,
                      const Sizes& padding, const Sizes& dilation) {
  expects_contiguous(panels, 4, "panels: expected what winograd_weight returns");
  const int64_t kernel = panels.size(1) == winograd_products(2) ? 2 : 3;
  const WinogradShape shape = shape_of(kernel, x, out_channels, padding, dilation);
  const int64_t products = winograd_products(kernel);
  expects(panels.size(0) == up(out_channels, kWinogradPanel) && panels.size(1) == products &&
              panels.size(2) == shape.channels && panels.size(3) == kWinogradPanel,
          "panels: expected those of a weight (out_channels, Ci, 3, 3)");
  int64_t mask_step = 0;  // from one image's mask to the next one's; 0 where all share one
  if (mask.has_value()) {
    const int64_t plane = shape.height * shape.width;
    const int64_t images = mask->numel() == plane ? 1 : shape.images;
    expects_plain(mask, ScalarType::Float, images * plane,
                  "mask: expected one channel of x's size, for each image or for all");
    mask_step = images == 1 ? 0 : plane;
  }
  expects(scale.has_value() == updated.has_value(), "updated: expected with scale alone");
  for (const MaybeTensor* tensor : {&bias, &norm_weight, &norm_bias})
    expects_plain(*tensor, ScalarType::Float, out_channels, "expected a number per channel");
  expects(norm_weight.has_value() == norm_bias.has_value(), "norm_bias: expected with norm_weight");
  WinogradTail tail{
      data<const float>(scale),
      data<const float>(updated),
      0,
      {data<const float>(bias), data<const float>(norm_weight), data<const float>(norm_bias),
       static_cast<float>(negative_slope), mask_output}};
  if (scale.has_value()) {
    tail.image_step = image_step(*scale, shape);
    expects(image_step(*updated, shape) == tail.image_step, "updated: expected scale's shape");
  }

  Tensor y = new_tensor(x, {shape.images, out_channels, shape.out_height, shape.out_width},
                        ScalarType::Float);
  const float* in = data<const float>(x);
  const float* known = data<const float>(mask);
  const float* weights = data<const float>(panels);
  float* out = data<float>(y);
  // Tiles that are all hole are not convolved: first the others, then these.
  std::vector<int32_t> order;
  const int64_t all = shape.tiles();
  const int64_t live = tail.scale ? sort_by_life(shape, tail, order) : all;
  const int32_t* list = live < all ? order.data() : nullptr;
  const int64_t size = TORCHEXT_AT_SIMD_LEVEL(winograd_tiles)();
  const int64_t blocks = up(live, size), all_panels = panels.size(0);
  const int64_t panel_size = products * shape.channels * kWinogradPanel;
  const int64_t step = TORCHEXT_AT_SIMD_LEVEL(winograd_step)(shape.channels);
  const int64_t transformed_size = products * step;
  const int64_t threads = torch::stable::get_num_threads();
  Tensor scratch = new_tensor(x, {std::min(threads, blocks), transformed_size}, ScalarType::Float);
  float* transformed = data<float>(scratch);

  const auto tiles_of = [&](int64_t block) {
    return WinogradTiles{block * size, std::min(size, live - block * size), list};
  };
  const auto input = [&](int64_t block, int64_t begin, int64_t end, float* to) {
    TORCHEXT_AT_SIMD_LEVEL(winograd_input)(shape, in, known, mask_step, tiles_of(block), begin, end,
                                           step, size, to);
  };
  const auto output = [&](int64_t block, int64_t panel, const float* from) {
    TORCHEXT_AT_SIMD_LEVEL(winograd_output)(shape, from, weights + panel * panel_size, tail,
                                            tiles_of(block), panel * kWinogradPanel, out);
  };
  if (live < all)
    parallel_for(0, out_channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        TORCHEXT_AT_SIMD_LEVEL(winograd_fill)(shape, tail, {live, all - live, list}, c, out);
    });
  if (blocks >= 4 * threads || threads == 1) {  // each block whole, by one thread
    std::atomic<int64_t> taken{0};
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      float* own = transformed + taken++ * transformed_size;
      for (int64_t block = begin; block < end; ++block) {
        input(block, 0, shape.channels, own);
        for (int64_t panel = 0; panel < all_panels; ++panel) output(block, panel, own);
      }
    });
    return y;
  }
  // Too few for that: some blocks at a time, first their channels, then their panels in parallel.
  const int64_t chunk = 16, chunks = up(shape.channels, chunk);
  for (int64_t done = 0; done < blocks; done += threads) {
    const int64_t together = std::min(threads, blocks - done);
    parallel_for(0, together * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t block = unit / chunks, first = unit % chunks * chunk;
        input(done + block, first, std::min(first + chunk, shape.channels),
              transformed + block * transformed_size);
      }
    });
    parallel_for(0, together * all_panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit)
        output(done + unit % together, unit / together,
               transformed + unit % together * transformed_size);
    });
  }
  return y;
}

// Tiles that are transformed before each product is summed over them: a product's stay in the
// second-level cache, all in the third. Measured.
constexpr int64_t kTilesOfSums = 256;
// Numbers between the products of a transformed block beyond its own: products a multiple of 4 KiB
// apart would share few lines of the first-level cache.
constexpr int64_t kSkewOfSums = 32;

// The weight's gradient: G^T [sum over tiles of (A dy A^T) * (B^T x B)] G; in the same order for
// any number of threads.
Tensor winograd_weight_gradient(const Tensor& grad, const Tensor& x, int64_t kernel,
                                const Sizes& padding, const Sizes& dilation) {
  expects_contiguous(grad, 4, "grad: expected a contiguous float32 tensor (N, Co, Ho, Wo)");
  const WinogradShape shape =
      shape_of(kernel_of(kernel, kernel), x, grad.size(1), padding, dilation);
  expects(grad.size(0) == shape.images && grad.size(2) == shape.out_height &&
              grad.size(3) == shape.out_width,
          "grad: expected the result's shape");
  const int64_t outs = shape.out_channels, ins = shape.channels, tiles = shape.tiles();
  const int64_t size = TORCHEXT_AT_SIMD_LEVEL(winograd_tiles)();
  const int64_t products = winograd_products(kernel);
  const int64_t together = std::min(kTilesOfSums, up(tiles, size) * size);
  const int64_t channel_step = together + 16;
  const int64_t x_step = ins * channel_step + kSkewOfSums;
  const int64_t grad_step = outs * channel_step + kSkewOfSums;
  Tensor of_x = new_tensor(x, {products, x_step}, ScalarType::Float);
  Tensor of_grad = new_tensor(x, {products, grad_step}, ScalarType::Float);
  Tensor sums = new_tensor(x, {products, outs, ins}, ScalarType::Float);
  torch::stable::zero_(sums);
  Tensor grad_weight = new_tensor(x, {outs, ins, kernel, kernel}, ScalarType::Float);
  const float *from_x = data<const float>(x), *from_grad = data<const float>(grad);
  float *input = data<float>(of_x), *gradient = data<float>(of_grad);
  float *total = data<float>(sums), *to = data<float>(grad_weight);
  const int64_t chunk = 8, chunks = up(ins, chunk), all_chunks = chunks + up(outs, chunk);
  const int64_t columns = 64, column_chunks = up(ins, columns);
  for (int64_t first = 0; first < tiles; first += together) {
    const int64_t count = std::min(together, tiles - first), blocks = up(count, size);
    parallel_for(0, blocks * all_chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t done = unit / all_chunks * size, part = unit % all_chunks;
        const WinogradTiles some{first + done, std::min(size, count - done), nullptr};
        if (part < chunks)
          TORCHEXT_AT_SIMD_LEVEL(winograd_input)(shape, from_x, nullptr, 0, some, part * chunk,
                                                 std::min(ins, (part + 1) * chunk), x_step,
                                                 channel_step, input + done);
        else
          TORCHEXT_AT_SIMD_LEVEL(winograd_gradient)(shape, from_grad, some, (part - chunks) * chunk,
                                                    std::min(outs, (part - chunks + 1) * chunk),
                                                    grad_step, channel_step, gradient + done);
      }
    });
    parallel_for(0, products * column_chunks, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(TORCHEXT_AT_SIMD_LEVEL(winograd_correlate_scratch)(count));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t k = unit / column_chunks, i = unit % column_chunks * columns;
        TORCHEXT_AT_SIMD_LEVEL(winograd_correlate)(
            gradient + k * grad_step, input + k * x_step, channel_step, count, outs, i,
            std::min(ins, i + columns), ins, scratch.data(), total + k * outs * ins);
      }
    });
  }
  parallel_for(0, outs, 8, [&](int64_t begin, int64_t end) {
    TORCHEXT_AT_SIMD_LEVEL(winograd_weight_gradient)(kernel, total, outs, ins, begin, end, to);
  });
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchext, CPU, m) {
  TORCHEXT_IMPLEMENT(m, winograd_weight);
  TORCHEXT_IMPLEMENT(m, winograd_apply);
  TORCHEXT_IMPLEMENT(m, winograd_weight_gradient);
}

}  // namespace torchext
