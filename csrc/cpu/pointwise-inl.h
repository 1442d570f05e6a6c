// The kernels of pointwise.h: include inside a level file after its simd header.
#pragma once

#include <math.h>

#include "gated_layer-inl.h"
#include "pointwise.h"

namespace vqvae2_fast::cpu::pointwise {
namespace {

constexpr int kLanes = Vec::kLanes, kTileVecs = 2, kTileRows = Vec::kTileRows;
// Columns of a panel: what a tile covers.
constexpr int64_t kPanel = kTileVecs * kLanes;
// Rows of a block: whole tiles at every level; 64 inputs of them take a quarter of a first cache.
constexpr int64_t kBlock = 48;
static_assert(kBlock % kTileRows == 0, "blocks are cut into whole tiles");

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// c = initial + a b for ROWS rows and at most VECS vectors of columns. The panel b is
// [depth, kPanel]. a is [rows, depth] with `stride` between rows, or ACROSS [depth, rows].
template <bool ACROSS, int ROWS, int VECS>
inline void tile(const float* a, int64_t stride, const float* b, int64_t depth,
                 const float* initial, int64_t initial_stride, float* c, int64_t c_stride,
                 int64_t columns) {
  Vec sums[ROWS][VECS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) sums[r][v] = Vec::broadcast(0.0f);
  }
  const int64_t row_stride = ACROSS ? 1 : stride, step = ACROSS ? stride : 1;
  // A pointer for every third row, as in the sampler's product.
  constexpr int kThirds = (ROWS + 2) / 3;
  const float* thirds[kThirds];
#pragma GCC unroll 4
  for (int i = 0; i < kThirds; ++i) {
    thirds[i] = a + 3 * i * row_stride;
    asm("" : "+r"(thirds[i]));
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec right[VECS];
    for (int v = 0; v < VECS; ++v) right[v] = Vec::load(b + d * kPanel + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Vec left = Vec::broadcast(thirds[r / 3][r % 3 * row_stride]);
      for (int v = 0; v < VECS; ++v) sums[r][v] = sums[r][v].add_product(left, right[v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kThirds; ++i) thirds[i] += step;
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) {
      const int64_t at = v * kLanes;
      const Vec result = Vec::load(initial + r * initial_stride + at) + sums[r][v];
      if (at + kLanes <= columns) {
        result.store(c + r * c_stride + at);
      } else {
        float lanes[kLanes];
        result.store(lanes);
        for (int64_t i = at; i < columns; ++i) c[r * c_stride + i] = lanes[i - at];
      }
    }
  }
}

template <bool ACROSS, int ROWS>
inline void tile_of(int64_t rows, const float* a, int64_t stride, const float* b, int64_t depth,
                    const float* initial, int64_t initial_stride, float* c, int64_t c_stride,
                    int64_t columns) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      tile_of<ACROSS, ROWS - 1>(rows, a, stride, b, depth, initial, initial_stride, c, c_stride,
                                columns);
      return;
    }
  }
  if (columns > kLanes) {
    tile<ACROSS, ROWS, kTileVecs>(a, stride, b, depth, initial, initial_stride, c, c_stride,
                                  columns);
  } else {
    tile<ACROSS, ROWS, 1>(a, stride, b, depth, initial, initial_stride, c, c_stride, columns);
  }
}

// c [rows, columns] = initial + a times the panels of b. `initial` is read in whole panels.
template <bool ACROSS>
inline void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t stride,
                    const float* b, const float* initial, int64_t initial_stride, float* c,
                    int64_t c_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t tile_rows = (rows + tiles - 1) / tiles;  // tiles of nearly one size
  for (int64_t j = 0; j < columns; j += kPanel) {
    const float* panel = b + j * depth;
    for (int64_t i = 0; i < rows; i += tile_rows) {
      tile_of<ACROSS, kTileRows>(rows - i < tile_rows ? rows - i : tile_rows,
                                 a + i * (ACROSS ? 1 : stride), stride, panel, depth,
                                 initial + i * initial_stride + j, initial_stride,
                                 c + i * c_stride + j, c_stride, columns - j);
    }
  }
}

// matrix [depth, columns] -> panels [columns / kPanel, depth, kPanel], zeros past the columns.
inline void pack_panels(const float* matrix, int64_t depth, int64_t columns, float* panels) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    const int64_t count = columns - j < kPanel ? columns - j : kPanel;
    for (int64_t d = 0; d < depth; ++d, panels += kPanel) {
      const float* source = matrix + d * columns + j;
      if (count == kPanel) {
        for (int64_t i = 0; i < kPanel; ++i) panels[i] = source[i];
      } else {
        for (int64_t i = 0; i < kPanel; ++i) panels[i] = i < count ? source[i] : 0.0f;
      }
    }
  }
}

inline double dot(const float* a, const float* b, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; i += 32) {
    float part = 0;  // of 32 products at most
    for (int64_t j = i; j < count && j < i + 32; ++j) part += a[j] * b[j];
    total += static_cast<double>(part);
  }
  return total;
}

inline float scale_of(const PointwiseLayer& layer, int64_t output) {
  if (!layer.g) return 1.0f;
  const float* v = layer.v + output * layer.inputs;
  return static_cast<float>(static_cast<double>(layer.g[output]) / sqrt(dot(v, v, layer.inputs)));
}

