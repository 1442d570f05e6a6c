// The stages of a position: what there is to do, before it is shared out among blocks.
#include <algorithm>

#include "planner.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

int32_t rounded_up(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

// A product of one of n matrices of a shape.
Product product(const Values& values, const char* name, int32_t n, int32_t inputs, int32_t outputs,
                Epilogue epilogue, int32_t weight_bytes) {
  const std::string prefix = name;
  Product p = {};
  p.name = name;
  p.units = (outputs + kUnit - 1) / kUnit;
  Operation& op = p.operation;
  op.inputs = inputs;
  op.padded_inputs = rounded_up(inputs, kLanes);
  op.outputs = outputs;
  op.attended = -1;
  op.epilogue = epilogue;
  op.index = n;
  const int64_t unit_bytes = static_cast<int64_t>(op.padded_inputs) * kUnit * weight_bytes;
  const char* const weights = values.pointer<const char>(prefix + ".weight");
  if (weights) op.weights = weights + n * p.units * unit_bytes;
  op.initial = values.pointer<const float>(prefix + ".bias");
  if (op.initial) op.initial += static_cast<int64_t>(n) * p.units * kUnit;
  return p;
}

}  // namespace

void Plan::build_stages(const Values& values) {
  Network& net = network;
  const int32_t channels = net.channels, joined = 2 * channels + 2, merged = channels + 2;
  const int32_t all_heads = net.num_heads * net.head_dim;
  const int32_t num_current = values.small("num_current");
  const int32_t first_current = values.small("first_current");

  const auto add = [&](const char* name, StepKind kind, int index) -> Stage& {
    Stage stage;
    stage.name = name;
    stage.kind = kind;
    stage.index = index;
    stage.wait_stage = static_cast<int>(stages.size()) - 1;
    stages.push_back(stage);
    return stages.back();
  };

  // The current taps of a layer; what rows above gave is where its sums begin.
  const auto convolution = [&](int32_t layer, bool gates, Epilogue epilogue) {
    const Ring& ring = gates ? net.ring2 : net.ring1;
    const int32_t outputs = gates ? 2 * channels : net.inner;
    Product p = product(values, gates ? "conv2" : "conv1", layer, num_current * ring.channels,
                        outputs, epilogue, weight_bytes);
    Operation& op = p.operation;
    op.input_column = ring.channels;
    op.input_slot = ring.columns * ring.channels;
    op.input_row = static_cast<int64_t>(net.slots) * op.input_slot;
    op.input =
        ring.values + layer * net.rows * op.input_row + (ring.left + first_current) * ring.channels;
    op.initial_column = p.units * kUnit;
    op.initial_row = static_cast<int64_t>(net.width) * op.initial_column;
    op.initial = (gates ? net.row2 : net.row1) + layer * net.rows * op.initial_row;
    if (!gates) {
      op.output_column = net.ring2.channels;
      op.output_slot = net.ring2.columns * net.ring2.channels;
      op.output_row = static_cast<int64_t>(net.slots) * op.output_slot;
      op.output =
          net.ring2.values + layer * net.rows * op.output_row + net.ring2.left * net.ring2.channels;
    } else {
      op.output = net.gated + static_cast<int64_t>(layer) * net.rows * channels;
      op.output_row = channels;
    }
    return p;
  };

  const auto pointwise = [&](const char* name, int32_t n, const float* input, int64_t input_row,
                             int32_t inputs, int32_t outputs, Epilogue epilogue, float* output,
                             int64_t output_row) {
    Product p = product(values, name, n, inputs, outputs, epilogue, weight_bytes);
    p.operation.input = input;
    p.operation.input_row = input_row;
    p.operation.output = output;
    p.operation.output_row = output_row;
    return p;
  };

  const auto gated = [](Product p, const float* residual, int64_t residual_row) {
    p.operation.residual = residual;
    p.operation.residual_row = residual_row;
    return p;
  };

  if (net.side_by_side) {
    Stage& stage = add("convolutions", StepKind::kProducts, 0);
    for (int32_t layer = 0; layer < net.num_layers; ++layer) {
      stage.products.push_back(convolution(layer, false, Epilogue::kActivate));
      stage.products.push_back(convolution(layer, true, Epilogue::kGate));
    }
  }
  add("begin", StepKind::kBegin, 0);
  const int32_t inner = values.small("attention.inner_channels");
  const int64_t inner_row = scratch.inner_row;
  for (int32_t block = 0; block < net.num_blocks; ++block) {
    if (!net.side_by_side) {
      const int32_t first = block * net.layers_per_block;
      for (int32_t layer = first; layer < first + net.layers_per_block; ++layer) {
        add("first convolution", StepKind::kProducts, block).products = {
            convolution(layer, false, Epilogue::kActivate)};
        add("second convolution", StepKind::kProducts, block).products = {
            convolution(layer, true, Epilogue::kGateLayer)};
      }
    }
    if (net.num_heads == 0) {
      add("merge", StepKind::kProducts, block).products = {
          pointwise("merge", block, net.merged[block % 2], net.merged_stride, merged, channels,
                    Epilogue::kMerge, nullptr, 0)};
      continue;
    }
    add("attention first", StepKind::kProducts, block).products = {
        pointwise("key.first", block, net.joined_activated, net.joined_stride, joined, inner,
                  Epilogue::kActivate, scratch.key_inner, inner_row),
        pointwise("query.first", block, net.joined_activated + channels, net.joined_stride, merged,
                  inner, Epilogue::kActivate, scratch.query_inner, inner_row)};
    add("attention second", StepKind::kProducts, block).products = {
        gated(pointwise("key.second", block, scratch.key_inner, inner_row, inner, 2 * joined,
                        Epilogue::kGateResidual, scratch.key_features, net.joined_stride),
              net.joined, net.joined_stride),
        gated(pointwise("query.second", block, scratch.query_inner, inner_row, inner, 2 * merged,
                        Epilogue::kGateResidual, scratch.query_features, net.merged_stride),
              net.joined + channels, net.joined_stride)};
    add("query, key, value", StepKind::kProducts, block).products = {
        pointwise("query_weight", block, scratch.query_features, net.merged_stride, merged,
                  all_heads, Epilogue::kStore, net.query, all_heads),
        pointwise("key_value_weight", block, scratch.key_features, net.joined_stride, joined,
                  2 * all_heads, Epilogue::kKeyValue, nullptr, 0)};
    add("heads", StepKind::kAttend, block);
    Product first =
        pointwise("out.first", block, net.out_inputs, net.out_stride, channels + all_heads, inner,
                  Epilogue::kActivate, scratch.out_inner, inner_row);
    // Few rows: every block merges what it reads, and a stage is saved.
    if (net.step_rows * all_heads <= 2 * card.threads) {
      first.operation.attended = channels;
    } else {
      add("merge heads", StepKind::kMergeHeads, block);
    }
    add("attention out 1", StepKind::kProducts, block).products = {first};
    // Its residual is y, the second part of `joined`.
    add("attention out 2", StepKind::kProducts, block).products = {
        gated(pointwise("out.second", block, scratch.out_inner, inner_row, inner, 2 * channels,
                        Epilogue::kGateBlock, nullptr, 0),
              net.joined + channels, net.joined_stride)};
  }
  if (net.side_by_side) {
    // Without a tap at its own position no convolution depends on the code before: they begin when
    // the last block of the position before is done, while its code is being drawn.
    stages[0].wait_stage = static_cast<int32_t>(stages.size()) - 1;
    stages[0].wait_before = true;
  } else {
    stages[0].wait_stage = -1;
  }
  const int32_t output_inner = values.small("output.inner_channels");
  const int32_t num_output_layers = values.small("num_output_layers");
  for (int32_t n = 0; n < num_output_layers; ++n) {
    add("output first", StepKind::kProducts, n).products = {
        pointwise("output.first", n, net.activated, channels, channels, output_inner,
                  Epilogue::kActivate, scratch.out_inner, inner_row)};
    add("output second", StepKind::kProducts, n).products = {
        gated(pointwise("output.second", n, scratch.out_inner, inner_row, output_inner,
                        2 * channels, Epilogue::kGateOutput, nullptr, 0),
              net.x, channels)};
  }
  add("head", StepKind::kProducts, 0).products = {
      pointwise("head", 0, net.activated, channels, channels, net.num_embeddings, Epilogue::kStore,
                net.logits, net.code_stride)};
  add("draw", StepKind::kDraw, 0);

  for (Stage& stage : stages) {
    for (Product& p : stage.products) {
      Operation& op = p.operation;
      const bool aligned = reinterpret_cast<uintptr_t>(op.input) % (kGroup * sizeof(float)) == 0;
      op.by_four = aligned && op.input_row % kGroup == 0 && op.input_column % kGroup == 0 &&
                   op.input_slot % kGroup == 0 && op.attended < 0;
    }
  }
}

}  // namespace vqvae2_fast::cuda::sampler
