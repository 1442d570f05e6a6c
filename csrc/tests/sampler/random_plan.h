// Random priors for tests of the CPU sampler without Python: packed plans, and draws from them.
// What a draw writes has the exact size, so that AddressSanitizer sees every access outside.
#pragma once

#include <math.h>

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../cpu/sampler/pack.h"
#include "../../cpu/sampler/sampler.h"

namespace sampler_test {

using namespace vqvae2_fast::cpu::sampler;

struct Kind {
  const char* name;
  bool reads_itself = false, attention = true, condition = false, classes = false;
  int64_t output_layers = 1;
};

struct Draw {
  int64_t batch = 3, first_sample = 0;
  bool guided = false;
  int64_t columns = 1;  // of a step; more where all codes are known
  int threads = 1;
  Rule rule = {};
  std::vector<int64_t> known = {};                  // [B, H, W], -1 to draw; or empty
  std::vector<std::vector<uint32_t>> streams = {};  // [B], to read the codes from; or empty
};

struct Drawn {
  std::vector<int64_t> codes;                    // [B, H, W]
  std::vector<float> logits, log_prob;           // [B, H, W, K] and [B, H, W]
  std::vector<vqvae2_fast::Interval> intervals;  // [B, H, W]
  bool finished = true;                          // all streams were read to their ends
  bool too_large = false;
};

// The inner channels are more than twice the others, so that each is the widest somewhere.
class RandomPlan {
 public:
  static constexpr int64_t kHeight = 4, kWidth = 7, kPositions = kHeight * kWidth, kCodes = 37;
  static constexpr int64_t kChannels = 32, kInner = 96, kLayers = 2, kHeads = 2, kHeadDim = 5;
  static constexpr int64_t kRowsAbove = 2, kColumns = 3, kClasses = 3;
  // Of a condition of two coarser levels.
  static constexpr int64_t kMapSizes[2][2] = {{1, 1}, {2, 7}};

  RandomPlan(const Kind& kind, Format format) : kind_(kind), format_(format) {
    const int64_t current = kind.reads_itself ? 3 : 2;
    describe_sizes(current);
    values("stem.above", 3 * kCodes * kChannels, 1.0f);
    values("stem.left", 2 * kCodes * kChannels, 1.0f);
    values("stem.bias", kPositions * kChannels, 0.3f);
    values("background", kPositions * 2, 0.5f);
    convolutions("conv1", current, kChannels, kInner);
    convolutions("conv2", current, kInner, 2 * kChannels);
    if (kind.classes) values("classes", kLayers * (kClasses + 1) * 2 * kChannels, 0.5f);
    if (kind.attention) {
      const int64_t all = kHeads * kHeadDim, joined = 2 * kChannels + 2, merged = kChannels + 2;
      pointwise("attention.key", kLayers, joined, joined + kPanel - 2);
      pointwise("attention.query", kLayers, merged, merged + kPanel - 2);
      pointwise("attention.out", kLayers, kChannels + all, kChannels);
      matrices("attention.query_weight", kLayers, merged, kPanel);
      matrices("attention.key_value_weight", kLayers, joined, kPanel);
    } else {
      matrices("merge", kLayers, kChannels + 2, kChannels);
    }
    if (kind.output_layers) pointwise("output", kind.output_layers, kChannels, kChannels);
    matrices("head", 1, kChannels, 2 * kPanel);
    if (kind.condition) describe_condition();
    plan_ = std::make_unique<Plan>(description_, 2);
    for (const auto& pack : packings_) pack();
  }

  const Plan& plan() const { return *plan_; }

