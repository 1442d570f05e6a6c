// The network and the draw as sizes, memory and products of the row phase.
#include <algorithm>

#include "planner.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

// Deals out the memory of a draw, each part from a 256-byte boundary on.
class Workspace {
 public:
  explicit Workspace(uintptr_t base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    T* const part = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return part;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uintptr_t base_;
  int64_t bytes_ = 0;
};

int32_t rounded_up(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

// Of the row phase; at least one, by which kernels divide.
int32_t steps_of(int32_t inputs) {
  return std::max(rounded_up(inputs, kStepInputs), kStepInputs) / kStepInputs;
}

}  // namespace

Plan::Plan(const Values& values) {
  card = {.blocks = values.small("card.blocks"),
          .threads = values.small("card.threads"),
          .shared_bytes = values.small("card.shared_bytes"),
          .row_blocks = values.small("card.row_blocks"),
          .cluster = values.small("card.cluster")};
  weight_bytes = values.small("weight_bytes");
  network = {};
  scratch = {};
  Network& net = network;
  net.height = values.small("height");
  net.width = values.small("width");
  net.batch = values.small("batch");
  net.rows = net.batch * (values.integer("guided") ? 2 : 1);
  net.channels = values.small("channels");
  net.inner = values.small("inner_channels");
  net.num_embeddings = values.small("num_embeddings");
  net.num_classes = values.small("num_classes");
  net.num_labels = values.small("num_labels");
  net.num_layers = values.small("num_layers");
  net.layers_per_block = values.small("layers_per_block");
  net.num_blocks = net.num_layers / net.layers_per_block;
  net.num_heads = values.small("num_heads");
  net.head_dim = values.small("head_dim");
  const int32_t num_current = values.small("num_current");
  const int32_t first_current = values.small("first_current");
  net.side_by_side = num_current == 0 || first_current + num_current <= 0;
  const int32_t rows_above = values.small("rows_above");
  net.slots = rows_above + 1;
  const int32_t positions = net.height * net.width;
  net.max_chunks = (positions + kChunk - 1) / kChunk;
  // Products of the chain on a cluster read their inputs where they lie, padding included.
  const int32_t padding = card.cluster > 0 ? kLanes : kGroup;
  net.joined_stride = rounded_up(2 * net.channels + 2, padding);
  net.merged_stride = rounded_up(net.channels + 2, padding);
  net.out_stride = rounded_up(net.channels + net.num_heads * net.head_dim, padding);
  net.code_stride = rounded_up(net.num_embeddings, kGroup);

  net.stem_above = values.pointer<const float>("stem.above");
  net.stem_above_taps = values.pointer<const int32_t>("stem.above_taps");
  net.num_stem_above = values.small("stem.num_above");
  net.stem_left = values.pointer<const float>("stem.left");
  net.num_stem_left = values.small("stem.num_left");
  net.stem_bias = values.pointer<const float>("stem.bias");
  net.background = values.pointer<const float>("background");
  net.known = values.pointer<const int64_t>("known");
  net.noise = values.pointer<const float>("noise");
  net.seed = static_cast<uint64_t>(values.integer("seed"));
  net.first_sample = values.integer("first_sample");
  net.stream = static_cast<uint32_t>(values.integer("stream"));
  net.rule = {.temperature = static_cast<float>(values.number("temperature")),
              .top_p = static_cast<float>(values.number("top_p")),
              .guidance = static_cast<float>(values.number("guidance")),
              .top_k = values.small("top_k"),
              .largest_logit = static_cast<float>(values.number("largest_logit"))};
  net.codes = values.pointer<int64_t>("codes");
  net.log_prob = values.pointer<float>("log_prob");
  net.all_logits = values.pointer<float>("logits");
  net.too_large = values.pointer<int32_t>("too_large");
#if defined(VQ_STAGE_TIMES)
  net.stage_times = values.pointer<uint64_t>("stage_times");
#endif

  const int32_t first_column = values.small("first_column");
  const int32_t last_column = first_column + values.small("num_columns") - 1;
  const int32_t left = -std::min({first_column, first_current, 0});
  const int32_t columns = left + net.width + std::max(last_column, 0);
  const int64_t rows = net.rows, layers = net.num_layers;
  Workspace workspace(values.integer("workspace"));
  const auto ring = [&](int32_t channels) {
    const int64_t count = layers * rows * net.slots * columns * channels;
    return Ring{.values = workspace.take<float>(count),
                .columns = columns,
                .left = left,
                .channels = channels};
  };
  net.ring1 = ring(net.channels);
  net.ring2 = ring(net.inner);
  const int32_t inner_pairs = rounded_up(net.inner, kUnit);
  const int64_t initials = layers * rows * net.width;
  net.row1 = workspace.take<float>(initials * inner_pairs);
  net.row2 = workspace.take<float>(initials * 2 * net.channels);
  net.stem_row = workspace.take<float>(static_cast<int64_t>(net.batch) * net.width * net.channels);
  // What only the chain reads and writes lies in shared memory if a cluster computes it.
  Workspace of_chain(kChainBarrierBytes);
  Workspace& state = card.cluster > 0 ? of_chain : workspace;
  if (net.side_by_side) {
    net.gated = scratch.gated = workspace.take<float>(layers * rows * net.channels);
  }
  planned_chain = {};
  if (card.cluster > 0) {
    planned_chain.gated = scratch.gated;
    net.gated = state.take<float>(layers * rows * net.channels);
    planned_chain.begun = state.take<float>(static_cast<int64_t>(net.batch) * net.channels);
    planned_chain.codes = state.take<int32_t>(static_cast<int64_t>(net.batch) * net.width);
  }
  net.x = state.take<float>(rows * net.channels);
  net.y = state.take<float>(rows * net.channels);
  for (float*& merged : net.merged) merged = state.take<float>(rows * net.merged_stride);
  net.activated = state.take<float>(rows * net.channels);
  net.logits = state.take<float>(rows * net.code_stride);
  if (net.num_heads > 0) {
    const int64_t all = static_cast<int64_t>(net.num_heads) * net.head_dim;
    const int64_t cached = net.num_blocks * rows * rounded_up(positions, kLanes) * all;
    net.joined = state.take<float>(rows * net.joined_stride);
    net.joined_activated = state.take<float>(rows * net.joined_stride);
    net.out_inputs = state.take<float>(rows * net.out_stride);
    net.query = state.take<float>(rows * all);
    if (card.cluster > 0) net.key_value = state.take<float>(rows * 2 * all);
    net.partials =
        state.take<float>(rows * net.num_heads * net.max_chunks * (net.head_dim + kPartialHead));
    net.keys = workspace.take<float>(cached);
    net.values = workspace.take<float>(cached);
  }
  const int32_t attention_inner = values.small("attention.inner_channels");
  const int32_t output_inner = values.small("output.inner_channels");
  scratch.inner_row = rounded_up(std::max(attention_inner, output_inner), padding);
  scratch.out_inner = state.take<float>(rows * scratch.inner_row);
  if (net.num_heads > 0) {
    scratch.key_inner = state.take<float>(rows * scratch.inner_row);
    scratch.query_inner = state.take<float>(rows * scratch.inner_row);
    scratch.key_features = state.take<float>(rows * net.joined_stride);
    scratch.query_features = state.take<float>(rows * net.merged_stride);
  }
  net.progress = workspace.take<uint32_t>(card.blocks);

  row_phase = {};
  row_phase.mode = static_cast<RowMode>(values.small("row_mode"));
  row_phase.rows_above = rows_above;
  row_phase.first_column = first_column;
  const int32_t row_inputs = values.small("num_columns");
  const auto row_product = [&](const Ring& from, const char* name, int32_t outputs, float* output) {
    RowProduct p = {};
    p.layers = net.num_layers;
    p.rows = net.rows * net.width;
    p.width = net.width;
    p.inputs = row_inputs * from.channels;
    p.steps = steps_of(p.inputs);
    p.outputs = outputs;
    p.all_segments = rows_above;
    p.input = from.values;
    p.input_sample = static_cast<int64_t>(net.slots) * from.columns * from.channels;
    p.input_layer = p.input_sample * net.rows;
    p.input_column = from.channels;
    p.by_four = from.channels % kGroup == 0;
    p.weights = values.pointer<const void>(std::string(name) + ".above");
    p.bias = values.pointer<const float>(std::string(name) + ".bias");
    p.batch = net.batch;
    p.output = output;
    return p;
  };
  row_phase.conv1 = row_product(net.ring1, "conv1", inner_pairs, net.row1);
  row_phase.conv2 = row_product(net.ring2, "conv2", 2 * net.channels, net.row2);
  RowProduct& conv2 = row_phase.conv2;
  conv2.classes = values.pointer<const float>("classes");
  conv2.labels = values.pointer<const int64_t>("labels");
  conv2.num_classes = net.num_classes;
  conv2.num_labels = net.num_labels;
  const int32_t condition_channels = values.small("condition.channels");
  if (condition_channels > 0) {
    const int32_t height = values.small("condition.height"),
                  width = values.small("condition.width");
    RowProduct& p = row_phase.condition;
    p.layers = net.num_layers;
    p.rows = net.batch * width;
    p.width = width;
    p.inputs = condition_channels;
    p.steps = steps_of(p.inputs);
    p.outputs = 2 * net.channels;
    p.all_segments = p.num_segments = 1;
    p.input = values.pointer<const float>("condition.features");
    p.input_column = condition_channels;
    p.by_four = condition_channels % kGroup == 0 &&
                reinterpret_cast<uintptr_t>(p.input) % (kGroup * sizeof(float)) == 0;
    row_phase.condition_row = width * condition_channels;
    p.input_sample = static_cast<int64_t>(height) * row_phase.condition_row;
    p.weights = values.pointer<const void>("condition.weight");
    p.batch = net.batch;
    p.output = workspace.take<float>(layers * p.rows * p.outputs);
    conv2.condition = p.output;
    conv2.condition_width = width;
    conv2.condition_scale = net.width / width;
    row_phase.down = net.height / height;
  }
  row_phase.tile = best_row_tile({&row_phase.conv1, &row_phase.conv2}, card.row_blocks);
  row_phase.condition_tile = best_row_tile({&row_phase.condition}, card.row_blocks);
  build_stages(values);
  workspace_bytes = workspace.bytes();
  if (card.cluster > 0) {
    planned_chain.state_bytes = kChainBarrierBytes + static_cast<int32_t>(of_chain.bytes());
    share_out_chain();
  } else {
    share_out();
  }
  place_weights();
}

RowProduct RowPhase::at_row(const RowProduct& product, int slots, const Ring& ring, int i) const {
  RowProduct p = product;
  p.first_segment = std::max(0, rows_above - i);
  p.num_segments = rows_above - p.first_segment;
  for (int s = 0; s < p.num_segments; ++s) {
    const int row = i - p.num_segments + s;
    p.segments[s] = (static_cast<int64_t>(row % slots) * ring.columns + ring.left + first_column) *
                    ring.channels;
  }
  return p;
}

}  // namespace vqvae2_fast::cuda::sampler
