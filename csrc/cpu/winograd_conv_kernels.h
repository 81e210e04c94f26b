// The vectorised inner parts of Winograd's convolution. winograd_conv.cpp walks them.
#pragma once

#include "partial_conv_kernels.h"
#include "simd.h"

namespace torchext {

// F(4x4, 3x3): tiles of 4 x 4 outputs from 6 x 6 inputs, 36 products instead of 144. F(4x4, 2x2):
// from 5 x 5 inputs, 25 products instead of 64.
constexpr int64_t kWinogradOutput = 4;
constexpr int64_t winograd_products(int64_t kernel) {
  return (kWinogradOutput + kernel - 1) * (kWinogradOutput + kernel - 1);
}
// Output channels of a panel of transformed weights, [panel][product][channel][kWinogradPanel].
constexpr int64_t kWinogradPanel = 8;

// A convolution of contiguous images by 3 x 3 or 2 x 2 with stride 1. A dilated one is one of
// sub-grids: of the output pixels (d i + a, d j + b), for each (a, b), which read input pixels of
// one sub-grid.
struct WinogradShape {
  int64_t kernel;
  int64_t images, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t padding[2], dilation[2];
  int64_t tile_rows, tile_columns;  // of a sub-grid

  int64_t tiles() const { return images * dilation[0] * dilation[1] * tile_rows * tile_columns; }
};

// Some tiles: those from `first` on, or, where there is a list, those that it names, in order.
struct WinogradTiles {
  int64_t first, count;
  const int32_t* list;
};

// What follows the sums. Without a scale y = sums + bias, else the epilogue of partial convolution.
struct WinogradTail {
  const float* scale;    // (images or 1, 1, out_height, out_width)
  const float* updated;  // likewise
  int64_t image_step;    // from an image's scale to the next one's, or 0
  ChannelEpilogue<float> epilogue;
};

#define TORCHEXT_WINOGRAD_CONV_KERNELS                                                             \
  /* Tiles that are computed together. */                                                          \
  int64_t winograd_tiles();                                                                        \
  /* Elements between the products of a block's transformed input, [product][channel][tile]. */    \
  int64_t winograd_step(int64_t channels);                                                         \
  /* Of up to kWinogradPanel output channels: weight[o * out_step + i * in_step + tap], the taps   \
   */                                                                                              \
  /* in reverse if wanted. Panels [product][channel][kWinogradPanel]. */                           \
  void winograd_weight(int64_t kernel, const float* weight, int64_t out_step, int64_t in_step,     \
                       bool reversed, int64_t outs, int64_t ins, float* panel);                    \
  /* The transformed input of tiles, some channels of it: [product][channel][tile]. The mask (if   \
   */                                                                                              \
  /* any; of each image or of all, one channel) is multiplied in. */                               \
  void winograd_input(const WinogradShape& shape, const float* x, const float* mask,               \
                      int64_t mask_step, const WinogradTiles& tiles, int64_t first_channel,        \
                      int64_t end_channel, int64_t product_step, int64_t channel_step,             \
                      float* transformed);                                                         \
  /* The output channels of a panel, of those tiles. */                                            \
  void winograd_output(const WinogradShape& shape, const float* transformed, const float* panel,   \
                       const WinogradTail& tail, const WinogradTiles& tiles,                       \
                       int64_t first_channel, float* y);                                           \
  /* The transformed gradient (of the output) of tiles, channels c to end - 1. */                  \
  void winograd_gradient(const WinogradShape& shape, const float* grad,                            \
                         const WinogradTiles& tiles, int64_t c, int64_t end, int64_t product_step, \
                         int64_t channel_step, float* transformed);                                \
  /* sums[o][i] += over tiles of gradient[o][t] * input[i][t], for columns i to end - 1. */        \
  int64_t winograd_correlate_scratch(int64_t tiles);                                               \
  void winograd_correlate(const float* gradient, const float* input, int64_t channel_step,         \
                          int64_t tiles, int64_t outs, int64_t i, int64_t end, int64_t ins,        \
                          float* scratch, float* sums);                                            \
  /* From sums [product][out][in] to the weight's gradient (out, in, kernel, kernel), rows o to    \
   * end - 1. */                                                                                   \
  void winograd_weight_gradient(int64_t kernel, const float* sums, int64_t outs, int64_t ins,      \
                                int64_t o, int64_t end, float* grad_weight);                       \
  /* What follows sums of 0, in channel c of tiles. */                                             \
  void winograd_fill(const WinogradShape& shape, const WinogradTail& tail,                         \
                     const WinogradTiles& tiles, int64_t c, float* y);

TORCHEXT_DECLARE_FOR_SIMD_LEVELS(TORCHEXT_WINOGRAD_CONV_KERNELS)

}  // namespace torchext
