// Row phase: what comes from the rows above, for a segment of each row that is being drawn, in all
// layers at once.
//
// Every layer's inputs there are final, so all (layer, convolution, panel) products are
// independent: a thread takes the next one whenever it is free.
#include <string.h>

#include <algorithm>

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// The rows that draw in a segment, and their columns.
struct Segment {
  const Schedule& schedule;
  int64_t begin, first_row, end_row;

  Segment(const Schedule& schedule_, int64_t begin_)
      : schedule(schedule_),
        begin(begin_),
        first_row(schedule_.first_row(begin_)),
        end_row(schedule_.end_row_of_segment(begin_)) {}

  Range columns(int64_t row) const {
    const int64_t column = schedule.column(row, begin);
    return {std::max<int64_t>(column, 0), std::min(column + schedule.segment, schedule.width)};
  }
  bool is_whole(int64_t row) const { return columns(row).size() == schedule.segment; }
  // The offset of a column in the segment.
  int64_t offset(int64_t row, int64_t column) const { return column - schedule.column(row, begin); }
};

void stem_row(State& state, const Segment& segment, int64_t sample, int64_t row) {
  const Plan& plan = state.plan;
  const int64_t width = plan.width, channels = plan.channels;
  const int64_t* codes = state.request.codes + sample * plan.height * width;
  const Range columns = segment.columns(row);
  for (int64_t j = columns.begin; j < columns.end; ++j) {
    float* sum = state.stem_at(segment.offset(row, j), row - segment.first_row, sample);
    memcpy(sum, plan.stem.bias + (row * width + j) * channels, channels * sizeof(float));
    for (size_t t = 0; t < plan.stem.above_offsets.size(); ++t) {
      const int64_t above = row + plan.stem.above_offsets[t].first;
      const int64_t column = j + plan.stem.above_offsets[t].second;
      if (above < 0 || column < 0 || column >= width) continue;
      const int64_t entry = static_cast<int64_t>(t) * plan.num_embeddings;
      state.kernels.add(sum, plan.stem.above + (entry + codes[above * width + column]) * channels,
                        sum, channels);
    }
  }
}

// The condition's part of one panel of a layer's gates, for the coarse row above a row.
void condition_panel(State& state, int64_t layer, int64_t panel, int64_t row) {
  const Condition& condition = state.plan.condition;
  const Matrices& matrices = state.plan.layer_condition;
  const int64_t width = condition.maps.back().width, height = condition.maps.back().height;
  const int64_t outputs = matrices.outputs();
  state.kernels.product(
      {.a = state.features.data() + row / condition.down * width * condition.channels,
       .a_group_stride = height * width * condition.channels,
       .a_stride = condition.channels,
       .groups = state.batch,
       .rows = width,
       .weights = matrices.weight(layer, panel),
       .format = matrices.format,
       .panels = 1,
       .inputs = matrices.inputs,
       .initial = state.zeros.data(),
       .c = state.condition_row(layer, 0, row) + panel * kPanel,
       .c_group_stride = width * outputs,
       .c_stride = outputs});
}

// One panel of a convolution's outputs in a segment.
class ConvolutionPanel {
 public:
  ConvolutionPanel(State& state, const Segment& segment, int64_t layer, int64_t panel, bool gates)
      : state_(state),
        plan_(state.plan),
        segment_(segment),
        convolutions_(gates ? plan_.conv2 : plan_.conv1),
        ring_(gates ? state.ring2 : state.ring1),
        out_((gates ? state.out2 : state.out1).data() + panel * kPanel),
        layer_(layer),
        panel_(panel),
        gates_(gates) {}

  void compute() {
    const Taps& taps = plan_.taps;
    for (int64_t row = segment_.first_row; row < segment_.end_row; ++row) write_start(row);
    const int64_t inputs = taps.num_columns * convolutions_.channels;
    const int64_t words = panel_words(convolutions_.format, inputs);
    const float* weights =
        convolutions_.above + (layer_ * convolutions_.panels + panel_) * taps.rows_above * words;
    for (int64_t above = taps.rows_above; above > 0; --above, weights += words) {
      for (int64_t row = std::max(segment_.first_row, above); row < segment_.end_row;) {
        int64_t end = row + 1;  // rows with all columns of the segment are done in one product
        if (segment_.is_whole(row)) {
          while (end < segment_.end_row && segment_.is_whole(end)) ++end;
        }
        multiply(row, end, above, weights, inputs);
        row = end;
      }
    }
  }

