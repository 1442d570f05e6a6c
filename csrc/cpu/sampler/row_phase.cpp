// Row phase: the part of row i's outputs that comes from rows < i, for all layers and columns at
// once.
//
// Every layer's inputs of rows above are final, so all (layer, convolution, panel) products are
// independent: a thread takes the next one whenever it is free.
#include <string.h>

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

void stem_row(State& state, int64_t sample, int64_t i) {
  const Plan& plan = state.plan;
  const int64_t width = plan.width, channels = plan.channels;
  const int64_t* codes = state.request.codes + sample * plan.height * width;
  for (int64_t j = 0; j < width; ++j) {
    float* sum = state.stem_row.data() + (sample * width + j) * channels;
    memcpy(sum, plan.stem.bias + (i * width + j) * channels, channels * sizeof(float));
    for (size_t t = 0; t < plan.stem.above_offsets.size(); ++t) {
      const int64_t row = i + plan.stem.above_offsets[t].first;
      const int64_t column = j + plan.stem.above_offsets[t].second;
      if (row < 0 || column < 0 || column >= width) continue;
      const int64_t entry = static_cast<int64_t>(t) * plan.num_embeddings;
      state.kernels.add(sum, plan.stem.above + (entry + codes[row * width + column]) * channels,
                        sum, channels);
    }
  }
}

// The condition's part of one panel of a layer's gates, for the coarse row above row i.
void condition_panel(State& state, int64_t layer, int64_t panel, int64_t i) {
  const Condition& condition = state.plan.condition;
  const Matrices& matrices = state.plan.layer_condition;
  const int64_t width = condition.maps.back().width, height = condition.maps.back().height;
  const int64_t outputs = matrices.outputs();
  state.kernels.product(
      {.a = state.features.data() + i / condition.down * width * condition.channels,
       .a_group_stride = height * width * condition.channels,
       .a_stride = condition.channels,
       .groups = state.batch,
       .rows = width,
       .weights = matrices.weight(layer, panel),
       .format = matrices.format,
       .panels = 1,
       .inputs = matrices.inputs,
       .initial = state.zeros.data(),
       .c = state.of_condition.data() + layer * state.batch * width * outputs + panel * kPanel,
       .c_group_stride = width * outputs,
       .c_stride = outputs,
       .scales = matrices.scale(layer, panel)});
}

// Where the sums of one panel begin: bias, class and condition, or zero if they are integers.
void begin_panel(State& state, int64_t layer, int64_t panel, bool gates, float* out) {
  const Plan& plan = state.plan;
  const int64_t outputs = (gates ? plan.conv2 : plan.conv1).outputs(), width = plan.width;
  const bool integer = plan.conv1.integer();
  for (int64_t n = 0; n < state.rows; ++n) {
    for (int64_t j = 0; j < width; ++j) {
      float start[kPanel] = {};
      const float* from = start;
      if (!integer) from = state.start_of(gates, layer, n, j, {panel, panel + 1}, start);
      memcpy(out + (n * width + j) * outputs, from, sizeof(start));
    }
  }
}

void convolution_panel(State& state, int64_t layer, int64_t panel, bool gates, int64_t i) {
  const Plan& plan = state.plan;
  const Taps& taps = plan.taps;
  const Convolutions& convolutions = gates ? plan.conv2 : plan.conv1;
  const Ring& ring = gates ? state.ring2 : state.ring1;
  const int64_t outputs = convolutions.outputs(), width = plan.width;
  float* out = (gates ? state.out2 : state.out1).data() + layer * state.rows * width * outputs +
               panel * kPanel;
  if (gates && !plan.condition.maps.empty() && i % plan.condition.down == 0) {
    condition_panel(state, layer, panel, i);
  }
  begin_panel(state, layer, panel, gates, out);
  const int64_t row_inputs = taps.num_columns * convolutions.channels;
  const int64_t row_words = panel_words(convolutions.format, row_inputs);
  const float* weights =
      convolutions.above + (layer * convolutions.panels + panel) * taps.rows_above * row_words;
  for (int64_t r = 0; r < taps.rows_above; ++r, weights += row_words) {
    const int64_t row = i - taps.rows_above + r;
    if (row < 0) continue;  // above the map: zeros
    state.kernels.product({.a = ring.at(layer, 0, row, taps.first_column),
                           .a_group_stride = ring.sample_stride(),
                           .a_stride = ring.channels,
                           .groups = state.rows,
                           .rows = width,
                           .weights = weights,
                           .format = convolutions.format,
                           .panels = 1,
                           .inputs = row_inputs,
                           .initial = out,
                           .initial_group_stride = width * outputs,
                           .initial_stride = outputs,
                           .c = out,
                           .c_group_stride = width * outputs,
                           .c_stride = outputs,
                           .scales = convolutions.scale(layer, panel)});
  }
}

}  // namespace

void row_phase(State& state, int64_t i) {
  const Plan& plan = state.plan;
  const int64_t panels1 = plan.conv1.panels, panels = panels1 + plan.conv2.panels;
  const int64_t num_panels = plan.num_layers * panels;
  state.team.share(num_panels + state.batch, [&](int64_t item) {
    if (item >= num_panels) {
      stem_row(state, item - num_panels, i);
      return;
    }
    const int64_t layer = item / panels, panel = item % panels;
    const bool gates = panel >= panels1;
    convolution_panel(state, layer, gates ? panel - panels1 : panel, gates, i);
  });
}

}  // namespace vqvae2_fast::cpu::sampler
