// Random priors for tests of the CUDA sampler without Python: the values that the C interface takes
// by name (csrc/cuda/sampler/sampler.h), and draws from them.
#pragma once

#include <string.h>

#include <map>
#include <memory>
#include <string>

#include "../../cuda/sampler/packed_program.h"
#include "../../cuda/sampler/row_product.h"
#include "../../cuda/sampler/sampler.h"
#include "../cuda_on_cpu/device_array.h"

namespace sampler_test {

using cuda_test::DeviceArray;
using cuda_test::must;

struct Kind {
  bool reads_itself = false, attention = true, condition = false, classes = false;
  int output_layers = 1;
  int weight_bytes = 4, row_mode = 0;
};

struct Draw {
  int batch = 1, first_sample = 0;
  bool guided = false;
  int blocks = 5, threads = 64, shared_bytes = 64 << 10;
  int cluster = 0;  // blocks of the cluster that computes the chain
  int top_k = 0;    // 0: all
  double top_p = 1, temperature = 1;
  std::vector<int64_t> known;  // [B, H, W], -1 to draw; or empty
};

struct Drawn {
  std::vector<int64_t> codes;  // [B, H, W]
  std::vector<float> logits;   // [B, H, W, K]
  bool staged_in_turn = false;
#if defined(VQ_STAGE_TIMES)
  std::vector<uint64_t> times;  // [W, blocks, stages, moments], of the last row
  int blocks = 0, stages = 0;
#endif
};

// Whether the inputs of a step's works do not fit into the buffer side by side.
inline bool staged_in_turn(const std::vector<unsigned char>& memory) {
  namespace kernels = vqvae2_fast::cuda::sampler;
  const auto& packed = *reinterpret_cast<const kernels::PackedProgram*>(memory.data());
  const kernels::Program& program = packed.program;
  const auto at = [&](int64_t offset) { return memory.data() + offset; };
  const auto* blocks = reinterpret_cast<const kernels::BlockProgram*>(at(program.blocks_offset));
  const auto* steps = reinterpret_cast<const kernels::Step*>(at(program.steps_offset));
  const auto* works = reinterpret_cast<const kernels::Work*>(at(program.works_offset));
  const int64_t capacity = program.buffer_floats;
  for (int b = 0; b < program.grid; ++b) {
    for (int s = blocks[b].first_step; s < blocks[b].end_step; ++s) {
      if (steps[s].kind != kernels::StepKind::kProducts) continue;
      int64_t inputs = 0;
      for (int w = steps[s].first; w < steps[s].end; ++w) {
        inputs += works[blocks[b].first_work + w].operation.padded_inputs;
      }
      if (inputs * program.network.rows > capacity) return true;
    }
  }
  return false;
}

// 3 x 5 map, 3 x 3 convolutions, 64 channels: a unit for every warp of every block, and more.
class RandomPrior {
 public:
  static constexpr int kHeight = 3, kWidth = 5, kCodes = 37, kChannels = 64, kInner = 40;
  static constexpr int kLayers = 4, kHeads = 4, kHeadDim = 8, kClasses = 3;
  static constexpr int kConditionHeight = 3, kConditionWidth = 1, kConditionChannels = 12;
  static constexpr int kMaxBatch = 8;

