// Pixel phase: the causal convolutions' taps in the current row.
#include <string.h>

#include <algorithm>

#include "pixel.h"

namespace vqvae2_fast::cpu::sampler {

// Copies the inputs of a tap, [columns that it serves, network rows, channels]. In a ring, those of
// several rows are not at equal distances.
const void* Pixel::gather(const Ring& ring, int64_t layer, int64_t offset, int64_t served) {
  auto* const inputs = reinterpret_cast<uint8_t*>(s.gathered[thread].data());
  const int64_t size = ring.channels * (ring.convolutions.integer() ? 1 : sizeof(float));
  uint8_t* to = inputs;
  for (int64_t column = 0; column < served; ++column) {
    for (int64_t r = 0; r < num_rows(); ++r, to += size) {
      const int64_t k = r / s.rows;
      memcpy(to, ring.at(layer, r % s.rows, row_of(k), column_of(k) + offset + column), size);
    }
  }
  return inputs;
}

// Adds one current tap of one convolution to the sums, at the columns that it serves.
void Pixel::add_tap(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
                    int64_t tap, Range panels) {
  if (panels.size() <= 0) return;
  const int64_t outputs = convolutions.outputs(), channels = convolutions.channels;
  const int64_t offset = plan.taps.first_current + tap;
  int64_t served = Taps::columns_served(offset);
  // Nothing to do if the tap was added at an earlier column, then in every row, or if it lies left
  // of the map in every row. If it does so only in the lower rows, these add zeros.
  if (j % served != 0 || j + served <= -offset) return;
  // Only a segment of a whole row may end before.
  served = std::min(served, s.schedule.segment - offset_of(0));
  const int64_t matrix = layer * plan.taps.num_current + tap;
  const int64_t panel_stride = panel_words(convolutions.format, channels);
  const float* weights =
      convolutions.current + (matrix * convolutions.panels + panels.begin) * panel_stride;
  const int64_t place = s.place(layer, segment_row_of(0), 0, offset_of(0));
  float* c = out + place * outputs + panels.begin * kPanel;
  Product product = {.a = ring.at(layer, 0, i, j + offset),
                     .a_group_stride = channels,
                     .a_stride = ring.sample_stride(),
                     .groups = served,
                     .rows = num_rows(),
                     .weights = weights,
                     .format = convolutions.format,
                     .panel_stride = panel_stride,
                     .panels = panels.size(),
                     .inputs = channels,
                     .initial = c,
                     .initial_group_stride = outputs,
                     .initial_stride = s.schedule.segment * outputs,
                     .c = c,
                     .c_group_stride = outputs,
                     .c_stride = s.schedule.segment * outputs,
                     .once = s.reads_once && served > 1};
  if (positions > 1) {
    product.a = gather(ring, layer, offset, served);
    product.a_group_stride = product.rows * channels;
    product.a_stride = channels;
  } else if (s.rows == 1) {  // columns as rows: one tile
    std::swap(product.groups, product.rows);
    product.a_stride = channels;
    product.initial_stride = product.c_stride = outputs;
  }
  kernels.product(product);
}

// All current taps of one convolution.
void Pixel::add_taps(const Convolutions& convolutions, const Ring& ring, Buffer& out, int64_t layer,
                     Range panels) {
  if (!along_row) {
    for (int64_t tap = 0; tap < plan.taps.num_current; ++tap) {
      add_tap(convolutions, ring, out.data(), layer, tap, panels);
    }
    return;
  }
  if (panels.size() <= 0) return;
  const int64_t outputs = convolutions.outputs(), channels = convolutions.channels;
  const int64_t panel_stride = panel_words(convolutions.format, channels);
  float* const c =
      out.data() + s.place(layer, 0, 0, offset_of(0)) * outputs + panels.begin * kPanel;
  const int64_t group_stride = s.schedule.segment * outputs;
  for (int64_t tap = 0; tap < plan.taps.num_current; ++tap) {
    const int64_t matrix = layer * plan.taps.num_current + tap;
    const float* weights =
        convolutions.current + (matrix * convolutions.panels + panels.begin) * panel_stride;
    kernels.product({.a = ring.at(layer, 0, i, j + plan.taps.first_current + tap),
                     .a_group_stride = ring.sample_stride(),
                     .a_stride = channels,
                     .groups = s.rows,
                     .rows = positions,
                     .weights = weights,
                     .format = convolutions.format,
                     .panel_stride = panel_stride,
                     .panels = panels.size(),
                     .inputs = channels,
                     .initial = c,
                     .initial_group_stride = group_stride,
                     .initial_stride = outputs,
                     .c = c,
                     .c_group_stride = group_stride,
                     .c_stride = outputs});
  }
}

// A layer's outputs of network row r, in some panels, after its current taps have been added.
const float* Pixel::output_at(bool gates, int64_t layer, int64_t r, Range panels) const {
  const int64_t n = r % s.rows, k = r / s.rows;
  const Convolutions& convolutions = gates ? plan.conv2 : plan.conv1;
  const int64_t outputs = convolutions.outputs(), begin = panels.begin * kPanel;
  const Buffer& row = gates ? s.out2 : s.out1;
  const int64_t place = s.place(layer, segment_row_of(k), n, offset_of(k));
  const float* sums = row.data() + place * outputs + begin;
  if (!convolutions.integer()) return sums;
  const Integers& own = s.integers[thread];
  kernels.dequantize(reinterpret_cast<const int32_t*>(sums),
                     convolutions.scale(layer, panels.begin),
                     s.start_of(gates, layer, n, row_of(k), column_of(k), panels, own.start.data()),
                     own.row.data(), panels.size() * kPanel);
  return own.row.data();
}

void Pixel::activate_first(int64_t layer, Range panels) {
  if (panels.size() <= 0) return;
  for (int64_t r = 0; r < num_rows(); ++r) {
    put(s.ring2, layer, r, panels.begin * kPanel, output_at(false, layer, r, panels),
        panels.size() * kPanel);
  }
}

// If no layer reads its own position: all layers at once.
void Pixel::convolve_layers_at_once() {
  const int64_t last = plan.taps.num_current - 1;
  // For all layers, the taps that serve several columns come first. Then what is read at every
  // position is read again sooner, from the last-level cache if that can hold it.
  for (int64_t tap = 0; tap < last; ++tap) {
    for (int64_t layer = 0; layer < plan.num_layers; ++layer) {
      add_tap(plan.conv1, s.ring1, s.out1.data(), layer, tap,
              shares->of_convolutions[2 * layer][thread]);
      add_tap(plan.conv2, s.ring2, s.out2.data(), layer, tap,
              shares->of_convolutions[2 * layer + 1][thread]);
    }
  }
  for (int64_t layer = 0; layer < plan.num_layers; ++layer) {
    const Range panels1 = shares->of_convolutions[2 * layer][thread];
    const Range panels = shares->of_convolutions[2 * layer + 1][thread];
    if (last >= 0) {
      add_tap(plan.conv1, s.ring1, s.out1.data(), layer, last, panels1);
      add_tap(plan.conv2, s.ring2, s.out2.data(), layer, last, panels);
    }
    activate_first(layer, panels1);
    if (panels.size() <= 0) continue;
    for (int64_t r = 0; r < num_rows(); ++r) {
      kernels.gate(
          output_at(true, layer, r, panels), panels.size(), nullptr,
          s.gated.data() + (layer * num_rows() + r) * plan.channels + panels.begin * kHalfPanel,
          nullptr);
    }
  }
}

// The layers of a block run one after another, because each needs the one before at these columns.
void Pixel::convolve_in_turn(int64_t block) {
  const int64_t first = block * plan.layers_per_block, end = first + plan.layers_per_block;
  for (int64_t layer = first; layer < end; ++layer) {
    add_taps(plan.conv1, s.ring1, s.out1, layer, shares->of_conv1[0][thread]);
    activate_first(layer, shares->of_conv1[0][thread]);
    meet(Stage::kConvolutions);
    const Range panels = shares->of_conv2[0][thread];
    const int64_t begin = panels.begin * kHalfPanel;
    add_taps(plan.conv2, s.ring2, s.out2, layer, panels);
    for (int64_t r = 0; panels.size() > 0 && r < num_rows(); ++r) {
      float* y = s.y.data() + r * plan.channels + begin;
      kernels.gate(output_at(true, layer, r, panels), panels.size(), y, y, nullptr);
      if (layer + 1 == end) continue;
      put(s.ring1, layer + 1, r, begin, y, panels.size() * kHalfPanel);
    }
    if (layer + 1 == end) end_layers(block, {begin, panels.end * kHalfPanel});
    meet(Stage::kConvolutions);
  }
}

}  // namespace vqvae2_fast::cpu::sampler
