// The kernels of gated_layer.h: include inside a level file after its simd header.
#pragma once

#include "../counter_noise-inl.h"
#include "../simd/math-inl.h"
#include "gated_layer.h"

namespace vqvae2_fast::cpu::gated_layer {
namespace {

// Channels whose dropout factors are held at a time.
constexpr int64_t kPart = 4 * kShortNoiseBlock;

// Calls use(i, entries i..i + kLanes of each array as vectors) and stores what it returns. Arrays
// count as padded with zeros past `count`.
template <class Use, class... Arrays>
inline void for_each_vector(int64_t count, float* out, const Use& use, const Arrays*... arrays) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes) use(Vec::load(arrays + i)...).store(out + i);
  if (i == count) return;
  use(Vec::load_first(arrays + i, count - i)...).store_first(out + i, count - i);
}

// factors[c] = 1 / (1 - p) or 0 for channels first..first + kPart of a row.
inline void dropout_factors(const Activation& activation, int64_t row, int64_t first,
                            float* factors) {
  uint32_t words[kPart];
  fill_words<kShortNoiseBlock>(
      activation.seed, static_cast<uint32_t>(first / 4),
      static_cast<uint32_t>(row % activation.positions),
      activation.first_image + static_cast<uint32_t>(row / activation.positions),
      kPurposeDropout << 16, words);
  const float kept = 1 / (1 - activation.dropout_p);
  for (int64_t i = 0; i < kPart; ++i) {
    factors[i] = uniform_from_word(words[i]) >= activation.dropout_p ? kept : 0;
  }
}

// Calls use(offset from row `first`, count, factors) for parts of rows; factors is null without
// dropout.
template <class Use>
inline void for_each_part(const Activation& activation, int64_t channels, int64_t first,
                          int64_t last, const Use& use) {
  if (activation.dropout_p == 0) {
    use(0, (last - first) * channels, nullptr);
    return;
  }
  float factors[kPart];
  for (int64_t row = first; row < last; ++row) {
    for (int64_t c = 0; c < channels; c += kPart) {
      dropout_factors(activation, row, c, factors);
      use((row - first) * channels + c, channels - c < kPart ? channels - c : kPart, factors);
    }
  }
}

inline void activate(const Activation& activation, const float* x, int64_t channels, int64_t first,
                     int64_t last, float* y) {
  for_each_part(
      activation, channels, first, last, [&](int64_t at, int64_t count, const float* factors) {
        const bool elu = activation.elu;
        const auto activated = [elu](Vec value) { return elu ? elu_of(value) : value; };
        if (!factors) {
          for_each_vector(count, y + at, activated, x + at);
        } else {
          for_each_vector(
              count, y + at, [&](Vec value, Vec factor) { return activated(value) * factor; },
              x + at, factors);
        }
      });
}

inline void activate_backward(const Activation& activation, const float* x, const float* dy,
                              int64_t channels, int64_t first, int64_t last, float* dx) {
  for_each_part(
      activation, channels, first, last, [&](int64_t at, int64_t count, const float* factors) {
        const bool elu = activation.elu;
        const auto slope = [elu](Vec value) {
          const Vec one = Vec::broadcast(1.0f);
          return elu ? value.where_positive(one, exponential(value)) : one;
        };
        if (!factors) {
          for_each_vector(
              count, dx + at, [&](Vec value, Vec above) { return above * slope(value); }, x + at,
              dy + at);
        } else {
          for_each_vector(
              count, dx + at,
              [&](Vec value, Vec above, Vec factor) { return above * slope(value) * factor; },
              x + at, dy + at, factors);
        }
      });
}

inline void gate(const float* h, const float* condition, const float* x, int64_t channels,
                 float* out) {
  if (!condition) {
    for_each_vector(
        channels, out, [](Vec a, Vec b, Vec skip) { return a * sigmoid(b) + skip; }, h,
        h + channels, x);
    return;
  }
  for_each_vector(
      channels, out,
      [](Vec a, Vec b, Vec more_a, Vec more_b, Vec skip) {
        return (a + more_a) * sigmoid(b + more_b) + skip;
      },
      h, h + channels, condition, condition + channels, x);
}

inline void gate_backward(const float* dout, const float* h, const float* condition,
                          int64_t channels, float* dh) {
  const auto of_value = [](Vec above, Vec b) { return above * sigmoid(b); };
  const auto of_gate = [](Vec above, Vec a, Vec b) {
    const Vec gate = sigmoid(b);
    return above * a * (gate * (Vec::broadcast(1.0f) - gate));
  };
  if (!condition) {
    for_each_vector(channels, dh, of_value, dout, h + channels);
    for_each_vector(channels, dh + channels, of_gate, dout, h, h + channels);
    return;
  }
  for_each_vector(
      channels, dh, [&](Vec above, Vec b, Vec more_b) { return of_value(above, b + more_b); }, dout,
      h + channels, condition + channels);
  for_each_vector(
      channels, dh + channels,
      [&](Vec above, Vec a, Vec b, Vec more_a, Vec more_b) {
        return of_gate(above, a + more_a, b + more_b);
      },
      dout, h, h + channels, condition, condition + channels);
}

constexpr GatedLayer kKernels = {.activate = activate,
                                 .activate_backward = activate_backward,
                                 .gate = gate,
                                 .gate_backward = gate_backward};

}  // namespace
}  // namespace vqvae2_fast::cpu::gated_layer
