// Pixel phase: one step at a time, which is a position, one in each of several rows, or several
// columns of known codes. This file has the pointwise part of the network and the attention; the
// rest of the class is in pixel_convolutions.cpp, pixel_integers.cpp and pixel_draw.cpp.
#include <string.h>

#include <algorithm>

#include "../../common/bounds.h"
#include "pixel.h"

namespace vqvae2_fast::cpu::sampler {

Pixel::Pixel(State& state, int thread_, Range times_)
    : s(state),
      plan(state.plan),
      kernels(state.kernels),
      thread(thread_),
      times(times_),
      along_row(state.columns > 1),
      clock(state.request.profile, thread_, state.team.size()) {
  look_up_shares();
}

void Pixel::look_up_shares() {
  const int active = s.team.active();
  size_t n = 0;
  while (s.shares[n].threads > active) ++n;
  shares = &s.shares[n];
}

void Pixel::go_to(int64_t to) {
  const Schedule& schedule = s.schedule;
  time = to;
  segment_begin = schedule.segment_begin(time);
  segment_first_row = schedule.first_row(segment_begin);
  i = schedule.first_row(time);
  j = schedule.column(i, time);
  positions = along_row ? std::min(plan.width - j, s.columns) : schedule.end_row(time) - i;
}

bool Pixel::draw() {
  // Without a tap at its own position no convolution depends on the code before, or on another
  // layer at this position: they all run while the code before is being drawn. Of several columns
  // they depend on the columns before, and so on the layers before.
  const bool layers_at_once = s.layers_at_once();
  for (int64_t next = times.begin; next < times.end;) {
    go_to(next);
    clock.start(i * plan.width + j);
    if (layers_at_once) convolve_layers_at_once();
    if (!along_row) meet(Stage::kConvolutions);  // the codes before are there
    const Range channels = shares->of_channels[thread];
    add_stem(channels);
    begin_block(0, channels);
    // All that the threads did before is done, so their number may change here.
    s.pace.mark(thread);
    if (thread == 0) s.pace.choose();
    meet(Stage::kStem);
    if (!s.team.is_active(thread)) return false;
    if (shares->threads != s.team.active()) look_up_shares();
    if (thread == 0) s.pace.measure();
    for (int64_t block = 0; block < plan.num_blocks; ++block) {
      if (!layers_at_once) convolve_in_turn(block);
      if (plan.attention.num_heads > 0) {
        attend(block);
      } else {
        merge(block);
      }
    }
    finish();
    if (!along_row) draw_codes();
    clock.worked(Stage::kDraw);
    record();
    next += along_row ? positions : 1;
    if (thread == 0) ++s.steps;
  }
  s.team.barrier();
  return true;
}

void Pixel::meet(Stage stage) {
  clock.worked(stage);
  s.team.barrier();
  clock.met(stage);
}

// The thread's share of `count` items.
Range Pixel::share_of(int64_t count) const {
  const int threads = shares->threads;
  return {count * thread / threads, count * (thread + 1) / threads};
}

// c = bias + a times the thread's panels of matrix n.
void Pixel::multiply(const Matrices& m, int64_t n, Range panels, const float* a, int64_t a_stride,
                     float* c) {
  if (panels.size() <= 0) return;
  if (m.format == Format::kQuads) {
    multiply_integers(m, n, panels, a, a_stride, c);
    return;
  }
  kernels.product({.a = a,
                   .a_stride = a_stride,
                   .rows = num_rows(),
                   .weights = m.weight(n, panels.begin),
                   .format = m.format,
                   .panel_stride = m.panel_stride(),
                   .panels = panels.size(),
                   .inputs = m.inputs,
                   .initial = m.bias(n) + panels.begin * kPanel,
                   .c = c + panels.begin * kPanel,
                   .c_stride = m.outputs()});
}

void Pixel::add_stem(Range channels) {
  if (channels.size() <= 0) return;
  const int64_t num_left = plan.stem.num_left;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const int64_t k = r / s.rows, sample = r % s.rows % s.batch, column = column_of(k);
    const int64_t* codes = s.request.codes + (sample * plan.height + row_of(k)) * plan.width;
    float* x = s.x.data() + r * plan.channels + channels.begin;
    memcpy(x, s.stem_at(offset_of(k), segment_row_of(k), sample) + channels.begin,
           channels.size() * sizeof(float));
    for (int64_t t = 0; t < num_left; ++t) {
      const int64_t left = column - num_left + t;
      if (left < 0) continue;
      const float* added = plan.stem.left + (t * plan.num_embeddings + codes[left]) * plan.channels;
      kernels.add(x, added + channels.begin, x, channels.size());
    }
  }
}