  explicit RandomPrior(const Kind& kind) : kind_(kind) {
    const int blocks = kLayers / 2, current = kind.reads_itself ? 2 : 1;
    integers_ = {{"height", kHeight},
                 {"width", kWidth},
                 {"num_embeddings", kCodes},
                 {"num_classes", kind.classes ? kClasses : 0},
                 {"num_labels", kind.classes ? kClasses + 1 : 0},
                 {"channels", kChannels},
                 {"inner_channels", kInner},
                 {"num_layers", kLayers},
                 {"layers_per_block", 2},
                 {"rows_above", 2},
                 {"first_column", -1},
                 {"num_columns", 3},
                 {"first_current", -1},
                 {"num_current", current},
                 {"stem.num_above", 3},
                 {"stem.num_left", 1},
                 {"num_heads", kind.attention ? kHeads : 0},
                 {"head_dim", kind.attention ? kHeadDim : 0},
                 {"attention.inner_channels", kind.attention ? kInner : 0},
                 {"num_output_layers", kind.output_layers},
                 {"output.inner_channels", kind.output_layers ? kInner : 0},
                 {"weight_bytes", kind.weight_bytes},
                 {"row_mode", kind.row_mode},
                 {"condition.channels", kind.condition ? kConditionChannels : 0},
                 {"condition.height", kind.condition ? kConditionHeight : 0},
                 {"condition.width", kind.condition ? kConditionWidth : 0}};
    random("stem.above", 3 * kCodes * kChannels, 1.0f);
    random("stem.left", kCodes * kChannels, 1.0f);
    random("stem.bias", kHeight * kWidth * kChannels, 0.3f);
    random("background", kHeight * kWidth * 2, 0.5f);
    taps_ = std::make_unique<DeviceArray<int32_t>>(std::vector<int32_t>{-1, -1, -1, 0, -1, 1});
    integers_["stem.above_taps"] = address(taps_->data());

    convolutions("conv1", current, kChannels, kInner);
    convolutions("conv2", current, kInner, 2 * kChannels);
    const int joined = 2 * kChannels + 2, merged = kChannels + 2, heads = kHeads * kHeadDim;
    if (kind.attention) {
      pointwise("key", blocks, joined, joined);
      pointwise("query", blocks, merged, merged);
      pointwise("out", blocks, kChannels + heads, kChannels);
      matrices("query_weight", blocks, merged, heads);
      matrices("key_value_weight", blocks, joined, 2 * heads);
    } else {
      matrices("merge", blocks, merged, kChannels);
    }
    if (kind.output_layers) pointwise("output", kind.output_layers, kChannels, kChannels);
    matrices("head", 1, kChannels, kCodes);
    integers_["classes"] = integers_["labels"] = integers_["condition.weight"] = 0;
    integers_["condition.features"] = 0;
    if (kind.classes) {
      random("classes", kLayers * (kClasses + 1) * 2 * kChannels, 0.5f);
      std::vector<int64_t> labels(kMaxBatch);
      for (int b = 0; b < kMaxBatch; ++b) labels[b] = b % (kClasses + 1);
      labels_ = std::make_unique<DeviceArray<int64_t>>(labels);
    }
    if (kind.condition) {
      above("condition", kLayers, 1, kConditionChannels, 2 * kChannels, ".weight");
      const int size = kConditionHeight * kConditionWidth * kConditionChannels;
      random("condition.features", kMaxBatch * size, 1.0f);
    }
  }

  Drawn draw(const Draw& draw) {
    std::map<std::string, int64_t> values = integers_;
    const auto number = [](double x) {
      int64_t bits;
      memcpy(&bits, &x, sizeof(bits));
      return bits;
    };
    if (labels_) values["labels"] = address(labels_->data() + draw.first_sample);
    if (kind_.condition) {
      values["condition.features"] += draw.first_sample * kConditionHeight * kConditionWidth *
                                      kConditionChannels * static_cast<int64_t>(sizeof(float));
    }
    const size_t positions = static_cast<size_t>(draw.batch) * kHeight * kWidth;
    DeviceArray<int64_t> codes{std::vector<int64_t>(positions)};
    DeviceArray<float> logits{std::vector<float>(positions * kCodes)};
    DeviceArray<int64_t> known{draw.known.empty() ? std::vector<int64_t>(1) : draw.known};
    DeviceArray<int32_t> too_large{std::vector<int32_t>(1)};
    values.insert({{"batch", draw.batch},
                   {"guided", draw.guided},
                   {"known", draw.known.empty() ? 0 : address(known.data())},
                   {"noise", 0},
                   {"seed", 3},
                   {"first_sample", draw.first_sample},
                   {"stream", 1},
                   {"temperature", number(draw.temperature)},
                   {"top_k", draw.top_k ? draw.top_k : kCodes},
                   {"top_p", number(draw.top_p)},
                   {"guidance", number(1.5)},
                   {"largest_logit", number(1e30)},
                   {"too_large", address(too_large.data())},
                   {"codes", address(codes.data())},
                   {"log_prob", 0},
                   {"logits", address(logits.data())},
                   {"card.blocks", draw.blocks},
                   {"card.threads", draw.threads},
                   {"card.shared_bytes", draw.shared_bytes},
                   {"card.row_blocks", draw.blocks},
                   {"card.cluster", draw.cluster},
                   {"workspace", 0}});
    int64_t sizes[5];
    with(values, [&](const char* const* names, const int64_t* of, int64_t count) {
      must(vq_sampler_sizes(names, of, count, sizes));
    });
#if defined(VQ_STAGE_TIMES)
    const size_t moments = vq_sampler_moments();
    DeviceArray<uint64_t> times{std::vector<uint64_t>(kWidth * sizes[2] * sizes[3] * moments)};
    values["stage_times"] = address(times.data());
#endif
    DeviceArray<unsigned char> workspace{std::vector<unsigned char>(sizes[0])};
    values["workspace"] = address(workspace.data());
    std::vector<unsigned char> program(sizes[1]);
    with(values, [&](const char* const* names, const int64_t* of, int64_t count) {
      must(vq_sampler_program(names, of, count, program.data()));
    });
    DeviceArray<unsigned char> on_card(program);
    for (int i = 0; i < kHeight; ++i) {
      must(vq_sampler_row(program.data(), on_card.data(), i, nullptr));
    }
    Drawn drawn;
    drawn.codes = codes.values();
    drawn.logits = logits.values();
    drawn.staged_in_turn = staged_in_turn(program);
#if defined(VQ_STAGE_TIMES)
    drawn.times = times.values();
    drawn.blocks = static_cast<int>(sizes[2]);
    drawn.stages = static_cast<int>(sizes[3]);
#endif
    return drawn;
  }

