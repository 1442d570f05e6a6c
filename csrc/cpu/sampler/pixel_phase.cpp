// Pixel phase: one position at a time, the current row's taps and everything pointwise.
//
// All threads run this side by side, each on its own panels of outputs, channels, heads or samples,
// and meet at a barrier wherever one's outputs become another's inputs.
#include <string.h>

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

class Pixel {
 public:
  Pixel(State& state, int thread, int64_t i)
      : s(state),
        plan(state.plan),
        kernels(state.kernels),
        thread(thread),
        i(i),
        clock(state.request.profile, thread, state.team.size()) {}

  void draw_row() {
    const bool side_by_side = !plan.taps.reads_itself();
    for (j = 0; j < plan.width; ++j) {
      // Without a tap at its own position no convolution depends on the code before, or on another
      // layer at this position: they all go while the code before is being drawn.
      clock.start(i * plan.width + j);
      if (side_by_side) convolve_side_by_side();
      meet(Stage::kConvolutions);
      const Range channels = s.of_channels[thread];
      add_stem(channels);
      begin_block(0, channels);
      meet(Stage::kStem);
      for (int64_t block = 0; block < plan.num_blocks; ++block) {
        if (!side_by_side) convolve_in_turn(block);
        if (plan.attention.num_heads > 0) {
          attend(block);
        } else {
          merge(block);
        }
      }
      finish();
      draw_codes();
      clock.worked(Stage::kDraw);
    }
    s.team.barrier();
  }

 private:
  // All threads' work of a stage is done, and seen by all.
  void meet(Stage stage) {
    clock.worked(stage);
    s.team.barrier();
    clock.met(stage);
  }

  // c = bias + a times the thread's panels of matrix n.
  void multiply(const Matrices& m, int64_t n, Range panels, const float* a, int64_t a_stride,
                float* c) {
    if (panels.size() <= 0) return;
    kernels.product({a, 0, a_stride, 1, s.rows, m.weight(n, panels.begin), m.words,
                     m.inputs * m.words, panels.size(), m.inputs, m.bias(n) + panels.begin * kPanel,
                     0, 0, c + panels.begin * kPanel, 0, m.outputs(), m.scale(n, panels.begin)});
  }

  // Adds one current tap of one convolution. The tap at -d needs nothing that is nearer than d
  // columns, so its weights serve d columns each time they are read.
  void add_tap(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
               int64_t tap, Range panels) {
    if (panels.size() <= 0) return;
    const int64_t outputs = convolutions.outputs(), channels = convolutions.channels;
    const int64_t offset = plan.taps.first_current + tap;
    int64_t columns = 1;
    if (offset < 0) {
      if (j % -offset != 0 || j == 0) return;  // done before, or left of the map: zeros
      columns = plan.width - j < -offset ? plan.width - j : -offset;
    }
    const int64_t matrix = layer * plan.taps.num_current + tap;
    const float* weights = convolutions.current + (matrix * convolutions.panels + panels.begin) *
                                                      channels * convolutions.words;
    const float* scales = convolutions.scale(layer, panels.begin);
    float* c = out + (layer * s.rows * plan.width + j) * outputs + panels.begin * kPanel;
    const float* a = ring.at(layer, 0, i, j + offset);
    const int64_t sample_stride = plan.width * outputs;
    const bool once = s.reads_once && offset < -1;
    if (s.rows == 1) {  // columns as rows: one tile
      kernels.product({a, 0, channels, 1, columns, weights, convolutions.words,
                       channels * convolutions.words, panels.size(), channels, c, 0, outputs, c, 0,
                       outputs, scales, once});
    } else {
      kernels.product({a, channels, ring.sample_stride(), columns, s.rows, weights,
                       convolutions.words, channels * convolutions.words, panels.size(), channels,
                       c, outputs, sample_stride, c, outputs, sample_stride, scales, once});
    }
  }

  // All current taps of one convolution.
  void add_taps(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
                Range panels) {
    for (int64_t tap = 0; tap < plan.taps.num_current; ++tap) {
      add_tap(convolutions, ring, out, layer, tap, panels);
    }
  }

  float* output_at(const Buffer& out, const Convolutions& convolutions, int64_t layer, int64_t n) {
    return out.data() + ((layer * s.rows + n) * plan.width + j) * convolutions.outputs();
  }

