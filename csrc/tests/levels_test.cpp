// Tests what must be the same, bit for bit, at every SIMD level: the sampler's kernels, the
// noise and the scalar quantisers, against the scalar level. Without torch; .ci/sanitizers and
// .ci/aarch64 build and run it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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

Floats product(int64_t rows, int64_t panels, int64_t inputs) {
  std::mt19937 random(6);
  const int64_t columns = panels * sampler::kPanel;
  const Floats a = search_data::gaussian(random, rows * inputs);
  const Floats weights = search_data::gaussian(random, inputs * columns);
  const Floats bias = search_data::gaussian(random, columns);
  Floats c(rows * columns);
  kernels().sampler.product({.a = a.data(),
                             .a_stride = inputs,
                             .rows = rows,
                             .weights = weights.data(),
                             .panel_stride = inputs * sampler::kPanel,
                             .panels = panels,
                             .inputs = inputs,
                             .initial = bias.data(),
                             .c = c.data(),
                             .c_stride = columns});
  return c;
}

// Integers of the largest magnitude, on which `maddubs` would saturate, and sums of them. Rows are
// `a_stride` bytes apart, so that they overlap if it is less than their inputs, as a convolution's
// windows do.
Floats integers(int64_t groups, int64_t rows, int64_t panels, int64_t inputs, int64_t a_stride) {
  std::mt19937 random(8);
  const int64_t columns = panels * sampler::kPanel;
  const int64_t stored = sampler::stored_inputs(sampler::Format::kQuads, inputs);
  const int64_t stride = sampler::panel_words(sampler::Format::kQuads, inputs);
  const int64_t a_group = (rows - 1) * a_stride + stored;
  std::vector<uint8_t> a(groups * a_group);
  for (uint8_t& byte : a) byte = static_cast<uint8_t>(random() % 2 ? 1 + random() % 255 : 255);
  Floats weights(panels * stride);
  for (int64_t p = 0; p < panels; ++p) {
    auto* header = reinterpret_cast<int32_t*>(weights.data() + p * stride);
    auto* bytes = reinterpret_cast<int8_t*>(header + sampler::kPanel);
    for (int64_t k = 0; k < inputs; ++k) {
      for (int64_t column = 0; column < sampler::kPanel; ++column) {
        const int weight = random() % 2 ? static_cast<int>(random() % 255) - 127 : 127;
        bytes[(k / 4 * sampler::kPanel + column) * 4 + k % 4] = static_cast<int8_t>(weight);
        header[column] -= 128 * weight;
      }
    }
  }
  const int64_t num_rows = groups * rows;
  Floats zeros(columns), ones(columns, 1.0f);
  std::vector<int32_t> initial(num_rows * columns);
  for (int32_t& value : initial) value = static_cast<int32_t>(random() % 1000);
  Floats sums(initial.size()), c(initial.size());
  memcpy(sums.data(), initial.data(), initial.size() * sizeof(int32_t));
  kernels().sampler.product({.a = a.data(),
                             .a_group_stride = a_group,
                             .a_stride = a_stride,
                             .groups = groups,
                             .rows = rows,
                             .weights = weights.data(),
                             .format = sampler::Format::kQuads,
                             .panel_stride = stride,
                             .panels = panels,
                             .inputs = inputs,
                             .initial = sums.data(),
                             .initial_group_stride = rows * columns,
                             .initial_stride = columns,
                             .c = sums.data(),
                             .c_group_stride = rows * columns,
                             .c_stride = columns});
  const auto* integers = reinterpret_cast<const int32_t*>(sums.data());
  for (int64_t r = 0; r < num_rows; ++r) {
    const uint8_t* row = a.data() + r / rows * a_group + r % rows * a_stride;
    for (int64_t column = 0; column < columns; ++column) {
      int32_t sum = initial[r * columns + column];
      for (int64_t k = 0; k < inputs; ++k) {
        const float* panel = weights.data() + column / sampler::kPanel * stride + sampler::kPanel;
        const auto* bytes = reinterpret_cast<const int8_t*>(panel);
        const int64_t at = (k / 4 * sampler::kPanel + column % sampler::kPanel) * 4 + k % 4;
        sum += (row[k] - 128) * bytes[at];
      }
      if (sum != integers[r * columns + column]) {
        printf("int8 products at %s: wrong sum\n", kernels().name);
        exit(1);
      }
    }
    kernels().sampler.dequantize(integers + r * columns, ones.data(), zeros.data(),
                                 c.data() + r * columns, columns);
  }
  return c;
}