// Once x is known in these channels, computes what depends only on them.
void Pixel::begin_block(int64_t block, Range channels) {
  if (channels.size() <= 0) return;
  const int64_t first = block * plan.layers_per_block;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const int64_t at = r * plan.channels + channels.begin;
    float* y = s.y.data() + at;
    memcpy(y, s.x.data() + at, channels.size() * sizeof(float));
    if (!s.layers_at_once()) {
      put(s.ring1, first, r, channels.begin, y, channels.size());
      continue;
    }
    for (int64_t layer = first; layer < first + plan.layers_per_block; ++layer) {
      put(s.ring1, layer, r, channels.begin, y, channels.size());
      kernels.add(y, s.gated.data() + layer * num_rows() * plan.channels + at, y, channels.size());
    }
  }
  if (s.layers_at_once()) end_layers(block, channels);
}

// Once y is known in these channels, puts it where the rest of the block reads it.
void Pixel::end_layers(int64_t block, Range channels) {
  if (channels.size() <= 0) return;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const float* background = plan.background + position_of(r / s.rows) * 2;
    const int64_t at = r * plan.channels + channels.begin;
    const float *x = s.x.data() + at, *y = s.y.data() + at;
    if (plan.attention.num_heads == 0) {
      float* merged = s.merged[block % 2].data() + r * (plan.channels + kPanel);
      for (int64_t c = 0; c < channels.size(); ++c) merged[channels.begin + c] = within_bound(y[c]);
      if (channels.begin == 0) memcpy(merged + plan.channels, background, 2 * sizeof(float));
      continue;
    }
    float* joined = s.joined.data() + r * plan.joined();
    float* activated = s.joined_activated.data() + r * plan.joined();
    memcpy(joined + channels.begin, x, channels.size() * sizeof(float));
    memcpy(joined + plan.channels + channels.begin, y, channels.size() * sizeof(float));
    kernels.elu(x, activated + channels.begin, channels.size());
    kernels.elu(y, activated + plan.channels + channels.begin, channels.size());
    memcpy(s.out_inputs.data() + r * plan.attention.out.first.inputs + channels.begin,
           activated + plan.channels + channels.begin, channels.size() * sizeof(float));
    if (channels.begin == 0) {
      memcpy(joined + 2 * plan.channels, background, 2 * sizeof(float));
      kernels.elu(joined + 2 * plan.channels, activated + 2 * plan.channels, kHalfPanel);
    }
  }
}

// Called when x after a block is known in these channels.
void Pixel::end_block(int64_t block, Range channels) {
  if (block + 1 < plan.num_blocks) {
    begin_block(block + 1, channels);
    return;
  }
  if (channels.size() <= 0) return;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const int64_t at = r * plan.channels + channels.begin;
    kernels.elu(s.x.data() + at, s.activated.data() + at, channels.size());
  }
}

void Pixel::merge(int64_t block) {
  const Range panels = shares->of_merge[0][thread];
  multiply(plan.merge, block, panels, s.merged[block % 2].data(), plan.channels + kPanel,
           s.x.data());
  end_block(block, {panels.begin * kPanel, panels.end * kPanel});
  meet(Stage::kMerge);
}

// ELU of c in the thread's panels, in place.
void Pixel::activate(const Matrices& m, Range panels, float* c) {
  for (int64_t r = 0; r < num_rows(); ++r) {
    float* values = c + r * m.outputs() + panels.begin * kPanel;
    kernels.elu(values, values, panels.size() * kPanel);
  }
}