  void activate_first(int64_t layer, Range panels) {
    const int64_t begin = panels.begin * kPanel;
    for (int64_t n = 0; n < s.rows; ++n) {
      kernels.elu(output_at(s.out1, plan.conv1, layer, n) + begin,
                  s.ring2.at(layer, n, i, j) + begin, panels.size() * kPanel);
    }
  }

  void convolve_side_by_side() {
    const int64_t last = plan.taps.num_current - 1;
    // Taps that serve several columns first, of all layers: what is read at every position then
    // comes round sooner, from the last-level cache if that holds it.
    for (int64_t tap = 0; tap < last; ++tap) {
      for (int64_t layer = 0; layer < plan.num_layers; ++layer) {
        add_tap(plan.conv1, s.ring1, s.out1.data(), layer, tap,
                s.of_convolutions[2 * layer][thread]);
        add_tap(plan.conv2, s.ring2, s.out2.data(), layer, tap,
                s.of_convolutions[2 * layer + 1][thread]);
      }
    }
    for (int64_t layer = 0; layer < plan.num_layers; ++layer) {
      const Range panels1 = s.of_convolutions[2 * layer][thread];
      const Range panels = s.of_convolutions[2 * layer + 1][thread];
      if (last >= 0) {
        add_tap(plan.conv1, s.ring1, s.out1.data(), layer, last, panels1);
        add_tap(plan.conv2, s.ring2, s.out2.data(), layer, last, panels);
      }
      activate_first(layer, panels1);
      for (int64_t n = 0; n < s.rows; ++n) {
        kernels.gate(
            output_at(s.out2, plan.conv2, layer, n) + panels.begin * kPanel, panels.size(), nullptr,
            s.gated.data() + (layer * s.rows + n) * plan.channels + panels.begin * kHalfPanel,
            nullptr);
      }
    }
  }

  // The layers of a block one after another: each needs the one before at this position.
  void convolve_in_turn(int64_t block) {
    const int64_t first = block * plan.layers_per_block, end = first + plan.layers_per_block;
    for (int64_t layer = first; layer < end; ++layer) {
      add_taps(plan.conv1, s.ring1, s.out1.data(), layer, s.of_conv1[0][thread]);
      activate_first(layer, s.of_conv1[0][thread]);
      meet(Stage::kConvolutions);
      const Range panels = s.of_conv2[0][thread];
      const int64_t begin = panels.begin * kHalfPanel;
      add_taps(plan.conv2, s.ring2, s.out2.data(), layer, panels);
      for (int64_t n = 0; n < s.rows; ++n) {
        float* y = s.y.data() + n * plan.channels + begin;
        float* next = layer + 1 < end ? s.ring1.at(layer + 1, n, i, j) + begin : nullptr;
        kernels.gate(output_at(s.out2, plan.conv2, layer, n) + panels.begin * kPanel, panels.size(),
                     y, y, next);
      }
      if (layer + 1 == end) end_layers(block, {begin, panels.end * kHalfPanel});
      meet(Stage::kConvolutions);
    }
  }

  void add_stem(Range channels) {
    if (channels.size() <= 0) return;
    const int64_t num_left = plan.stem.num_left;
    for (int64_t n = 0; n < s.rows; ++n) {
      const int64_t sample = n % s.batch;
      const int64_t* codes = s.request.codes + (sample * plan.height + i) * plan.width;
      float* x = s.x.data() + n * plan.channels + channels.begin;
      memcpy(x, s.stem_row.data() + (sample * plan.width + j) * plan.channels + channels.begin,
             channels.size() * sizeof(float));
      for (int64_t t = 0; t < num_left; ++t) {
        const int64_t column = j - num_left + t;
        if (column < 0) continue;
        const float* added =
            plan.stem.left + (t * plan.num_embeddings + codes[column]) * plan.channels;
        kernels.add(x, added + channels.begin, x, channels.size());
      }
    }
  }

