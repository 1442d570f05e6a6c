// Convolutions by Winograd's method (https://arxiv.org/abs/1509.09308): output tiles of 4x4 from
// (kernel + 3)^2 products instead of 16 kernel^2, for square kernels of 2, 3 and 5.
//
// Sizes: B images of H x W positions, T tiles, P = (kernel + 3)^2 points of a tile, C channels, all
// float32. Maps have contiguous channels; points of tiles are [P, T, C], in rows or in panels. The
// products over channels between them are the caller's.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu::winograd {

constexpr int64_t kTile = 4;
// Channels of the weights that are transformed together, whatever the level's vectors.
constexpr int64_t kChannels = 16;

// A map [B, H, W, C] cut into tiles; strides in elements.
struct Map {
  int64_t batch, height, width, channels;
  int64_t stride_batch, stride_row, stride_column;
  int64_t tile_rows = 0, tile_columns = 0;  // of one image
};

// Some rows and channels of a map's images.
struct MapPart {
  int64_t first_row, last_row, first_channel, last_channel;
};

// [P, rows, columns]: a point's matrix in rows, or in panels as the right side of a product.
struct Points {
  int64_t stride_point, stride_row;
  int64_t panel, stride_panel = 0;          // columns of a panel: all of them where there are none
  int64_t first_row = 0, first_column = 0;  // of the whole: what the pointer points to

  // Of a pointer to what stands at (row, column) of the whole.
  Points within(int64_t row, int64_t column) const {
    Points part = *this;
    part.first_row += row;
    part.first_column += column;
    return part;
  }
  int64_t at(int64_t row, int64_t column) const {
    column -= first_column;
    return (row - first_row) * stride_row + column / panel * stride_panel + column % panel;
  }
};

// A weight [C_out, C_in, kernel, kernel], contiguous, and which part of it counts.
struct Weight {
  const float* v = nullptr;
  const float* g = nullptr;  // [C_out], or null for a weight that is not normalised
  int64_t outputs = 0, inputs = 0;
  int64_t live = 0;  // taps of the last kernel row that count
};

// One set for each kernel size.
struct Transforms {
  // Input points of tiles first..last; a tile begins `top` rows above and `left` columns before.
  void (*input)(const Map& map, const float* x, int64_t top, int64_t left, int64_t first,
                int64_t last, const Points& points, float* v);
  // Output tiles first..last from their points, plus bias (null for none).
  void (*output)(const Map& map, const float* m, const Points& points, const float* bias,
                 int64_t first, int64_t last, float* y);
  // The adjoint of `output`: points of the gradient.
  void (*output_adjoint)(const Map& map, const float* dy, int64_t first, int64_t last,
                         const Points& points, float* dm);
  // The adjoint of `input` for tiles first..last: what falls into `part` of their image is added to
  // dx, tile after tile, because tiles overlap.
  void (*input_adjoint)(const Map& map, const float* dv, const Points& points, int64_t top,
                        int64_t left, int64_t first, int64_t last, const MapPart& part, float* dx);
  // Points [P, C_out, C_in], or [P, C_in, C_out], in panels, of outputs first..last; first is a
  // multiple of kChannels, and so is last, unless it is C_out.
  void (*weight)(const Weight& weight, bool inputs_first, int64_t first, int64_t last,
                 const Points& points, float* u);
  // Gradients of v and (if normalised) g from that of the points, for the same outputs.
  void (*weight_adjoint)(const Weight& weight, bool inputs_first, const float* du,
                         const Points& points, int64_t first, int64_t last, float* dv, float* dg);
};

}  // namespace vqvae2_fast::cpu::winograd
