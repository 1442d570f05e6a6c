// Convolutions of stride 1 for training, masked or not, whose factors are rounded to bfloat16 and
// whose sums are float32. Only levels with tiles have them.
//
// Sizes: maps are [height, width, channels] of one image, contiguous. An image is held as bfloat16
// with the zeros around it that the kernel reads, `width + kernel - 1` places a row, so that the
// same distance leads from every place to what a tap reads. Outputs are computed for 16 places in a
// row at a time, and those of places past the map's width are not stored.
#pragma once

#include <stdint.h>

#include "pointwise.h"

namespace vqvae2_fast::cpu::tile_conv {

struct Shape {
  int64_t height, width;
  int64_t kernel;           // kernel x kernel taps
  int64_t top, left, live;  // rows above and columns before a position where the kernel begins, and
                            // the taps of its last row that count
  int64_t inputs, outputs;  // channels

  int64_t num_taps() const { return kernel * (kernel - 1) + live; }
  int64_t pitch() const { return width + kernel - 1; }  // places of a padded row
  // The adjoint takes maps of the outputs to maps of the inputs.
  int64_t from(bool adjoint) const { return adjoint ? outputs : inputs; }
  int64_t to(bool adjoint) const { return adjoint ? inputs : outputs; }
};

struct Kernels {
  // Sizes in bytes: the packed weight, and a thread's memory for `rows` rows of a map. It must be
  // zero before its first use, and serve one function in one direction, because each relies on the
  // zeros around its own image.
  int64_t (*packed_bytes)(const Shape& shape, bool adjoint) = nullptr;
  int64_t (*workspace)(const Shape& shape, bool adjoint, int64_t rows) = nullptr;
  // Rounds the normalised weight [outputs, inputs kernel^2] of outputs first..last. The packed one
  // must be zero before.
  void (*pack)(const Shape& shape, bool adjoint, const PointwiseLayer& weight, int64_t first,
               int64_t last, void* packed) = nullptr;
  // Rows first..last of y, an image's map, from its map x; bias may be null. The activation is of
  // image `image`.
  void (*convolve)(const Shape& shape, bool adjoint, const Activation& activation, int64_t image,
                   const void* packed, const float* bias, const float* x, int64_t first,
                   int64_t last, void* memory, float* y) = nullptr;

  // For the weight's gradient: bytes of an image's two maps, where x lies place after place for
  // each channel, and dy in pairs of places.
  int64_t (*places_bytes)(const Shape& shape) = nullptr;
  int64_t (*pairs_bytes)(const Shape& shape) = nullptr;
  void (*to_places)(const Shape& shape, const Activation& activation, int64_t image, const float* x,
                    void* memory, void* places) = nullptr;
  void (*to_pairs)(const Shape& shape, const float* dy, void* memory, void* pairs) = nullptr;
  // Parts of the gradient that threads take, each of 32 inputs, 32 outputs and one tap.
  int64_t (*parts)(const Shape& shape) = nullptr;
  // Parts first..last of dw, whose outputs lie `stride` apart: the sum over all images.
  void (*weight_gradient)(const Shape& shape, int64_t images, const void* places, const void* pairs,
                          int64_t first, int64_t last, float* dw, int64_t stride) = nullptr;
};

}  // namespace vqvae2_fast::cpu::tile_conv