inline int64_t packed_floats(int64_t outputs, int64_t inputs) {
  const int64_t forward = panels_of(outputs) * inputs, backward = panels_of(inputs) * outputs;
  return kPanel * (forward > backward ? forward : backward);
}

inline int64_t workspace(int64_t outputs, int64_t inputs) {
  const int64_t most = inputs > outputs ? inputs : outputs;
  return kBlock * (inputs + panels_of(inputs) * kPanel) + panels_of(most) * kPanel;
}

inline int64_t part_floats(int64_t outputs, int64_t inputs) {
  return outputs * panels_of(inputs) * kPanel;
}

inline void pack(const PointwiseLayer& layer, bool backward, float* packed) {
  const int64_t depth = backward ? layer.outputs : layer.inputs;
  const int64_t columns = backward ? layer.inputs : layer.outputs;
  for (int64_t i = 0; i < panels_of(columns) * kPanel * depth; ++i) packed[i] = 0;
  for (int64_t o = 0; o < layer.outputs; ++o) {
    const float scale = scale_of(layer, o);
    const float* v = layer.v + o * layer.inputs;
    if (backward) {
      for (int64_t i = 0; i < layer.inputs; ++i) {
        packed[(i / kPanel * depth + o) * kPanel + i % kPanel] = v[i] * scale;
      }
    } else {
      float* const panel = packed + o / kPanel * depth * kPanel + o % kPanel;
      for (int64_t i = 0; i < layer.inputs; ++i) panel[i * kPanel] = v[i] * scale;
    }
  }
}

// Rows first..last as they enter the product.
inline const float* activated(const PointwiseLayer& layer, const float* x, int64_t first,
                              int64_t last, float* memory) {
  const float* rows = x + first * layer.inputs;
  if (!layer.activation.elu && layer.activation.dropout_p == 0) return rows;
  gated_layer::activate(layer.activation, rows, layer.inputs, first, last, memory);
  return memory;
}

inline void forward(const PointwiseLayer& layer, const float* packed, const float* bias,
                    const float* x, int64_t first, int64_t last, float* memory, float* y) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  float* const initial = memory + kBlock * inputs;
  for (int64_t o = 0; o < panels_of(outputs) * kPanel; ++o) {
    initial[o] = bias && o < outputs ? bias[o] : 0.0f;
  }
  for (int64_t row = first; row < last; row += kBlock) {
    const int64_t rows = last - row < kBlock ? last - row : kBlock;
    const float* a = activated(layer, x, row, row + rows, memory);
    product<false>(rows, outputs, inputs, a, inputs, packed, initial, 0, y + row * outputs,
                   outputs);
  }
}

inline void backward(const PointwiseLayer& layer, const float* packed, const float* dy,
                     const float* x, int64_t first, int64_t last, float* memory, float* part,
                     float* dx) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  const int64_t width = panels_of(inputs) * kPanel;
  const int64_t used = (inputs + kLanes - 1) / kLanes * kLanes;  // whole vectors of a panel
  float* const panels = memory + kBlock * inputs;
  float* const zeros = panels + kBlock * width;
  for (int64_t i = 0; i < width; ++i) zeros[i] = 0;
  for (int64_t i = 0; i < part_floats(outputs, inputs); ++i) part[i] = 0;
  for (int64_t row = first; row < last; row += kBlock) {
    const int64_t rows = last - row < kBlock ? last - row : kBlock;
    const float* above = dy + row * outputs;
    pack_panels(activated(layer, x, row, row + rows, memory), rows, inputs, panels);
    product<true>(outputs, used, rows, above, outputs, panels, part, width, part, width);
    float* const target = dx + row * inputs;
    product<false>(rows, inputs, outputs, above, outputs, packed, zeros, 0, target, inputs);
    if (layer.activation.elu || layer.activation.dropout_p > 0) {
      gated_layer::activate_backward(layer.activation, x + row * inputs, target, inputs, row,
                                     row + rows, target);
    }
  }
}

inline void weight_gradient(const PointwiseLayer& layer, const float* parts, int64_t num_parts,
                            int64_t first, int64_t last, float* dv, float* dg) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  const int64_t width = panels_of(inputs) * kPanel, size = part_floats(outputs, inputs);
  for (int64_t o = first; o < last; ++o) {
    float* const dw = dv + o * inputs;
    for (int64_t i = 0; i < inputs; ++i) dw[i] = parts[o * width + i];
    for (int64_t p = 1; p < num_parts; ++p) {
      const float* part = parts + p * size;
      for (int64_t i = 0; i < inputs; ++i) dw[i] += part[o * width + i];
    }
    if (!layer.g) continue;
    // w = g v / |v|: dg = dw.v / |v|, dv = g / |v| (dw - v (dw.v) / |v|^2).
    const float* v = layer.v + o * inputs;
    const double product = dot(dw, v, inputs), norm = sqrt(dot(v, v, inputs));
    dg[o] = static_cast<float>(product / norm);
    const float scale = static_cast<float>(static_cast<double>(layer.g[o]) / norm);
    const float along = static_cast<float>(product / (norm * norm));
    for (int64_t i = 0; i < inputs; ++i) dw[i] = scale * (dw[i] - along * v[i]);
  }
}

constexpr PointwiseKernels kKernels = {kBlock, packed_floats, workspace, part_floats,
                                       pack,   forward,       backward,  weight_gradient};

}  // namespace
}  // namespace vqvae2_fast::cpu::pointwise