// Ties, values beyond the range and both activations, and how many were beyond it.
Floats quantized() {
  Floats x(256), scales(256, 0.5f), out(2 * x.size() + 2);
  for (size_t i = 0; i < x.size(); ++i) x[i] = (static_cast<float>(i) - 128) * 0.75f;
  std::vector<uint8_t> bytes(out.size());
  const auto& table = kernels().sampler;
  out[512] = static_cast<float>(table.quantize(x.data(), scales.data(), bytes.data(), 256));
  out[513] =
      static_cast<float>(table.quantize_elu(x.data(), scales.data(), bytes.data() + 256, 256));
  for (size_t i = 0; i < 2 * x.size(); ++i) out[i] = bytes[i];
  return out;
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

// Values, gradients and indices of `levels` values of each of `dim` numbers, and of their signs.
Floats scalars(int64_t rows, int64_t dim, int64_t levels, bool symmetric, bool hard) {
  std::mt19937 random(6);
  const Floats z = search_data::gaussian(random, rows * dim);
  const Floats dvalues = search_data::gaussian(random, rows * dim);
  const auto column = [&](double value) {
    return Floats(dim + kColumnPadding, static_cast<float>(value));
  };
  const double steps = static_cast<double>(levels - 1), middle = symmetric ? 0 : levels / 2;
  const Floats shift = column(0.1), half = column(steps / 2), width = column(0.7 * steps);
  const Floats offset = column(symmetric ? steps / 2 + 0.5 : -0.5), slope = column(0.3);
  const Floats least = column(-middle), most = column(steps - middle);
  const std::vector<uint64_t> places(dim, 3);
  const Floats place = column(symmetric ? 1 : 3);
  const ScalarGrid grid = {.dim = dim,
                           .symmetric = symmetric,
                           .hard = hard,
                           .shift = shift.data(),
                           .half = half.data(),
                           .offset = offset.data(),
                           .least = least.data(),
                           .most = most.data(),
                           .width = width.data(),
                           .slope = slope.data(),
                           .place = place.data(),
                           .wide_places = symmetric ? places.data() : nullptr};
  Floats out(rows * (3 * dim + 2), NAN), digits(kDigitRows * dim);
  std::vector<int64_t> indices(rows), bits(rows);
  float *const dz = out.data() + rows * dim, *const signs = dz + rows * dim;
  for (const auto& [first, last] : {std::pair(int64_t{0}, rows / 2), std::pair(rows / 2, rows)}) {
    const ScalarQuantizeKernels& kernel = kernels().scalar_quantize;
    kernel.round(grid, z.data(), first, last, digits.data(), out.data(), {.wide = indices.data()});
    kernel.round_backward(grid, dvalues.data(), z.data(), first, last, dz);
    kernel.signs(z.data(), 0.5f, dim, first, last, signs, bits.data());
  }
  for (int64_t i = 0; i < rows; ++i) {
    signs[rows * dim + i] = static_cast<float>(indices[i]);
    signs[rows * dim + rows + i] = static_cast<float>(bits[i]);
  }
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
      compare(*level, "float32 product", [&] { return product(rows, 3, 37); });
      for (const int64_t inputs : {37, 1025}) {
        compare(*level, "product of integers",
                [&] { return integers(1, rows, 5, inputs, sampler::kQuad * inputs); });
      }
    }
    // Whole tiles and parts of them, in rows, groups and inputs.
    for (const int64_t rows : {3, 7, 16, 31, 50}) {
      for (const int64_t inputs : {20, 64, 100, 320}) {
        compare(*level, "product of groups of integers",
                [&] { return integers(3, rows, 2, inputs, 64); });
      }
    }
    compare(*level, "rounding to bytes", quantized);
    compare(*level, "gate", [] { return pointwise(true); });
    compare(*level, "ELU and exp", [] { return pointwise(false); });
    for (const int64_t channels : {1, 37, 80}) {
      compare(*level, "gated layer", [&] { return gated_layer(channels, false, false); });
      compare(*level, "gated layer with dropout and condition",
              [&] { return gated_layer(channels, true, true); });
    }
    for (const int64_t dim : {1, 4, 37}) {
      compare(*level, "tanh grid", [&] { return scalars(150, dim, 8, false, false); });
      compare(*level, "clamped grid", [&] { return scalars(5, dim, 5, false, true); });
      compare(*level, "symmetric grid", [&] { return scalars(150, dim, 4, true, true); });
    }
    compare(*level, "noise", noise);
    printf("%s: done\n", *level);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