  // x is known in these channels: as far into the block as a thread gets alone.
  void begin_block(int64_t block, Range channels) {
    if (channels.size() <= 0) return;
    const int64_t first = block * plan.layers_per_block;
    for (int64_t n = 0; n < s.rows; ++n) {
      const int64_t at = n * plan.channels + channels.begin;
      float* y = s.y.data() + at;
      memcpy(y, s.x.data() + at, channels.size() * sizeof(float));
      if (plan.taps.reads_itself()) {
        kernels.elu(y, s.ring1.at(first, n, i, j) + channels.begin, channels.size());
        continue;
      }
      for (int64_t layer = first; layer < first + plan.layers_per_block; ++layer) {
        kernels.elu(y, s.ring1.at(layer, n, i, j) + channels.begin, channels.size());
        kernels.add(y, s.gated.data() + layer * s.rows * plan.channels + at, y, channels.size());
      }
    }
    if (!plan.taps.reads_itself()) end_layers(block, channels);
  }

  // y is known in these channels: puts it where the rest of the block reads it.
  void end_layers(int64_t block, Range channels) {
    if (channels.size() <= 0) return;
    const float* background = plan.background + (i * plan.width + j) * 2;
    for (int64_t n = 0; n < s.rows; ++n) {
      const int64_t at = n * plan.channels + channels.begin;
      const float *x = s.x.data() + at, *y = s.y.data() + at;
      if (plan.attention.num_heads == 0) {
        float* merged = s.merged[block % 2].data() + n * (plan.channels + kPanel);
        memcpy(merged + channels.begin, y, channels.size() * sizeof(float));
        if (channels.begin == 0) memcpy(merged + plan.channels, background, 2 * sizeof(float));
        continue;
      }
      float* joined = s.joined.data() + n * plan.joined();
      float* activated = s.joined_activated.data() + n * plan.joined();
      memcpy(joined + channels.begin, x, channels.size() * sizeof(float));
      memcpy(joined + plan.channels + channels.begin, y, channels.size() * sizeof(float));
      kernels.elu(x, activated + channels.begin, channels.size());
      kernels.elu(y, activated + plan.channels + channels.begin, channels.size());
      memcpy(s.out_inputs.data() + n * plan.attention.out.first.inputs + channels.begin,
             activated + plan.channels + channels.begin, channels.size() * sizeof(float));
      if (channels.begin == 0) {
        memcpy(joined + 2 * plan.channels, background, 2 * sizeof(float));
        kernels.elu(joined + 2 * plan.channels, activated + 2 * plan.channels, kHalfPanel);
      }
    }
  }

  // x after a block is known in these channels.
  void end_block(int64_t block, Range channels) {
    if (block + 1 < plan.num_blocks) {
      begin_block(block + 1, channels);
      return;
    }
    if (channels.size() <= 0) return;
    for (int64_t n = 0; n < s.rows; ++n) {
      const int64_t at = n * plan.channels + channels.begin;
      kernels.elu(s.x.data() + at, s.activated.data() + at, channels.size());
    }
  }

  void merge(int64_t block) {
    const Range panels = s.of_merge[0][thread];
    multiply(plan.merge, block, panels, s.merged[block % 2].data(), plan.channels + kPanel,
             s.x.data());
    end_block(block, {panels.begin * kPanel, panels.end * kPanel});
    meet(Stage::kMerge);
  }

  // ELU of c in the thread's panels, in place.
  void activate(const Matrices& m, Range panels, float* c) {
    for (int64_t n = 0; n < s.rows; ++n) {
      float* values = c + n * m.outputs() + panels.begin * kPanel;
      kernels.elu(values, values, panels.size() * kPanel);
    }
  }

  // out = residual + the gates' product in the thread's panels.
  void gate(const Matrices& m, Range panels, const float* gates, const float* residual,
            int64_t residual_stride, float* out, float* activated) {
    if (panels.size() <= 0) return;
    const int64_t begin = panels.begin * kHalfPanel, channels = m.outputs() / 2;
    for (int64_t n = 0; n < s.rows; ++n) {
      kernels.gate(gates + n * m.outputs() + panels.begin * kPanel, panels.size(),
                   residual + n * residual_stride + begin, out + n * channels + begin,
                   activated ? activated + n * channels + begin : nullptr);
    }
  }