// out = residual + the gates' product in the thread's panels.
void Pixel::gate(const Matrices& m, Range panels, const float* gates, const float* residual,
                 int64_t residual_stride, float* out, float* activated) {
  if (panels.size() <= 0) return;
  const int64_t begin = panels.begin * kHalfPanel, channels = m.outputs() / 2;
  for (int64_t r = 0; r < num_rows(); ++r) {
    kernels.gate(gates + r * m.outputs() + panels.begin * kPanel, panels.size(),
                 residual + r * residual_stride + begin, out + r * channels + begin,
                 activated ? activated + r * channels + begin : nullptr);
  }
}

void Pixel::attend(int64_t block) {
  const Attention& a = plan.attention;
  const int64_t joined = plan.joined(), channels = plan.channels;
  const Range key1 = shares->of_first[0][thread], query1 = shares->of_first[1][thread];
  multiply(a.key.first, block, key1, s.joined_activated.data(), joined, s.key_inner.data());
  activate(a.key.first, key1, s.key_inner.data());
  multiply(a.query.first, block, query1, s.joined_activated.data() + channels, joined,
           s.query_inner.data());
  activate(a.query.first, query1, s.query_inner.data());
  meet(Stage::kFirst);

  const Range key2 = shares->of_second[0][thread], query2 = shares->of_second[1][thread];
  multiply(a.key.second, block, key2, s.key_inner.data(), a.key.first.outputs(),
           s.key_gates.data());
  gate(a.key.second, key2, s.key_gates.data(), s.joined.data(), joined, s.key_features.data(),
       nullptr);
  multiply(a.query.second, block, query2, s.query_inner.data(), a.query.first.outputs(),
           s.query_gates.data());
  gate(a.query.second, query2, s.query_gates.data(), s.joined.data() + channels, joined,
       s.query_features.data(), nullptr);
  meet(Stage::kSecond);

  multiply(a.query_weight, block, shares->of_third[0][thread], s.query_features.data(),
           a.query.second.outputs() / 2, s.query.data());
  multiply(a.key_value_weight, block, shares->of_third[1][thread], s.key_features.data(),
           a.key.second.outputs() / 2, s.key_value.data());
  meet(Stage::kWeights);

  attention_heads(s, thread, shares->of_heads[thread], block, position_of(0), positions);
  meet(Stage::kHeads);

  const Range out1 = shares->of_out_first[0][thread], out2 = shares->of_out_second[0][thread];
  multiply(a.out.first, block, out1, s.out_inputs.data(), a.out.first.inputs, s.out_inner.data());
  activate(a.out.first, out1, s.out_inner.data());
  meet(Stage::kOutFirst);

  multiply(a.out.second, block, out2, s.out_inner.data(), a.out.first.outputs(),
           s.out_gates.data());
  gate(a.out.second, out2, s.out_gates.data(), s.y.data(), channels, s.x.data(), nullptr);
  end_block(block, {out2.begin * kHalfPanel, out2.end * kHalfPanel});
  meet(Stage::kOutSecond);
}

void Pixel::finish() {
  const PointwiseLayers& layers = plan.output;
  for (int64_t n = 0; n < plan.num_output_layers; ++n) {
    const Range first = shares->of_output_first[0][thread],
                second = shares->of_output_second[0][thread];
    multiply(layers.first, n, first, s.activated.data(), plan.channels, s.out_inner.data());
    activate(layers.first, first, s.out_inner.data());
    meet(Stage::kOutput);
    multiply(layers.second, n, second, s.out_inner.data(), layers.first.outputs(),
             s.out_gates.data());
    gate(layers.second, second, s.out_gates.data(), s.x.data(), plan.channels, s.x.data(),
         s.activated.data());
    meet(Stage::kOutput);
  }
  multiply(plan.head, 0, shares->of_head[0][thread], s.activated.data(), plan.channels,
           s.logits.data());
  meet(Stage::kHead);
}

bool pixel_phase(State& state, int thread, Range times) {
  return Pixel(state, thread, times).draw();
}

}  // namespace vqvae2_fast::cpu::sampler
