#include "state.h"

#include <string.h>

#include <algorithm>

#include "../kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Whether prefetching a line to be read once leaves the others in the last-level cache, at no cost.
// It does on AMD Zen 4, where it saves 7 % of a position. On Intel Sapphire Rapids such lines
// bypass the second-level cache and its prefetcher, and arrive at 9 GB/s per core instead of 30.
bool keeps_reads_once_out() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// How many rows of the condition the rows of a segment span, at most.
int64_t coarse_rows(const Schedule& schedule, const Condition& condition) {
  return (schedule.rows_of_segment() + condition.down - 2) / condition.down + 1;
}

Schedule schedule_of(const Plan& plan, const Request& request, int64_t rows) {
  // Columns of a step are of one row, a profile is one of single positions, and a stream has its
  // codes in raster order.
  if (request.columns > 1 || request.profile || request.decoders) return Schedule::of_one_row(plan);
  return Schedule::of(plan, rows);
}

}  // namespace

Ring::Ring(const Convolutions& convolutions_, const Taps& taps, int64_t layers, int64_t samples_,
           const Schedule& schedule)
    : convolutions(convolutions_),
      samples(samples_),
      slots(taps.rows_above + 1),
      columns(taps.left() + schedule.width + taps.right()),
      left(taps.left()),
      channels(convolutions_.channels) {
  const int64_t values = layers * samples * sample_stride();
  memory = Buffer(convolutions.integer() ? values / kQuad : values);
  if (convolutions.integer()) memset(memory.data(), 128, values);
}

int64_t State::key_stride() const {
  return rounded_up(plan.height * plan.width) * plan.attention.head_dim;
}

float* State::condition_row(int64_t layer, int64_t sample, int64_t row) const {
  const Condition& c = plan.condition;
  const int64_t slots = coarse_rows(schedule, c), slot = row / c.down % slots;
  return of_condition.data() +
         ((layer * slots + slot) * batch + sample) * c.maps.back().width * plan.conv2.outputs();
}

const float* State::start_of(bool gates, int64_t layer, int64_t n, int64_t row, int64_t column,
                             Range panels, float* start) const {
  const Convolutions& convolutions = gates ? plan.conv2 : plan.conv1;
  const int64_t outputs = convolutions.outputs(), begin = panels.begin * kPanel;
  const int64_t count = panels.size() * kPanel;
  const float* sum = convolutions.biases + layer * outputs + begin;
  if (!gates) return sum;
  if (plan.classes) {
    // The rows after those of the batch are without a class.
    const bool own = request.classes != nullptr;
    const int64_t no_class = own ? request.num_rows - 1 : plan.num_classes;
    const int64_t label = n < batch ? request.labels[n] : no_class;
    const int64_t entry = layer * (own ? request.num_rows : plan.num_labels) + label;
    const float* classes = own ? request.classes : plan.classes;
    kernels.add(sum, classes + entry * outputs + begin, start, count);
    sum = start;
  }
  if (of_condition.size() > 0) {
    const float* above = condition_row(layer, n % batch, row);
    kernels.add(sum, above + column / plan.condition.right * outputs + begin, start, count);
    sum = start;
  }
  return sum;
}

int64_t State::value_width() const { return rounded_up(plan.attention.head_dim, kHalfPanel); }

int64_t State::value_stride() const { return plan.height * plan.width * value_width(); }

