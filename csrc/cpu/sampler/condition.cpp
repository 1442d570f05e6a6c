// The conditioning stack. Its maps are known from the start, so it runs once per draw, as matrix
// products over padded maps.
#include "condition.h"

#include "../../common/bounds.h"
#include "../kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Row i of a stem over `codes` [h, w], added to `out` [w, channels].
void add_stem_row(const Kernels& kernels, const Condition& condition, const Condition::Map& map,
                  int64_t num_embeddings, const int64_t* codes, int64_t i, float* out) {
  const int64_t kernel = condition.kernel, half = kernel / 2, channels = condition.channels;
  for (int64_t j = 0; j < map.width; ++j) {
    float* sum = out + j * channels;
    kernels.add(sum, map.bias, sum, channels);
    for (int64_t t = 0; t < kernel * kernel; ++t) {
      const int64_t row = i + t / kernel - half, column = j + t % kernel - half;
      if (row < 0 || row >= map.height || column < 0 || column >= map.width) continue;
      const int64_t code = codes[row * map.width + column];
      kernels.add(sum, map.stem + (t * num_embeddings + code) * channels, sum, channels);
    }
  }
}

// out [B, h, w, outputs] of layer n over padded inputs; an item is one panel of one sample.
void convolve_item(const State& state, const Matrices& layers, int64_t n, int64_t kernel,
                   const PaddedMaps& in, float* out, int64_t item) {
  const int64_t panel = item % layers.panels, sample = item / layers.panels;
  const int64_t outputs = layers.outputs(), row_inputs = kernel * in.channels;
  float* c = out + sample * in.height * in.width * outputs + panel * kPanel;
  for (int64_t r = 0; r < kernel; ++r) {
    const bool first = r == 0;
    state.kernels.product(
        {.a = in.row(sample, r - kernel / 2),
         .a_group_stride = in.row_stride(),
         .a_stride = in.channels,
         .groups = in.height,
         .rows = in.width,
         .weights = layers.weight(n, panel) + r * panel_words(layers.format, row_inputs),
         .format = layers.format,
         .panels = 1,
         .inputs = row_inputs,
         .initial = first ? layers.bias(n) + panel * kPanel : c,
         .initial_group_stride = first ? 0 : in.width * outputs,
         .initial_stride = first ? 0 : outputs,
         .c = c,
         .c_group_stride = in.width * outputs,
         .c_stride = outputs});
  }
}

void run_stems(State& state, const ConditionScratch& scratch) {
  const Condition& condition = state.plan.condition;
  const Kernels& kernels = state.kernels;
  const int64_t channels = condition.channels;
  const float* coarser = nullptr;
  for (size_t m = 0; m < condition.maps.size(); ++m) {
    const Condition::Map& map = condition.maps[m];
    float* out = m + 1 < condition.maps.size() ? scratch.coarser[m].data() : state.features.data();
    state.team.share(state.batch * map.height, [&](int64_t item) {
      const int64_t sample = item / map.height, i = item % map.height;
      float* row = out + item * map.width * channels;
      add_stem_row(kernels, condition, map, state.plan.num_embeddings,
                   state.request.maps[m] + sample * map.height * map.width, i, row);
      if (!coarser) return;
      const Condition::Map& above = condition.maps[m - 1];
      const int64_t down = map.height / above.height, right = map.width / above.width;
      const float* from = coarser + (sample * above.height + i / down) * above.width * channels;
      for (int64_t j = 0; j < map.width; ++j) {
        kernels.add(row + j * channels, from + j / right * channels, row + j * channels, channels);
      }
    });
    coarser = out;
  }
}

void run_layers(State& state, const ConditionScratch& scratch) {
  const Condition& condition = state.plan.condition;
  const Kernels& kernels = state.kernels;
  const int64_t channels = condition.channels;
  const int64_t height = condition.maps.back().height, width = condition.maps.back().width;
  for (int64_t n = 0; n < condition.num_layers; ++n) {
    const PaddedMaps &inputs = *scratch.inputs, &inner = *scratch.inner;
    state.team.share(state.batch * height, [&](int64_t item) {
      kernels.elu(state.features.data() + item * width * channels,
                  inputs.row(item / height, item % height) + inputs.border * channels,
                  width * channels);
    });
    state.team.share(state.batch * condition.first.panels, [&](int64_t item) {
      convolve_item(state, condition.first, n, condition.kernel, inputs, scratch.first.data(),
                    item);
    });
    state.team.share(state.batch * height, [&](int64_t item) {
      kernels.elu(scratch.first.data() + item * width * inner.channels,
                  inner.row(item / height, item % height) + inner.border * inner.channels,
                  width * inner.channels);
    });
    state.team.share(state.batch * condition.second.panels, [&](int64_t item) {
      convolve_item(state, condition.second, n, condition.kernel, inner, scratch.second.data(),
                    item);
    });
    state.team.share(state.batch * height, [&](int64_t item) {
      for (int64_t j = 0; j < width; ++j) {
        float* features = state.features.data() + (item * width + j) * channels;
        kernels.gate(scratch.second.data() + (item * width + j) * condition.second.outputs(),
                     condition.second.panels, features, features, nullptr);
      }
    });
  }
}

}  // namespace

ConditionScratch::ConditionScratch(const Plan& plan, int64_t batch) {
  const Condition& condition = plan.condition;
  for (size_t m = 0; m + 1 < condition.maps.size(); ++m) {
    const Condition::Map& map = condition.maps[m];
    coarser.emplace_back(batch * map.height * map.width * condition.channels);
  }
  if (condition.num_layers == 0) return;
  const int64_t height = condition.maps.back().height, width = condition.maps.back().width;
  const int64_t half = condition.kernel / 2, num_inner = condition.first.outputs();
  inputs = std::make_unique<PaddedMaps>(batch, height, width, half, condition.channels);
  inner = std::make_unique<PaddedMaps>(batch, height, width, half, num_inner);
  first = Buffer(batch * height * width * num_inner);
  second = Buffer(batch * height * width * condition.second.outputs());
}

void compute_features(State& state, const ConditionScratch& scratch) {
  if (state.plan.condition.maps.empty()) return;
  run_stems(state, scratch);
  run_layers(state, scratch);
  const int64_t size = state.plan.condition.maps.back().width * state.plan.condition.channels;
  state.team.share(state.batch * state.plan.condition.maps.back().height, [&](int64_t item) {
    float* row = state.features.data() + item * size;
    for (int64_t c = 0; c < size; ++c) row[c] = within_bound(row[c]);
  });
}

}  // namespace vqvae2_fast::cpu::sampler
