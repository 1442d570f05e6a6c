// Tests what must be the same, bit for bit, at every SIMD level: the sampler's kernels and the
// noise, against the scalar level. Without torch; .ci/sanitizers and .ci/aarch64 build and run it.
#include <stdio.h>
#include <string.h>

#include "../cpu/kernels.h"
#include "search_data.h"

namespace {

using namespace vqvae2_fast::cpu;
using search_data::Floats;

int failures = 0;

void check_same(const Floats& actual, const Floats& expected, const char* what) {
  if (memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)) == 0) return;
  ++failures;
  printf("FAILED at %s: %s is not that of scalar\n", kernels().name, what);
}

// Calls compute() at the scalar level and at this one.
template <class Compute>
void compare(const char* level, const char* what, const Compute& compute) {
  set_simd_level("scalar");
  const Floats expected = compute();
  set_simd_level(level);
  check_same(compute(), expected, what);
}

Floats product(int64_t words, int64_t rows, int64_t panels, int64_t inputs) {
  std::mt19937 random(6);
  const int64_t columns = panels * sampler::kPanel;
  const Floats a = search_data::gaussian(random, rows * inputs);
  Floats weights = search_data::gaussian(random, panels * inputs * words);
  const Floats bias = search_data::gaussian(random, columns);
  if (words == sampler::kQuarterPanel) {  // any bytes
    const size_t size = weights.size() * sizeof(float);
    auto* bytes = reinterpret_cast<int8_t*>(weights.data());
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<int8_t>(random() % 255 - 127);
  }
  const Floats scales = search_data::gaussian(random, columns);
  Floats c(rows * columns);
  kernels().sampler.product({.a = a.data(),
                             .a_stride = inputs,
                             .rows = rows,
                             .weights = weights.data(),
                             .words = words,
                             .panel_stride = inputs * words,
                             .panels = panels,
                             .inputs = inputs,
                             .initial = bias.data(),
                             .c = c.data(),
                             .c_stride = columns,
                             .scales = scales.data()});
  return c;
}

Floats pointwise(bool gate) {
  std::mt19937 random(7);
  Floats x = search_data::gaussian(random, 4 * sampler::kPanel);
  for (float& value : x) value *= 30;
  Floats out(2 * x.size());
  if (gate) {
    kernels().sampler.gate(x.data(), 4, nullptr, out.data(), out.data() + x.size());
  } else {
    kernels().sampler.elu(x.data(), out.data(), static_cast<int64_t>(x.size()));
    kernels().sampler.exp_shifted(x.data(), 100.0f, out.data() + x.size(),
                                  static_cast<int64_t>(x.size()));
  }
  return out;
}

// Forward and backward of rows whose channels fill neither a vector nor a block of noise.
Floats gated_layer(int64_t channels, bool dropout, bool condition) {
  std::mt19937 random(8);
  const GatedLayer& layer = kernels().gated_layer;
  const int64_t rows = 3;
  const Activation activation = {
      .elu = true, .dropout_p = dropout ? 0.25f : 0.0f, .seed = 9, .positions = 2};
  const Floats x = search_data::gaussian(random, rows * channels);
  const Floats h = search_data::gaussian(random, 2 * channels);
  const Floats added = search_data::gaussian(random, 2 * channels);
  Floats out((2 * rows + 3) * channels);
  float* target = out.data();
  layer.activate(activation, x.data(), channels, 0, rows, target);
  target += rows * channels;
  layer.activate_backward(activation, x.data(), x.data(), channels, 0, rows, target);
  target += rows * channels;
  const float* of_row = condition ? added.data() : nullptr;
  layer.gate(h.data(), of_row, x.data(), channels, target);
  layer.gate_backward(x.data(), h.data(), of_row, channels, target + channels);
  return out;
}

Floats noise() {
  Floats values(133);
  kernels().gumbel_noise(5, 6, 7, 1, static_cast<int64_t>(values.size()), values.data());
  return values;
}

}  // namespace

int main() {
  for (const char* const* level = simd_levels(); *level; ++level) {
    for (const int64_t rows : {1, 3, 13}) {
      compare(*level, "float32 product", [&] { return product(sampler::kPanel, rows, 3, 37); });
      compare(*level, "int8 product", [&] { return product(sampler::kQuarterPanel, rows, 3, 37); });
      compare(*level, "bfloat16 product",
              [&] { return product(sampler::kHalfPanel, rows, 3, 37); });
    }
    compare(*level, "gate", [] { return pointwise(true); });
    compare(*level, "ELU and exp", [] { return pointwise(false); });
    for (const int64_t channels : {1, 37, 80}) {
      compare(*level, "gated layer", [&] { return gated_layer(channels, false, false); });
      compare(*level, "gated layer with dropout and condition",
              [&] { return gated_layer(channels, true, true); });
    }
    compare(*level, "noise", noise);
    printf("%s: done\n", *level);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