  void attend(int64_t block) {
    const Attention& a = plan.attention;
    const int64_t joined = plan.joined(), channels = plan.channels;
    const Range key1 = s.of_first[0][thread], query1 = s.of_first[1][thread];
    multiply(a.key.first, block, key1, s.joined_activated.data(), joined, s.key_inner.data());
    activate(a.key.first, key1, s.key_inner.data());
    multiply(a.query.first, block, query1, s.joined_activated.data() + channels, joined,
             s.query_inner.data());
    activate(a.query.first, query1, s.query_inner.data());
    meet(Stage::kFirst);

    const Range key2 = s.of_second[0][thread], query2 = s.of_second[1][thread];
    multiply(a.key.second, block, key2, s.key_inner.data(), a.key.first.outputs(),
             s.key_gates.data());
    gate(a.key.second, key2, s.key_gates.data(), s.joined.data(), joined, s.key_features.data(),
         nullptr);
    multiply(a.query.second, block, query2, s.query_inner.data(), a.query.first.outputs(),
             s.query_gates.data());
    gate(a.query.second, query2, s.query_gates.data(), s.joined.data() + channels, joined,
         s.query_features.data(), nullptr);
    meet(Stage::kSecond);

    multiply(a.query_weight, block, s.of_third[0][thread], s.query_features.data(),
             a.query.second.outputs() / 2, s.query.data());
    multiply(a.key_value_weight, block, s.of_third[1][thread], s.key_features.data(),
             a.key.second.outputs() / 2, s.key_value.data());
    meet(Stage::kWeights);

    attention_heads(s, thread, block, i * plan.width + j);
    meet(Stage::kHeads);

    const Range out1 = s.of_out_first[0][thread], out2 = s.of_out_second[0][thread];
    multiply(a.out.first, block, out1, s.out_inputs.data(), a.out.first.inputs, s.out_inner.data());
    activate(a.out.first, out1, s.out_inner.data());
    meet(Stage::kOutFirst);

    multiply(a.out.second, block, out2, s.out_inner.data(), a.out.first.outputs(),
             s.out_gates.data());
    gate(a.out.second, out2, s.out_gates.data(), s.y.data(), channels, s.x.data(), nullptr);
    end_block(block, {out2.begin * kHalfPanel, out2.end * kHalfPanel});
    meet(Stage::kOutSecond);
  }

  void finish() {
    const PointwiseLayers& layers = plan.output;
    for (int64_t n = 0; n < plan.num_output_layers; ++n) {
      const Range first = s.of_output_first[0][thread], second = s.of_output_second[0][thread];
      multiply(layers.first, n, first, s.activated.data(), plan.channels, s.out_inner.data());
      activate(layers.first, first, s.out_inner.data());
      meet(Stage::kOutput);
      multiply(layers.second, n, second, s.out_inner.data(), layers.first.outputs(),
               s.out_gates.data());
      gate(layers.second, second, s.out_gates.data(), s.x.data(), plan.channels, s.x.data(),
           s.activated.data());
      meet(Stage::kOutput);
    }
    multiply(plan.head, 0, s.of_head[0][thread], s.activated.data(), plan.channels,
             s.logits.data());
    meet(Stage::kHead);
  }

  void draw_codes() {
    const Request& request = s.request;
    const int64_t k = plan.num_embeddings, stride = plan.head.outputs();
    Drawer& drawer = *s.drawers[thread];
    for (int64_t b = s.of_samples[thread].begin; b < s.of_samples[thread].end; ++b) {
      const int64_t position = i * plan.width + j, at = b * plan.height * plan.width + position;
      const float* logits = s.logits.data() + b * stride;
      int64_t code = request.known ? request.known[at] : -1;
      if (code < 0) {
        const float* noise = request.noise ? request.noise + at * k : drawer.noise();
        if (!request.noise && request.rule.temperature != 0.0f) {
          s.table.gumbel_noise(request.seed, static_cast<uint32_t>(request.first_sample + b),
                               static_cast<uint32_t>(position), request.stream, k, drawer.noise());
        }
        code = drawer.draw(logits, request.guided ? logits + s.batch * stride : nullptr, noise);
      }
      request.codes[at] = code;
      if (request.log_prob) request.log_prob[at] = drawer.log_prob(logits, code);
      if (request.logits) memcpy(request.logits + at * k, logits, k * sizeof(float));
    }
  }

  State& s;
  const Plan& plan;
  const Kernels& kernels;
  const int thread;
  const int64_t i;
  int64_t j = 0;
  StageClock clock;
};

}  // namespace

void pixel_phase(State& state, int thread, int64_t i) { Pixel(state, thread, i).draw_row(); }

}  // namespace vqvae2_fast::cpu::sampler
