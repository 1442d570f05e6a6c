// Pixel phase: inputs that are rounded to int8, products of integers.
#include <string.h>

#include <algorithm>

#include "pixel.h"

namespace vqvae2_fast::cpu::sampler {

// Puts ELU(x) into one of the rings for network row r, in channels from `begin` on.
void Pixel::put(const Ring& ring, int64_t layer, int64_t r, int64_t begin, const float* x,
                int64_t count) {
  const int64_t k = r / s.rows;
  void* to = ring.at(layer, r % s.rows, row_of(k), column_of(k));
  if (!ring.convolutions.integer()) {
    kernels.elu(x, static_cast<float*>(to) + begin, count);
    return;
  }
  const float* scales = ring.convolutions.input_scales + layer * ring.channels + begin;
  note(kernels.quantize_elu(x, scales, static_cast<uint8_t*>(to) + begin, count));
}

// `multiply` with int8 weights and inputs. Each thread rounds all inputs, which is less work than
// the barrier that would let them share it.
void Pixel::multiply_integers(const Matrices& m, int64_t n, Range panels, const float* a,
                              int64_t a_stride, float* c) {
  Integers& own = s.integers[thread];
  auto* inputs = reinterpret_cast<uint8_t*>(own.inputs.data());
  const int64_t stride = scaled_inputs(m.inputs), whole = m.inputs / kHalfPanel * kHalfPanel;
  // One thread counts, so that the count does not depend on their number.
  const bool counts = panels.begin == 0;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const float* row = a + r * a_stride;
    int64_t clamped = kernels.quantize(row, m.input_scale(n), inputs + r * stride, whole);
    if (counts) note(clamped);
    if (whole == m.inputs) continue;
    float rest[kHalfPanel] = {};
    memcpy(rest, row + whole, (m.inputs - whole) * sizeof(float));
    clamped =
        kernels.quantize(rest, m.input_scale(n) + whole, inputs + r * stride + whole, kHalfPanel);
    if (counts) note(clamped);
  }
  auto* sums = reinterpret_cast<const int32_t*>(own.sums.data());
  const int64_t count = panels.size() * kPanel;
  kernels.product({.a = inputs,
                   .a_stride = stride,
                   .rows = num_rows(),
                   .weights = m.weight(n, panels.begin),
                   .format = m.format,
                   .panel_stride = m.panel_stride(),
                   .panels = panels.size(),
                   .inputs = m.inputs,
                   .initial = s.zeros.data(),
                   .c = own.sums.data(),
                   .c_stride = count});
  for (int64_t r = 0; r < num_rows(); ++r) {
    kernels.dequantize(sums + r * count, m.scale(n, panels.begin),
                       m.bias(n) + panels.begin * kPanel,
                       c + r * m.outputs() + panels.begin * kPanel, count);
  }
}

// Takes over what `Kernels::quantize` returned.
void Pixel::note(int64_t clamped) {
  if (clamped > 0) s.clamped.fetch_add(clamped, std::memory_order_relaxed);
  if (clamped < 0) s.too_large = true;  // a byte cannot carry NaN or infinity to the logits
}

}  // namespace vqvae2_fast::cpu::sampler
