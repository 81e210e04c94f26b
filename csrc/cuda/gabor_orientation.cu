// Oriented filters and their maximum: "MichiGAN" (SIGGRAPH 2020), its hair orientation.
//
//   index = argmax over K filters of the rectified correlation of the image with each, response =
//   that response
//
// Passes over memory and launches (image = one channel):
//   oriented_filter_max      image in, index and response out (the floor) in 1: a tile and its
//                            surroundings lie in shared memory, responses in registers.
//   oriented_filter_statistics  image in, index, strength and confidence out (the floor) in 1; the
//                            responses are taken twice, as the confidence is about the best of
//                            them.
//   ..._backward_image       gradient and index in, gradient out in 1: a gather of the winning
//                            filters' taps around each pixel.
//   ..._backward_bank        gradient, index and image in, partial sums in 1; then added in order.
//
// Each block of the forward looks at the bank itself: 32 filters at the angles pi * i / 32 that are
// even under point reflection and, as a bank, closed under mirroring and transposition share their
// multiplications (1177 per pixel, not 9248; see csrc/cpu/gabor_orientation.cpp). No answer has to
// reach the host.
//
// Launch: 256 threads per tile of 32 x 64 (forward), 32 x 32 or 32 x 16 pixels, of fewer rows where
// an image has few tiles; in the forward a thread sums all filters at two pixels (one in double) at
// a time.
#include "../gabor_orientation.h"
#include "gabor_orientation.cuh"

namespace torchext {
namespace {

[[noreturn]] void refuse(int64_t size) {
  const std::string side = std::to_string(size);
  throw std::invalid_argument("bank: filters of " + side + " x " + side +
                              " in this dtype need more shared memory than this GPU has;"
                              " torchext.backend.use(\"triton\") takes them");
}

// Rows of the forward's tiles, as many as leave enough of them.
template <typename A>
int tile_height_of(const Tensor& map, int border = 0) {
  int height = kForwardTileHeight;
  while (height > kRowsOf<A> && Tiles(map, height, border).count() < kEnoughBlocks) height /= 2;
  return height;
}

void compute(const OrientedFilterMax& call) {
  const DeviceGuard guard(call.image);
  const int count = static_cast<int>(call.bank.size(0)), size = static_cast<int>(call.bank.size(2));
  dispatch_floating(call.image.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    // The symmetry, which saves most of the work, comes before the height of the tiles.
    const size_t limit = shared_memory_limit();
    const int tallest = tile_height_of<A>(call.image);
    int height = tallest;
    bool may_be_square = count == kSquareCount;
    const auto bytes = [&] {
      return sizeof(A) * (weight_elements(size, may_be_square) + window_elements(height, size));
    };
    while (height > kRowsOf<A> && bytes() > limit) height /= 2;
    if (may_be_square && bytes() > limit) {
      may_be_square = false;
      height = tallest;
      while (height > kRowsOf<A> && bytes() > limit) height /= 2;
    }
    if (bytes() > limit) refuse(size);
    const Tiles tiles(call.image, height);
    launch(oriented_filter_max_kernel<T>, grid_of(tiles.count()), dim3(kThreads), bytes(),
           current_stream(call.image), tiles, data<const T>(call.image), data<const A>(call.bank),
           count, size, may_be_square, call.absolute, data<int32_t>(call.index),
           data<A>(call.response));
  });
}

void compute(const OrientedFilterStatistics& call) {
  const DeviceGuard guard(call.image);
  const int count = static_cast<int>(call.bank.size(0)), size = static_cast<int>(call.bank.size(2));
  dispatch_floating(call.image.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const size_t limit = shared_memory_limit();
    int height = tile_height_of<A>(call.image, size - 1);
    const auto bytes = [&] {
      return sizeof(A) * (weight_elements(size, false) + window_elements(height, size));
    };
    while (height > kRowsOf<A> && bytes() > limit) height /= 2;
    if (bytes() > limit) refuse(size);
    const Tiles tiles(call.image, height, size - 1);
    launch(oriented_filter_statistics_kernel<T>, grid_of(tiles.count()), dim3(kThreads), bytes(),
           current_stream(call.image), tiles, data<const T>(call.image), data<const A>(call.bank),
           data<const A>(call.positions), count, size, call.spread, static_cast<A>(call.eps),
           data<int32_t>(call.index), data<A>(call.strength), data<A>(call.confidence));
  });
}