 private:
  float* at(int64_t row, int64_t n, int64_t column) const {
    const int64_t place =
        state_.place(layer_, row - segment_.first_row, n, segment_.offset(row, column));
    return out_ + place * convolutions_.outputs();
  }

  // Where the sums begin: bias, class and condition, or zero if they are integers.
  void write_start(int64_t row) {
    const Range columns = segment_.columns(row);
    const bool first = columns.begin == 0, integer = convolutions_.integer();
    if (gates_ && first && !plan_.condition.maps.empty() && row % plan_.condition.down == 0) {
      condition_panel(state_, layer_, panel_, row);
    }
    for (int64_t n = 0; n < state_.rows; ++n) {
      float* out = at(row, n, columns.begin);
      for (int64_t j = columns.begin; j < columns.end; ++j, out += convolutions_.outputs()) {
        float start[kPanel] = {};
        const float* from = start;
        if (!integer) {
          from = state_.start_of(gates_, layer_, n, row, j, {panel_, panel_ + 1}, start);
        }
        memcpy(out, from, sizeof(start));
      }
    }
  }

  static constexpr int64_t kMostGroups = 64;  // of a product

  // Adds the taps that are `above` rows above rows [row, end).
  void multiply(int64_t row, int64_t end, int64_t above, const float* weights, int64_t inputs) {
    const int64_t outputs = convolutions_.outputs(), rows = state_.rows;
    const int64_t group_stride = state_.schedule.segment * outputs;
    float* const first = at(row, 0, segment_.columns(row).begin);
    const int64_t groups = (end - row) * rows;
    const void* starts[kMostGroups];
    for (int64_t done = 0; done < groups; done += kMostGroups) {
      const int64_t count = std::min(groups - done, kMostGroups);
      for (int64_t g = 0; g < count; ++g) {
        const int64_t of = row + (done + g) / rows, n = (done + g) % rows;
        const int64_t column = segment_.columns(of).begin + plan_.taps.first_column;
        starts[g] = ring_.at(layer_, n, of - above, column);
      }
      float* const c = first + done * group_stride;
      state_.kernels.product({.a_stride = ring_.channels,
                              .a_of_groups = starts,
                              .groups = count,
                              .rows = segment_.columns(row).size(),
                              .weights = weights,
                              .format = convolutions_.format,
                              .panels = 1,
                              .inputs = inputs,
                              .initial = c,
                              .initial_group_stride = group_stride,
                              .initial_stride = outputs,
                              .c = c,
                              .c_group_stride = group_stride,
                              .c_stride = outputs});
    }
  }

  State& state_;
  const Plan& plan_;
  const Segment& segment_;
  const Convolutions& convolutions_;
  const Ring& ring_;
  float* const out_;
  const int64_t layer_, panel_;
  const bool gates_;
};

}  // namespace

void row_phase(State& state, int64_t time) {
  const Plan& plan = state.plan;
  const Segment segment(state.schedule, time);
  const int64_t panels1 = plan.conv1.panels, panels = panels1 + plan.conv2.panels;
  const int64_t num_panels = plan.num_layers * panels;
  const int64_t num_stems = (segment.end_row - segment.first_row) * state.batch;
  state.team.share(num_panels + num_stems, [&](int64_t item) {
    if (item >= num_panels) {
      const int64_t stem = item - num_panels;
      stem_row(state, segment, stem % state.batch, segment.first_row + stem / state.batch);
      return;
    }
    const int64_t layer = item / panels, panel = item % panels;
    const bool gates = panel >= panels1;
    ConvolutionPanel(state, segment, layer, gates ? panel - panels1 : panel, gates).compute();
  });
}

}  // namespace vqvae2_fast::cpu::sampler