  Drawn draw(const Draw& draw) const {
    const int64_t positions = draw.batch * kPositions;
    Drawn drawn;
    drawn.codes.resize(positions);
    drawn.logits.resize(positions * kCodes);
    drawn.log_prob.resize(positions);
    drawn.intervals.resize(positions);
    std::vector<int64_t> labels(draw.batch);
    for (int64_t b = 0; b < draw.batch; ++b) labels[b] = (draw.first_sample + b) % (kClasses + 1);
    std::vector<std::vector<int64_t>> maps;
    std::vector<vqvae2_fast::RangeDecoder> decoders;
    for (const auto& stream : draw.streams) decoders.emplace_back(stream.data(), stream.size());

    Request request;
    request.batch = draw.batch;
    request.guided = draw.guided;
    if (kind_.classes) request.labels = labels.data();
    for (size_t m = 0; kind_.condition && m < 2; ++m) {
      const int64_t size = kMapSizes[m][0] * kMapSizes[m][1];
      std::vector<int64_t> map(draw.batch * size);
      for (size_t i = 0; i < map.size(); ++i) map[i] = (draw.first_sample * size + i) * 7 % kCodes;
      maps.push_back(std::move(map));
    }
    for (const auto& map : maps) request.maps.push_back(map.data());
    if (!draw.known.empty()) request.known = draw.known.data();
    request.seed = 3;
    request.first_sample = draw.first_sample;
    request.stream = 1;
    request.rule = draw.rule;
    request.codes = drawn.codes.data();
    request.logits = drawn.logits.data();
    request.log_prob = drawn.log_prob.data();
    request.intervals = drawn.intervals.data();
    if (!decoders.empty()) request.decoders = decoders.data();
    request.columns = draw.columns;
    request.threads = draw.threads;
    drawn.too_large = draw_map(*plan_, request, [](int64_t) { return true; }).too_large;
    for (const auto& decoder : decoders) drawn.finished &= decoder.finished();
    return drawn;
  }

 private:
  // Taps of one kind that lie in panels of their own, in the tensor `name` from word `start` on:
  // see Packing::Block.
  struct Block {
    std::string name;
    int64_t start, first_tap, num_taps, matrix_stride, panel_stride;
  };

  void describe_sizes(int64_t current) {
    const auto format = static_cast<int64_t>(format_);
    description_.integers = {{"format", {format}},
                             {"height", {kHeight}},
                             {"width", {kWidth}},
                             {"num_embeddings", {kCodes}},
                             {"num_classes", {kind_.classes ? kClasses : 0}},
                             {"num_labels", {kind_.classes ? kClasses + 1 : 0}},
                             {"channels", {kChannels}},
                             {"inner_channels", {kInner}},
                             {"num_layers", {kLayers}},
                             {"layers_per_block", {1}},
                             {"num_output_layers", {kind_.output_layers}},
                             {"output.inner_channels", {kInner}},
                             {"stem.above_offsets", {-1, -1, -1, 0, -1, 1}},
                             {"stem.num_left", {2}},
                             {"taps.rows_above", {kRowsAbove}},
                             {"taps.first_column", {-1}},
                             {"taps.num_columns", {kColumns}},
                             {"taps.first_current", {-2}},
                             {"taps.num_current", {current}},
                             {"attention.num_heads", {kind_.attention ? kHeads : 0}},
                             {"attention.head_dim", {kHeadDim}},
                             {"attention.inner_channels", {kInner}},
                             {"condition.sizes", {}}};
  }

  void describe_condition() {
    constexpr int64_t kArea = 9;
    auto& integers = description_.integers;
    integers["condition.sizes"] = {kMapSizes[0][0], kMapSizes[0][1], kMapSizes[1][0],
                                   kMapSizes[1][1]};
    integers["condition.kernel"] = {3};
    integers["condition.channels"] = {kChannels};
    integers["condition.inner_channels"] = {kInner};
    integers["condition.num_layers"] = {1};
    integers["condition.down"] = {kHeight / kMapSizes[1][0]};
    integers["condition.right"] = {kWidth / kMapSizes[1][1]};
    for (const char* map : {"condition.stem0", "condition.stem1"}) {
      values(std::string(map) + ".table", kArea * kCodes * kChannels, 0.3f);
      values(std::string(map) + ".bias", kChannels, 0.3f);
    }
    matrices("condition.first", 1, kChannels, kInner, /*with_bias=*/true, kArea);
    matrices("condition.second", 1, kInner, 2 * kChannels, /*with_bias=*/true, kArea);
    matrices("layer_condition", kLayers, kChannels, 2 * kChannels, /*with_bias=*/false);
  }

  Format format_of(const std::string& name) const {
    const bool of_condition = name.find("condition") != std::string::npos;
    return of_condition ? Format::kFloat32 : format_;
  }

