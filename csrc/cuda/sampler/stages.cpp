// The stages of a position: all of its work, before it is distributed over blocks.
#include <utility>

#include "planner.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

int32_t rounded_up(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

// A product with matrix n of several that have one shape.
struct ProductOf {
  const char* name;
  int32_t n, inputs, outputs;
  Epilogue epilogue;
  const float* input = nullptr;
  int64_t input_row = 0;
  const float* residual = nullptr;
  int64_t residual_row = 0;
  float* output = nullptr;
  int64_t output_row = 0;
};

Product product(const Values& values, const ProductOf& of, int32_t weight_bytes) {
  const std::string prefix = of.name;
  Product p = {};
  p.name = of.name;
  p.units = (of.outputs + kUnit - 1) / kUnit;
  Operation& op = p.operation;
  op.input = of.input;
  op.input_row = of.input_row;
  op.residual = of.residual;
  op.residual_row = of.residual_row;
  op.output = of.output;
  op.output_row = of.output_row;
  op.inputs = of.inputs;
  op.padded_inputs = rounded_up(of.inputs, kLanes);
  op.outputs = of.outputs;
  op.attended = -1;
  op.epilogue = of.epilogue;
  op.index = of.n;
  const int64_t unit_bytes = static_cast<int64_t>(op.padded_inputs) * kUnit * weight_bytes;
  const char* const weights = values.pointer<const char>(prefix + ".weight");
  if (weights) op.weights = weights + of.n * p.units * unit_bytes;
  op.initial = values.pointer<const float>(prefix + ".bias");
  if (op.initial) op.initial += static_cast<int64_t>(of.n) * p.units * kUnit;
  return p;
}

}  // namespace

