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
constexpr int64_t kQuarterPanel = kPanel / 4;
// Inputs of a block (product-inl.h): 128 * kPanel floats are 16 KiB, half of a 32 KiB first cache;
// the rest is for rows of a.
constexpr int64_t kInputBlock = 128;

// c[g, r, :] = initial[g, r, :] + a[g, r, :] times weights, for groups x rows rows.
struct Product {
  // a + g * a_group_stride + r * a_stride: `inputs` values.
  const float* a = nullptr;
  int64_t a_group_stride = 0, a_stride = 0;
  int64_t groups = 1, rows = 1;
  // Packed: panel p at weights + p * panel_stride, [inputs, words]. words = kPanel is float32;
  // words = kHalfPanel is bfloat16: word i holds column i in its low half, i + kHalfPanel in its
  // high half; words = kQuarterPanel is int8, column after column.
  const float* weights = nullptr;
  int64_t words = kPanel, panel_stride = 0;
  int64_t panels = 0, inputs = 0;
  // May be c itself. Strides of 0 repeat one row (a bias).
  const float* initial = nullptr;
  int64_t initial_group_stride = 0, initial_stride = 0;
  // c + g * c_group_stride + r * c_stride: panels * kPanel values.
  float* c = nullptr;
  int64_t c_group_stride = 0, c_stride = 0;
  // With int8 weights, [panels * kPanel]: each block's sum is multiplied by its column's scale
  // before it is added.
  const float* scales = nullptr;
  // The weights are not read again soon, so they should not push others out of the caches.
  bool once = false;
};

struct AttentionHead {
  const float* query;   // [dim], scaled
  const float* keys;    // [positions / kPanel rounded up, dim, kPanel]
  const float* values;  // [positions, value_stride]
  int64_t positions;    // at least 1
  int64_t dim;
  int64_t value_stride;    // dim rounded up to kHalfPanel
  float* scores;           // scratch, positions rounded up to kPanel
  float* out;              // [value_stride]
  const float* next_keys;  // prefetched: what the thread reads after this
};

struct Kernels {
  void (*product)(const Product& product);

  // y[i] = ELU(x[i]); count is a multiple of kHalfPanel. x may be y.
  void (*elu)(const float* x, float* y, int64_t count);

  // out = residual + value * sigmoid(gate), kHalfPanel values per panel; activated = ELU(out).
  // residual and activated may be null.
  void (*gate)(const float* gates, int64_t panels, const float* residual, float* out,
               float* activated);

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