void compute(const ImageGradient& call) {
  const DeviceGuard guard(call.grad);
  const int count = static_cast<int>(call.bank.size(0)), size = static_cast<int>(call.bank.size(2));
  dispatch_accumulate(call.grad.scalar_type(), [&](auto type) {
    using A = typename decltype(type)::type;
    const size_t limit = shared_memory_limit();
    const size_t row = sizeof(A) * table_pitch(count);  // of the table, for one tap
    const auto run = [&](auto pixels_tag) {
      constexpr int kPixels = decltype(pixels_tag)::value;
      const Tiles tiles(call.grad, image_tile_height(kPixels));
      const size_t window =
          (sizeof(A) + sizeof(int32_t)) * window_elements(tiles.tile_height, size);
      if (window + row > limit) return false;
      const int slab = std::min(table_taps(count), static_cast<int>((limit - window) / row));
      launch(oriented_filter_max_backward_image_kernel<A, kPixels>, grid_of(tiles.count()),
             dim3(kThreads), window + slab * row, current_stream(call.grad), tiles,
             data<const A>(call.grad), data<const int32_t>(call.index), data<const A>(call.bank),
             count, size, slab, data<A>(call.grad_image));
      return true;
    };
    using std::integral_constant;
    const auto few = [&](int pixels) {
      return Tiles(call.grad, image_tile_height(pixels)).count() < kEnoughBlocks;
    };
    if ((few(kImagePixels) || !run(integral_constant<int, kImagePixels>{})) &&
        (few(kImagePixels / 2) || !run(integral_constant<int, kImagePixels / 2>{})) &&
        !run(integral_constant<int, kImagePixels / 4>{})) {
      refuse(size);
    }
  });
}

void compute(const BankGradient& call) {
  const DeviceGuard guard(call.grad);
  const int count = static_cast<int>(call.grad_bank.size(0)),
            size = static_cast<int>(call.grad_bank.size(2));
  const int64_t elements = call.grad_bank.numel();
  dispatch_floating(call.image.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const int taps = size * size;
    const size_t limit = shared_memory_limit();
    int height = kBankTileHeight;
    int set = std::max(1, std::min(count, static_cast<int>(4 * kBankElements / sizeof(A)) / taps));
    const auto bytes = [&] {
      return sizeof(A) * (set * taps + window_elements(height, size) + height * kTileWidth) +
             sizeof(int32_t) * height * kTileWidth;
    };
    while (height > 1 && bytes() > limit) set > 1 ? set = (set + 1) / 2 : height /= 2;
    if (bytes() > limit) refuse(size);
    const Tiles tiles(call.grad, height);
    const int sets = (count + set - 1) / set;
    // an empty batch still writes its sums: zeros
    const int num_parts = static_cast<int>(std::clamp<int64_t>(tiles.count(), 1, kParts));
    Tensor parts = new_tensor(call.grad, {elements, num_parts}, call.grad.scalar_type());
    launch(oriented_filter_max_backward_bank_kernel<T>, grid_of(int64_t{num_parts} * sets),
           dim3(kThreads), bytes(), current_stream(call.grad), tiles, data<const A>(call.grad),
           data<const int32_t>(call.index), data<const T>(call.image), count, size, set, num_parts,
           data<A>(parts));
    constexpr int kWarps = kThreads / kWarpSize;
    launch(combine_bank_gradients_kernel<A>, grid_of((elements + kWarps - 1) / kWarps),
           dim3(kThreads), 0, current_stream(call.grad), elements, num_parts, data<const A>(parts),
           data<A>(call.grad_bank));
  });
}

}  // namespace

TORCHEXT_LIBRARY_IMPL(m) {
  implement(m);
}

}  // namespace torchext