void Plan::build_stages(const Values& values) {
  Network& net = network;
  const int32_t channels = net.channels, joined = 2 * channels + 2, merged = channels + 2;
  const int32_t all_heads = net.num_heads * net.head_dim;
  const int32_t num_current = values.small("num_current");
  const int32_t first_current = values.small("first_current");

  // Appends a stage that waits for the one before it.
  const auto add = [&](const char* name, StepKind kind, int index,
                       std::vector<Product> products = {}) {
    stages.push_back({.name = name,
                      .kind = kind,
                      .products = std::move(products),
                      .index = index,
                      .wait_stage = static_cast<int>(stages.size()) - 1});
  };

  // The current taps of a layer; its sums begin with those of the rows above.
  const auto convolution = [&](int32_t layer, bool gates, Epilogue epilogue) {
    const Ring& ring = gates ? net.ring2 : net.ring1;
    const int32_t outputs = gates ? 2 * channels : net.inner;
    Product p = product(values,
                        {.name = gates ? "conv2" : "conv1",
                         .n = layer,
                         .inputs = num_current * ring.channels,
                         .outputs = outputs,
                         .epilogue = epilogue},
                        weight_bytes);
    Operation& op = p.operation;
    op.input_column = ring.channels;
    op.input_slot = ring.columns * ring.channels;
    op.input_row = static_cast<int64_t>(net.slots) * op.input_slot;
    const int64_t first =
        layer * net.rows * op.input_row + (ring.left + first_current) * ring.channels;
    op.input = ring.values + first;
    op.initial_column = p.units * kUnit;
    op.initial_row = net.width * op.initial_column;
    op.initial =
        (gates ? net.row2 : net.row1) + static_cast<int64_t>(layer) * net.rows * op.initial_row;
    if (!gates) {
      op.output_column = net.ring2.channels;
      op.output_slot = net.ring2.columns * net.ring2.channels;
      op.output_row = static_cast<int64_t>(net.slots) * op.output_slot;
      op.output =
          net.ring2.values + layer * net.rows * op.output_row + net.ring2.left * net.ring2.channels;
    } else {
      op.output = scratch.gated + static_cast<int64_t>(layer) * net.rows * channels;
      op.output_row = channels;
    }
    return p;
  };

  const auto pointwise = [&](const ProductOf& of) { return product(values, of, weight_bytes); };

  const int32_t side_by_side = convolution_stages();
  for (int32_t s = 0; s < side_by_side; ++s) {
    std::vector<Product> products;
    const int32_t layers = net.num_layers / side_by_side;
    for (int32_t layer = s * layers; layer < (s + 1) * layers; ++layer) {
      products.push_back(convolution(layer, false, Epilogue::kActivate));
      products.push_back(convolution(layer, true, Epilogue::kGate));
    }
    add("convolutions", StepKind::kProducts, s, std::move(products));
  }
  add("begin", StepKind::kBegin, 0);
  const int32_t inner = values.small("attention.inner_channels");
  const int64_t inner_row = scratch.inner_row;
  for (int32_t block = 0; block < net.num_blocks; ++block) {
    if (!net.side_by_side) {
      const int32_t first = block * net.layers_per_block;
      for (int32_t layer = first; layer < first + net.layers_per_block; ++layer) {
        add("first convolution", StepKind::kProducts, block,
            {convolution(layer, false, Epilogue::kActivate)});
        add("second convolution", StepKind::kProducts, block,
            {convolution(layer, true, Epilogue::kGateLayer)});
      }
    }
    if (net.num_heads == 0) {
      add("merge", StepKind::kProducts, block,
          {pointwise({.name = "merge",
                      .n = block,
                      .inputs = merged,
                      .outputs = channels,
                      .epilogue = Epilogue::kMerge,
                      .input = net.merged[block % 2],
                      .input_row = net.merged_stride})});
      continue;
    }
    add("attention first", StepKind::kProducts, block,
        {pointwise({.name = "key.first",
                    .n = block,
                    .inputs = joined,
                    .outputs = inner,
                    .epilogue = Epilogue::kActivate,
                    .input = net.joined_activated,
                    .input_row = net.joined_stride,
                    .output = scratch.key_inner,
                    .output_row = inner_row}),
         pointwise({.name = "query.first",
                    .n = block,
                    .inputs = merged,
                    .outputs = inner,
                    .epilogue = Epilogue::kActivate,
                    .input = net.joined_activated + channels,
                    .input_row = net.joined_stride,
                    .output = scratch.query_inner,
                    .output_row = inner_row})});
    add("attention second", StepKind::kProducts, block,
        {pointwise({.name = "key.second",
                    .n = block,
                    .inputs = inner,
                    .outputs = 2 * joined,
                    .epilogue = Epilogue::kGateResidual,
                    .input = scratch.key_inner,
                    .input_row = inner_row,
                    .residual = net.joined,
                    .residual_row = net.joined_stride,
                    .output = scratch.key_features,
                    .output_row = net.joined_stride}),
         pointwise({.name = "query.second",
                    .n = block,
                    .inputs = inner,
                    .outputs = 2 * merged,
                    .epilogue = Epilogue::kGateResidual,
                    .input = scratch.query_inner,
                    .input_row = inner_row,
                    .residual = net.joined + channels,
                    .residual_row = net.joined_stride,
                    .output = scratch.query_features,
                    .output_row = net.merged_stride})});
    add("query, key, value", StepKind::kProducts, block,
        {pointwise({.name = "query_weight",
                    .n = block,
                    .inputs = merged,
                    .outputs = all_heads,
                    .epilogue = Epilogue::kStore,
                    .input = scratch.query_features,
                    .input_row = net.merged_stride,
                    .output = net.query,
                    .output_row = all_heads}),
         pointwise({.name = "key_value_weight",
                    .n = block,
                    .inputs = joined,
                    .outputs = 2 * all_heads,
                    .epilogue = Epilogue::kKeyValue,
                    .input = scratch.key_features,
                    .input_row = net.joined_stride})});
    add("heads", StepKind::kAttend, block);
    Product first = pointwise({.name = "out.first",
                               .n = block,
                               .inputs = channels + all_heads,
                               .outputs = inner,
                               .epilogue = Epilogue::kActivate,
                               .input = net.out_inputs,
                               .input_row = net.out_stride,
                               .output = scratch.out_inner,
                               .output_row = inner_row});
    // With few rows, every block merges what it reads, which saves a stage.
    if (card.cluster > 0 || net.rows * all_heads <= 2 * card.threads) {
      first.operation.attended = channels;
    } else {
      add("merge heads", StepKind::kMergeHeads, block);
    }
    add("attention out 1", StepKind::kProducts, block, {first});
    // Its residual is y, the second part of `joined`.
    add("attention out 2", StepKind::kProducts, block,
        {pointwise({.name = "out.second",
                    .n = block,
                    .inputs = inner,
                    .outputs = 2 * channels,
                    .epilogue = Epilogue::kGateBlock,
                    .input = scratch.out_inner,
                    .input_row = inner_row,
                    .residual = net.joined + channels,
                    .residual_row = net.joined_stride})});
  }
  if (net.side_by_side) {
    // Without a tap at its own position no convolution depends on the code before: they begin when
    // the last block of the position before is done, while its code is being drawn. On clusters
    // they begin earlier (planner_chain.cpp).
    stages[0].wait_stage = static_cast<int32_t>(stages.size()) - 1;
    stages[0].wait_before = true;
  } else {
    stages[0].wait_stage = -1;
  }
  const int32_t output_inner = values.small("output.inner_channels");
  const int32_t num_output_layers = values.small("num_output_layers");
  for (int32_t n = 0; n < num_output_layers; ++n) {
    add("output first", StepKind::kProducts, n,
        {pointwise({.name = "output.first",
                    .n = n,
                    .inputs = channels,
                    .outputs = output_inner,
                    .epilogue = Epilogue::kActivate,
                    .input = net.activated,
                    .input_row = channels,
                    .output = scratch.out_inner,
                    .output_row = inner_row})});
    add("output second", StepKind::kProducts, n,
        {pointwise({.name = "output.second",
                    .n = n,
                    .inputs = output_inner,
                    .outputs = 2 * channels,
                    .epilogue = Epilogue::kGateOutput,
                    .input = scratch.out_inner,
                    .input_row = inner_row,
                    .residual = net.x,
                    .residual_row = channels})});
  }
  add("head", StepKind::kProducts, 0,
      {pointwise({.name = "head",
                  .n = 0,
                  .inputs = channels,
                  .outputs = net.num_embeddings,
                  .epilogue = Epilogue::kStore,
                  .input = net.activated,
                  .input_row = channels,
                  .output = net.logits,
                  .output_row = net.code_stride})});
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
