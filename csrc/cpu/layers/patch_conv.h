// Convolutions for training with any number of channels, in float32: products of patches, which are
// what each position sees. The rows of a patch are read where they lie, in a copy of a few rows of
// the map with zeros around it.
//
// Sizes: a small map [B, H, W, O] and a large one [B, stride H, stride W, C], contiguous, and a
// weight [O, C, kernel, kernel]. Position (i, j) of the small map meets the large one's rows from
// stride i - top on and columns from stride j - left on. Of these three, any two give the third.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu::patch_conv {

struct Shape {
  int64_t height, width;      // of the small map
  int64_t outputs, channels;  // of the small map and of the large one
  int64_t kernel, stride;
  int64_t top, left, live;  // the taps of the kernel's last row that count

  int64_t large_height() const { return stride * height; }
  int64_t large_width() const { return stride * width; }
  int64_t num_taps() const { return kernel * (kernel - 1) + live; }
  int64_t patch() const { return num_taps() * channels; }  // values that a position sees
};

struct Kernels {
  // Floats of a packed weight, of a call's memory, and of a part of the weight's gradient.
  int64_t (*packed_floats)(const Shape& shape, bool to_large);
  int64_t (*workspace)(const Shape& shape);
  int64_t (*part_floats)(const Shape& shape);
  // Small rows of an image that are computed together; no more than there are.
  int64_t (*block_rows)(const Shape& shape);
  // Panels of a packed weight.
  int64_t (*num_panels)(const Shape& shape, bool to_large);
  // Packs panels first..last.
  void (*pack)(const Shape& shape, bool to_large, const float* weight, int64_t first, int64_t last,
               float* packed);
  // Rows first..last, at most a block, of one image's small map; bias may be null.
  void (*to_small)(const Shape& shape, const float* packed, const float* bias, const float* large,
                   int64_t first, int64_t last, float* memory, float* small);
  // Rows first..last of one image's large map; bias may be null.
  void (*to_large)(const Shape& shape, const float* packed, const float* bias, const float* small,
                   int64_t first, int64_t last, float* memory, float* large);
  // Adds to `part` what rows first..last, at most a block, of one image's small map and its large
  // map give of the weight's gradient.
  void (*weight_part)(const Shape& shape, const float* large, const float* small, int64_t first,
                      int64_t last, float* memory, float* part);
  // The parts' sum, added in order, as the gradient of outputs first..last, of which the taps that
  // do not count are zero.
  void (*sum_parts)(const Shape& shape, const float* parts, int64_t num_parts, int64_t first,
                    int64_t last, float* dweight);
};

}  // namespace vqvae2_fast::cpu::patch_conv