 private:
  static int64_t address(const void* pointer) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
  }

  template <typename Function>
  static void with(const std::map<std::string, int64_t>& values, const Function& function) {
    std::vector<const char*> names;
    std::vector<int64_t> of;
    for (const auto& [name, value] : values) {
      names.push_back(name.c_str());
      of.push_back(value);
    }
    function(names.data(), of.data(), static_cast<int64_t>(names.size()));
  }

  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / (1 << 23) - 1.0f;
  }

  static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
  }

  void random(const std::string& name, int64_t size, float scale) {
    std::vector<float> values(size);
    for (float& value : values) value = scale * next();
    arrays_.push_back(std::make_unique<DeviceArray<float>>(values));
    integers_[name] = address(arrays_.back()->data());
  }

  // Those of all layers, over two rows of three taps above, and some in the current row.
  void convolutions(const std::string& name, int current, int channels, int outputs) {
    above(name, kLayers, 2, 3 * channels, outputs);
    matrices(name, kLayers, current * channels, outputs);
  }

  // Weights of the pixel phase: any order of random numbers will do.
  void matrices(const std::string& name, int n, int inputs, int outputs) {
    const int64_t units = (outputs + 1) / 2, padded = (inputs + 31) / 32 * 32;
    const float scale = 1.0f / sqrtf(static_cast<float>(inputs));
    std::vector<uint32_t> words(n * units * padded * 2 * kind_.weight_bytes / 4);
    for (uint32_t& word : words) {
      word = bits_of(scale * next());
      if (kind_.weight_bytes == 2) word = word >> 16 | (bits_of(scale * next()) & 0xFFFF0000u);
    }
    words_.push_back(std::make_unique<DeviceArray<uint32_t>>(words));
    integers_[name + ".weight"] = address(words_.back()->data());
    random(name + ".bias", n * units * 2, 0.2f);
  }

  void pointwise(const std::string& name, int n, int inputs, int channels) {
    matrices(name + ".first", n, inputs, kInner);
    matrices(name + ".second", n, kInner, 2 * channels);
  }

  // Weights of the row phase.
  void above(const std::string& name, int n, int segments, int inputs, int outputs,
             const char* suffix = ".above") {
    const bool pairs = kind_.row_mode == 2;
    const float scale = 0.7f / sqrtf(static_cast<float>(segments * inputs));
    constexpr size_t kStep = vqvae2_fast::cuda::sampler::kStepInputs;
    const size_t padded = (inputs + kStep - 1) / kStep * kStep;
    const int a_word = pairs ? 2 : 1;
    std::vector<uint32_t> words(n * segments * padded * outputs / a_word);
    for (uint32_t& word : words) {
      word = bits_of(scale * next());
      if (pairs) word = word >> 16 | (bits_of(scale * next()) & 0xFFFF0000u);
    }
    words_.push_back(std::make_unique<DeviceArray<uint32_t>>(words));
    integers_[name + suffix] = address(words_.back()->data());
  }

  Kind kind_;
  uint32_t state_ = 1;
  std::map<std::string, int64_t> integers_;
  std::vector<std::unique_ptr<DeviceArray<float>>> arrays_;
  std::vector<std::unique_ptr<DeviceArray<uint32_t>>> words_;
  std::unique_ptr<DeviceArray<int32_t>> taps_;
  std::unique_ptr<DeviceArray<int64_t>> labels_;
};

}  // namespace sampler_test
