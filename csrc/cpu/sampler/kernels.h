// The sampler's kernels of one SIMD level, as a table. They know vectors and strides, not the
// network: row_phase.cpp, pixel_phase.cpp and condition.cpp call them.
//
// Widths: outputs come in panels of kPanel columns at every level, so weights are packed once for
// all levels. Every output sums its inputs in one order (product-inl.h), whatever the tile, the
// level and the thread: results are equal bit for bit. All strides are in elements.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu::sampler {

constexpr int64_t kPanel = 32;
// A panel of gates holds kHalfPanel values, then the gates to which the sigmoid is applied.
constexpr int64_t kHalfPanel = kPanel / 2;

// To whole panels, unless told otherwise.
constexpr int64_t rounded_up(int64_t value, int64_t multiple = kPanel) {
  return (value + multiple - 1) / multiple * multiple;
}

// How the weights of a panel are stored, in words of 4 bytes.
enum class Format : int64_t {
  kFloat32,  // [inputs, kPanel]
  // int8 weights for int8 inputs, summed in int32: kPanel words of -128 * (the column's sum of
  // weights), then [inputs / 4, kPanel], a word having four inputs of its column.
  kQuads,
};

constexpr int64_t kQuad = 4;

// Inputs whose zero weights are stored too.
constexpr int64_t stored_inputs(Format format, int64_t inputs) {
  return format == Format::kQuads ? rounded_up(inputs, kQuad) : inputs;
}

// Words of a panel.
constexpr int64_t panel_words(Format format, int64_t inputs) {
  if (format == Format::kFloat32) return inputs * kPanel;
  return kPanel + stored_inputs(format, inputs) / kQuad * kPanel;
}

// c[g, r, :] = initial[g, r, :] + a[g, r, :] times weights, for groups x rows rows. With kQuads, a
// is bytes with 128 added, and initial and c are int32; otherwise all are float32.
struct Product {
  // a + g * a_group_stride + r * a_stride: `inputs` values, with kQuads stored_inputs.
  const void* a = nullptr;
  int64_t a_group_stride = 0, a_stride = 0;
  // Where each group begins, in place of a + g * a_group_stride; or null.
  const void* const* a_of_groups = nullptr;
  int64_t groups = 1, rows = 1;
  // Packed: panel p at weights + p * panel_stride.
  const float* weights = nullptr;
  Format format = Format::kFloat32;
  int64_t panel_stride = 0;
  int64_t panels = 0, inputs = 0;
  // May be c itself. Strides of 0 repeat one row (a bias).
  const float* initial = nullptr;
  int64_t initial_group_stride = 0, initial_stride = 0;
  // c + g * c_group_stride + r * c_stride: panels * kPanel values.
  float* c = nullptr;
  int64_t c_group_stride = 0, c_stride = 0;
  // The weights are not read again soon, so they should not push others out of the caches.
  bool once = false;

  template <typename Input>
  const Input* of_group(int64_t g) const {
    if (a_of_groups) return static_cast<const Input*>(a_of_groups[g]);
    return static_cast<const Input*>(a) + g * a_group_stride;
  }
};

struct AttentionHead {
  const float* query;   // [dim], scaled
  const float* keys;    // [positions / kPanel rounded up, dim, kPanel]
  const float* values;  // [positions, value_width]
  int64_t positions;    // at least 1
  int64_t dim;
  int64_t value_width;     // dim rounded up to kHalfPanel
  float* scores;           // scratch, positions rounded up to kPanel
  float* out;              // [value_width]
  const float* next_keys;  // prefetched: what the thread reads after this
};

struct Kernels {
  void (*product)(const Product& product);

  // y[i] = ELU(x[i]), or NaN for x[i] beyond kSamplingBound, so that no sum of what it is
  // multiplied with can overflow unseen; count is a multiple of kHalfPanel. x may be y. Likewise
  // below.
  void (*elu)(const float* x, float* y, int64_t count);

  // out = residual + value * sigmoid(gate), kHalfPanel values per panel; activated = ELU(out).
  // residual and activated may be null.
  void (*gate)(const float* gates, int64_t panels, const float* residual, float* out,
               float* activated);

  // q[i] = 128 + clamp(round(x[i] / scales[i]), -127, 127), ties to even, of x or of ELU(x); count
  // is a multiple of kHalfPanel. Returns how many were clamped, or -1 if one was NaN or infinite.
  int64_t (*quantize)(const float* x, const float* scales, uint8_t* q, int64_t count);
  int64_t (*quantize_elu)(const float* x, const float* scales, uint8_t* q, int64_t count);

  // y[i] = sums[i] * scales[i] + initial[i], rounded after each step.
  void (*dequantize)(const int32_t* sums, const float* scales, const float* initial, float* y,
                     int64_t count);

  void (*add)(const float* x, const float* y, float* out, int64_t count);

  void (*attend)(const AttentionHead& head);

  // y[i] = exp(x[i] - shift), x at most shift; count is a multiple of kHalfPanel.
  void (*exp_shifted)(const float* x, float shift, float* y, int64_t count);

  // The largest of x; count is a multiple of kHalfPanel.
  float (*largest)(const float* x, int64_t count);

  // frequencies[i] = floor(x[i] * (total / sum of x)) + 1, in float64; returns their sum. x is at
  // least 0, and the sum is kept in 8 lanes by i mod 8; count is a multiple of 8.
  uint32_t (*frequencies)(const float* x, double total, uint32_t* frequencies, int64_t count);
};

}  // namespace vqvae2_fast::cpu::sampler