  const std::vector<float>& random(int64_t size, float scale) {
    std::vector<float>& made = kept_.emplace_back(size);
    std::normal_distribution<float> normal(0.0f, scale);
    for (float& value : made) value = normal(random_);
    return made;
  }

  void values(const std::string& name, int64_t size, float scale) {
    description_.tensors[name] = {random(size, scale).data(), size};
  }

  // `count` matrices or convolutions, packed once the plan is made.
  void packed(const std::string& name, int64_t count, int64_t num_taps, int64_t inputs,
              int64_t outputs, const std::vector<Block>& blocks) {
    Packing packing;
    packing.format = format_of(name);
    const float scale = 1.0f / sqrtf(static_cast<float>(num_taps * inputs));
    for (int64_t n = 0; n < count; ++n) {
      packing.weights.push_back(random(outputs * inputs * num_taps, scale).data());
    }
    packing.output_stride = inputs * num_taps;
    for (int64_t c = 0; c < outputs; ++c) packing.outputs.push_back(c);
    for (int64_t i = 0; i < inputs; ++i) packing.inputs.push_back(i * num_taps);
    for (int64_t t = 0; t < num_taps; ++t) packing.taps.push_back(t);
    if (packing.format == Format::kQuads) {
      description_.tensors[name + ".scale"] = {nullptr, count * outputs};
      // One value, since convolutions and matrices differ in how many are stored.
      const int64_t size = count * scaled_inputs(inputs);
      std::vector<float>& scales = kept_.emplace_back(size, 0.03f);
      packing.input_scales = scales.data();
      const bool of_taps = blocks.size() > 1;
      description_.tensors[name + ".input_scale"] = {scales.data(),
                                                     of_taps ? count * inputs : size};
    }
    packings_.emplace_back([this, name, packing, blocks]() mutable {
      if (packing.format == Format::kQuads) packing.scales = plan_->memory(name + ".scale");
      for (const Block& b : blocks) {
        packing.blocks.push_back({plan_->memory(b.name) + b.start, b.first_tap, b.num_taps,
                                  b.matrix_stride, b.panel_stride});
      }
      pack(packing, 2);
    });
  }

  void matrices(const std::string& name, int64_t count, int64_t inputs, int64_t outputs,
                bool with_bias = true, int64_t num_taps = 1) {
    const int64_t panels = outputs / kPanel;
    const int64_t words = panel_words(format_of(name), num_taps * inputs);
    description_.tensors[name + ".weight"] = {nullptr, count * panels * words};
    if (with_bias) values(name + ".bias", count * outputs, 0.1f);
    packed(name, count, num_taps, inputs, outputs,
           {{name + ".weight", 0, 0, num_taps, panels * words, words}});
  }

  void pointwise(const std::string& name, int64_t count, int64_t inputs, int64_t outputs) {
    matrices(name + ".first", count, inputs, kInner);
    matrices(name + ".second", count, kInner, 2 * outputs);
  }

  void convolutions(const std::string& name, int64_t current, int64_t inputs, int64_t outputs) {
    const int64_t panels = outputs / kPanel;
    const int64_t of_row = panel_words(format_, kColumns * inputs);
    const int64_t of_panel = kRowsAbove * of_row, of_tap = panel_words(format_, inputs);
    description_.tensors[name + ".above"] = {nullptr, kLayers * panels * of_panel};
    description_.tensors[name + ".current"] = {nullptr, kLayers * current * panels * of_tap};
    values(name + ".bias", kLayers * outputs, 0.1f);
    std::vector<Block> blocks;
    for (int64_t r = 0; r < kRowsAbove; ++r) {
      blocks.push_back(
          {name + ".above", r * of_row, r * kColumns, kColumns, panels * of_panel, of_panel});
    }
    for (int64_t t = 0; t < current; ++t) {
      blocks.push_back({name + ".current", t * panels * of_tap, kRowsAbove * kColumns + t, 1,
                        current * panels * of_tap, of_tap});
    }
    packed(name, kLayers, kRowsAbove * kColumns + current, inputs, outputs, blocks);
  }

  const Kind kind_;
  const Format format_;
  std::mt19937 random_{1};
  Description description_;
  std::deque<std::vector<float>> kept_;
  std::vector<std::function<void()>> packings_;
  std::unique_ptr<Plan> plan_;
};

}  // namespace sampler_test