State::State(const Plan& plan_, const Request& request_, const KernelTable& table_, Team& team_)
    : plan(plan_),
      request(request_),
      table(table_),
      kernels(table_.sampler),
      team(team_),
      batch(request_.batch),
      rows(request_.batch * (request_.guided ? 2 : 1)),
      reads_once(keeps_reads_once_out()),
      columns(std::clamp<int64_t>(request_.columns, 1, plan_.width)),
      schedule(schedule_of(plan_, request_, rows)),
      segment_rows(schedule.rows_of_segment()),
      most_positions(std::max(columns, schedule.rows_at_once())),
      ring1(plan_.conv1, plan_.taps, plan_.num_layers, rows, schedule),
      ring2(plan_.conv2, plan_.taps, plan_.num_layers, rows, schedule),
      pace(team_) {
  const int64_t width = plan.width, channels = plan.channels, layers = plan.num_layers;
  const int64_t step = rows * most_positions;
  const int64_t segment_positions = schedule.segment * segment_rows;
  const int threads = team.size();
  for (int count = threads; count > 1; count /= 2) shares.emplace_back(plan, rows, count);
  shares.emplace_back(plan, rows, 1);
  out1 = Buffer(layers * segment_positions * rows * plan.conv1.outputs());
  out2 = Buffer(layers * segment_positions * rows * plan.conv2.outputs());
  stem_rows = Buffer(segment_positions * batch * channels);
  if (layers_at_once()) gated = Buffer(layers * step * channels);
  if (most_positions > columns) {
    const int64_t widest = std::max(plan.conv1.channels, plan.conv2.channels);
    for (int t = 0; t < threads; ++t)
      gathered.emplace_back(plan.taps.most_served() * step * widest);
  }
  x = Buffer(step * channels);
  y = Buffer(step * channels);
  int64_t widest = std::max(plan.conv1.outputs(), plan.conv2.outputs());
  if (!plan.condition.maps.empty()) {
    const Condition& c = plan.condition;
    features = Buffer(batch * c.maps.back().height * c.maps.back().width * c.channels);
    of_condition = Buffer(layers * coarse_rows(schedule, c) * batch * c.maps.back().width *
                          plan.conv2.outputs());
    widest = std::max(widest, 2 * c.channels);
  }
  std::vector<const Matrices*> matrices = {&plan.merge, &plan.head, &plan.output.first,
                                           &plan.output.second};
  for (const PointwiseLayers* layer :
       {&plan.attention.key, &plan.attention.query, &plan.attention.out}) {
    matrices.insert(matrices.end(), {&layer->first, &layer->second});
  }
  matrices.insert(matrices.end(), {&plan.attention.query_weight, &plan.attention.key_value_weight});
  int64_t most_inputs = 0;
  for (const Matrices* m : matrices) {
    if (m->format != Format::kQuads) continue;
    widest = std::max(widest, m->outputs());
    most_inputs = std::max(most_inputs, scaled_inputs(m->inputs));
  }
  zeros = Buffer(widest);
  if (most_inputs > 0) {
    integers.resize(threads);
    for (Integers& own : integers) {
      own.inputs = Buffer(step * most_inputs / kQuad);
      own.sums = Buffer(step * widest);
      own.row = Buffer(widest);
      own.start = Buffer(widest);
    }
  }
  if (plan.attention.num_heads > 0) {
    const Attention& a = plan.attention;
    joined = Buffer(step * plan.joined());
    joined_activated = Buffer(step * plan.joined());
    key_inner = Buffer(step * a.key.first.outputs());
    query_inner = Buffer(step * a.query.first.outputs());
    out_inner = Buffer(step * a.out.first.outputs());
    key_gates = Buffer(step * a.key.second.outputs());
    query_gates = Buffer(step * a.query.second.outputs());
    out_gates = Buffer(step * a.out.second.outputs());
    key_features = Buffer(step * a.key.second.outputs() / 2);
    query_features = Buffer(step * a.query.second.outputs() / 2);
    query = Buffer(step * a.query_weight.outputs());
    key_value = Buffer(step * a.key_value_weight.outputs());
    out_inputs = Buffer(step * a.out.first.inputs);
    keys = Buffer(plan.num_blocks * rows * a.num_heads * key_stride());
    values = Buffer(plan.num_blocks * rows * a.num_heads * value_stride());
    scores = Buffer(threads * rounded_up(plan.height * width));
    attended.assign(threads, std::vector<float>(value_width()));
  } else {
    for (Buffer& buffer : merged) buffer = Buffer(step * (channels + kPanel));
  }
  if (plan.num_output_layers > 0) {
    if (out_inner.size() < step * plan.output.first.outputs()) {
      out_inner = Buffer(step * plan.output.first.outputs());
    }
    if (out_gates.size() == 0) out_gates = Buffer(step * plan.output.second.outputs());
  }
  activated = Buffer(step * channels);
  logits = Buffer(step * plan.head.outputs());
  for (int t = 0; t < threads; ++t) {
    drawers.push_back(std::make_unique<Drawer>(table, request.rule, plan.num_embeddings));
  }
}

}  // namespace vqvae2_fast::cpu::sampler
