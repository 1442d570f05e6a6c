// The kernels of pointwise.h: include inside a level file after its simd header.
#pragma once

#include <math.h>

#include "gated_layer-inl.h"
#include "pointwise.h"
#include "product-inl.h"

namespace vqvae2_fast::cpu::pointwise {
namespace {

using products::kPanel;
using products::panels_of;

constexpr int kLanes = Vec::kLanes;
// Rows of a block: whole tiles at every SIMD level. 64 of their inputs take a quarter of a
// first-level cache.
constexpr int64_t kBlock = 48;
static_assert(kBlock % Vec::kTileRows == 0, "blocks are cut into whole tiles");

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
  return kBlock * (inputs + panels_of(inputs) * kPanel) + panels_of(outputs) * kPanel;
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
  if (layer.activation.is_identity()) return rows;
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
    products::multiply<false>({.rows = rows,
                               .columns = outputs,
                               .depth = inputs,
                               .a = a,
                               .a_stride = inputs,
                               .panels = packed,
                               .panel_stride = inputs * kPanel,
                               .initial = initial,
                               .c = y + row * outputs,
                               .c_stride = outputs});
  }
}

inline void backward(const PointwiseLayer& layer, const float* packed, const float* dy,
                     const float* x, int64_t first, int64_t last, float* memory, float* part,
                     float* dx) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  const int64_t width = panels_of(inputs) * kPanel;
  const int64_t used = (inputs + kLanes - 1) / kLanes * kLanes;  // whole vectors of a panel
  float* const panels = memory + kBlock * inputs;
  for (int64_t i = 0; i < part_floats(outputs, inputs); ++i) part[i] = 0;
  for (int64_t row = first; row < last; row += kBlock) {
    const int64_t rows = last - row < kBlock ? last - row : kBlock;
    const float* above = dy + row * outputs;
    products::pack_panels(activated(layer, x, row, row + rows, memory), rows, inputs, panels);
    products::multiply<true>({.rows = outputs,
                              .columns = used,
                              .depth = rows,
                              .a = above,
                              .a_stride = outputs,
                              .panels = panels,
                              .panel_stride = rows * kPanel,
                              .initial = part,
                              .initial_stride = width,
                              .c = part,
                              .c_stride = width});
    float* const target = dx + row * inputs;
    products::multiply<false>({.rows = rows,
                               .columns = inputs,
                               .depth = outputs,
                               .a = above,
                               .a_stride = outputs,
                               .panels = packed,
                               .panel_stride = outputs * kPanel,
                               .c = target,
                               .c_stride = inputs});
    if (!layer.activation.is_identity()) {
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

constexpr PointwiseKernels kKernels = {.block_rows = kBlock,
                                       .packed_floats = packed_floats,
                                       .workspace = workspace,
                                       .part_floats = part_floats,
                                       .pack = pack,
                                       .forward = forward,
                                       .backward = backward,
                                       .weight_gradient = weight_gradient};

}  // namespace
}  // namespace vqvae2_fast::cpu::pointwise
