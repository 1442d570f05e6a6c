// Tests the training kernels, which sum in an order that depends on the SIMD level: they must be
// near the scalar level, and stay inside memory of exactly the size that they ask for. Without
// torch; .ci/sanitizers and .ci/aarch64 build and run it.
#include <math.h>
#include <stdio.h>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "search_data.h"

namespace {

using namespace vqvae2_fast::cpu;
using search_data::Floats;

int failures = 0;

// Calls compute() at the scalar level and at this one.
template <class Compute>
void compare(const char* level, const char* what, const Compute& compute) {
  set_simd_level("scalar");
  const Floats expected = compute();
  set_simd_level(level);
  const Floats actual = compute();
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = fmax(largest, fabs(expected[i]));
    const double difference = fabs(actual[i] - expected[i]);
    if (!(difference <= error)) error = difference;  // NaN too
  }
  if (error <= 1e-5 * largest) return;
  ++failures;
  printf("FAILED at %s: %s is %g from scalar, of %g\n", level, what, error, largest);
}

Floats attention(int64_t length, int64_t dim, int64_t value_dim, bool on_logits) {
  std::mt19937 random(9);
  const Floats q = search_data::gaussian(random, length * dim);
  const Floats k = search_data::gaussian(random, length * dim);
  const Floats v = search_data::gaussian(random, length * value_dim);
  const Floats dout = search_data::gaussian(random, length * value_dim);
  const AttentionHead head = {.q = {q.data(), dim, 1},
                              .k = {k.data(), 1, length},
                              .v = {v.data(), value_dim, 1},
                              .length = length,
                              .dim = dim,
                              .value_dim = value_dim,
                              .scale = 0.5f,
                              .dropout_p = 0.25f,
                              .on_logits = on_logits,
                              .seed = 5,
                              .group = 3};
  const AttentionKernels& kernel = kernels().attention;
  Floats results(2 * length * (dim + value_dim));
  float* const dq = results.data() + length * value_dim;
  float* const dk = dq + length * dim;
  {
    const auto memory = aligned<float>(kernel.workspace(length, dim, value_dim, false));
    kernel.forward(head, results.data(), value_dim, memory.get());
  }
  const auto memory = aligned<float>(kernel.workspace(length, dim, value_dim, true));
  kernel.backward(head, {dout.data(), value_dim, 1}, dq, dk, dk + length * dim, dim, value_dim,
                  memory.get());
  return results;
}

Floats pointwise(int64_t rows, int64_t inputs, int64_t outputs, bool normed) {
  std::mt19937 random(10);
  const Floats x = search_data::gaussian(random, rows * inputs);
  const Floats dy = search_data::gaussian(random, rows * outputs);
  const Floats v = search_data::gaussian(random, outputs * inputs);
  const Floats bias = search_data::gaussian(random, outputs);
  const PointwiseLayer layer = {
      .activation = {.elu = true, .dropout_p = 0.25f, .seed = 7, .positions = 5},
      .v = v.data(),
      .g = normed ? bias.data() : nullptr,
      .outputs = outputs,
      .inputs = inputs};
  const PointwiseKernels& kernel = kernels().pointwise;
  const auto memory = aligned<float>(kernel.workspace(outputs, inputs));
  const auto packed = aligned<float>(kernel.packed_floats(outputs, inputs));
  const auto part = aligned<float>(kernel.part_floats(outputs, inputs));
  Floats results(rows * (inputs + outputs) + outputs * (inputs + 1));
  float* const dx = results.data() + rows * outputs;
  float* const dv = dx + rows * inputs;
  kernel.pack(layer, false, packed.get());
  kernel.forward(layer, packed.get(), bias.data(), x.data(), 0, rows, memory.get(), results.data());
  kernel.pack(layer, true, packed.get());
  kernel.backward(layer, packed.get(), dy.data(), x.data(), 0, rows, memory.get(), part.get(), dx);
  kernel.weight_gradient(layer, part.get(), 1, 0, outputs, dv, dv + outputs * inputs);
  return results;
}

Floats code_loss(int64_t positions, int64_t num_codes, int64_t channels) {
  std::mt19937 random(11);
  const Floats features = search_data::gaussian(random, positions * channels);
  const Floats weight = search_data::gaussian(random, num_codes * channels);
  const Floats bias = search_data::gaussian(random, num_codes);
  std::vector<int64_t> codes(static_cast<size_t>(positions));
  for (int64_t& code : codes) code = static_cast<int64_t>(random()) % num_codes;
  const PointwiseKernels& layers = kernels().pointwise;
  const CodeLossKernels& kernel = kernels().code_loss;
  const PointwiseLayer layer = {.v = weight.data(), .outputs = num_codes, .inputs = channels};
  const auto packed = aligned<float>(layers.packed_floats(num_codes, channels));
  const auto packed_backward = aligned<float>(layers.packed_floats(num_codes, channels));
  layers.pack(layer, false, packed.get());
  layers.pack(layer, true, packed_backward.get());
  const CodeLoss loss = {.features = features.data(),
                         .bias = bias.data(),
                         .codes = codes.data(),
                         .num_codes = num_codes,
                         .channels = channels,
                         .scale = 0.5f,
                         .packed = packed.get(),
                         .packed_backward = packed_backward.get()};
  const auto memory = aligned<float>(kernel.workspace(num_codes, channels));
  const auto part = aligned<float>(layers.part_floats(num_codes, channels));
  Floats results(positions * channels + num_codes * (channels + 1) + 1);
  float* const dbias = results.data() + positions * channels;
  float* const dweight = dbias + num_codes;
  const double nats =
      kernel.rows(loss, 0, positions, memory.get(), part.get(), dbias, results.data());
  results.back() = static_cast<float>(nats / static_cast<double>(positions));
  layers.weight_gradient(layer, part.get(), 1, 0, num_codes, dweight, nullptr);
  return results;
}

// A layout [P, rows, columns] in rows, or in panels.
winograd::Points points_of(int64_t rows, int64_t columns, bool in_panels) {
  const int64_t panel = in_panels ? kernels().products.panel : columns;
  const int64_t panels = (columns + panel - 1) / panel;
  return {.stride_point = panels * panel * rows,
          .stride_row = panel,
          .panel = panel,
          .stride_panel = rows * panel};
}

// A convolution 3x3 "same" and its adjoints, by tiles and products: outputs, dx, dv.
Floats tiles(int64_t height, int64_t width, int64_t inputs, int64_t outputs) {
  constexpr int64_t kPoints = 36;
  std::mt19937 random(12);
  const Floats x = search_data::gaussian(random, height * width * inputs);
  const Floats v = search_data::gaussian(random, outputs * inputs * 9);
  const winograd::Transforms& transforms = kernels().winograd3;
  const Products& products = kernels().products;
  const int64_t rows = (height + 3) / 4, columns = (width + 3) / 4, count = rows * columns;
  const auto map_of = [&](int64_t channels) {
    return winograd::Map{.batch = 1,
                         .height = height,
                         .width = width,
                         .channels = channels,
                         .stride_batch = height * width * channels,
                         .stride_row = width * channels,
                         .stride_column = channels,
                         .tile_rows = rows,
                         .tile_columns = columns};
  };
  const winograd::Map in = map_of(inputs), out = map_of(outputs);
  const winograd::Weight weight = {.v = v.data(), .outputs = outputs, .inputs = inputs, .live = 3};
  // Vectors of exactly the floats that a layout needs.
  const auto memory = [&](const winograd::Points& layout) {
    return Floats(static_cast<size_t>(kPoints * layout.stride_point));
  };
  const auto a_layout = points_of(count, inputs, false);
  const auto a_panels = points_of(count, inputs, true);
  const auto u_layout = points_of(inputs, outputs, true);
  const auto ut_layout = points_of(outputs, inputs, true);
  const auto m_layout = points_of(count, outputs, false);
  const auto du_layout = points_of(outputs, inputs, false);
  Floats a = memory(a_layout), packed = memory(a_panels), u = memory(u_layout);
  Floats ut = memory(ut_layout), m = memory(m_layout), du = memory(du_layout);
  Floats results(static_cast<size_t>(height * width * (inputs + outputs) + outputs * inputs * 9));
  float* const dx = results.data() + height * width * outputs;
  float* const dv = dx + height * width * inputs;

  transforms.input(in, x.data(), 1, 1, 0, count, a_layout, a.data());
  transforms.input(in, x.data(), 1, 1, 0, count, a_panels, packed.data());
  transforms.weight(weight, true, 0, outputs, u_layout, u.data());
  transforms.weight(weight, false, 0, outputs, ut_layout, ut.data());
  for (int64_t p = 0; p < kPoints; ++p) {
    products.along({.rows = count,
                    .columns = outputs,
                    .depth = inputs,
                    .a = a.data() + p * a_layout.stride_point,
                    .a_stride = inputs,
                    .panels = u.data() + p * u_layout.stride_point,
                    .panel_stride = u_layout.stride_panel,
                    .c = m.data() + p * m_layout.stride_point,
                    .c_stride = outputs});
  }
  transforms.output(out, m.data(), m_layout, nullptr, 0, count, results.data());
  // The outputs serve as their own gradient.
  transforms.output_adjoint(out, results.data(), 0, count, m_layout, m.data());
  for (int64_t p = 0; p < kPoints; ++p) {
    const float* const dm = m.data() + p * m_layout.stride_point;
    products.across({.rows = outputs,
                     .columns = inputs,
                     .depth = count,
                     .a = dm,
                     .a_stride = outputs,
                     .panels = packed.data() + p * a_panels.stride_point,
                     .panel_stride = a_panels.stride_panel,
                     .c = du.data() + p * du_layout.stride_point,
                     .c_stride = inputs});
    products.along({.rows = count,
                    .columns = inputs,
                    .depth = outputs,
                    .a = dm,
                    .a_stride = outputs,
                    .panels = ut.data() + p * ut_layout.stride_point,
                    .panel_stride = ut_layout.stride_panel,
                    .c = a.data() + p * a_layout.stride_point,
                    .c_stride = inputs});
  }
  const winograd::MapPart whole = {
      .first_row = 0, .last_row = height, .first_channel = 0, .last_channel = inputs};
  transforms.input_adjoint(in, a.data(), a_layout, 1, 1, 0, count, whole, dx);
  transforms.weight_adjoint(weight, false, du.data(), du_layout, 0, outputs, dv, nullptr);
  return results;
}

// A convolution of patches and its gradients, in memory of exactly the sizes asked for.
Floats patches(const patch_conv::Shape& shape) {
  std::mt19937 random(17);
  const patch_conv::Kernels& kernel = kernels().patch_conv;
  const int64_t positions = shape.height * shape.width;
  const int64_t large_size = positions * shape.stride * shape.stride * shape.channels;
  const int64_t small_size = positions * shape.outputs, taps = shape.kernel * shape.kernel;
  const int64_t weight_size = shape.outputs * shape.channels * taps;
  const Floats large = search_data::gaussian(random, large_size);
  const Floats small = search_data::gaussian(random, small_size);
  const Floats weight = search_data::gaussian(random, weight_size);
  const Floats bias = search_data::gaussian(random, shape.outputs + shape.channels);
  Floats results(static_cast<size_t>(large_size + small_size + weight_size));
  float *const to_small = results.data(), *const to_large = to_small + small_size;
  const auto memory = aligned<float>(kernel.workspace(shape));
  const int64_t step = kernel.block_rows(shape), part_floats = kernel.part_floats(shape);
  const auto parts = aligned<float>(2 * part_floats);
  std::fill_n(parts.get(), 2 * part_floats, 0.0f);
  for (const bool is_large : {false, true}) {
    const auto packed = aligned<float>(kernel.packed_floats(shape, is_large));
    kernel.pack(shape, is_large, weight.data(), 0, kernel.num_panels(shape, is_large),
                packed.get());
    const int64_t height = shape.height * (is_large ? shape.stride : 1);
    for (int64_t first = 0; first < height; first += step) {
      const int64_t last = first + step < height ? first + step : height;
      if (is_large) {
        kernel.to_large(shape, packed.get(), bias.data(), small.data(), first, last, memory.get(),
                        to_large);
        continue;
      }
      kernel.to_small(shape, packed.get(), bias.data(), large.data(), first, last, memory.get(),
                      to_small);
      kernel.weight_part(shape, large.data(), small.data(), first, last, memory.get(),
                         parts.get() + (first > 0 ? part_floats : 0));
    }
  }
  kernel.sum_parts(shape, parts.get(), 2, 0, shape.outputs, to_large + large_size);
  return results;
}

// Whole numbers, which rounding leaves as they are.
Floats whole(std::mt19937& random, int64_t count) {
  Floats values = search_data::gaussian(random, count);
  for (float& value : values) value = nearbyintf(4 * value);
  return values;
}

// y, dx and dw of two images by the definition.
std::vector<double> sums_of(const tile_conv::Shape& shape, const Floats& x, const Floats& w,
                            const Floats& dy) {
  const int64_t area = shape.height * shape.width, kernel = shape.kernel;
  const int64_t inputs = shape.inputs, outputs = shape.outputs;
  std::vector<double> results(
      static_cast<size_t>(2 * area * (inputs + outputs) + outputs * inputs * kernel * kernel));
  double* const dx = results.data() + 2 * area * outputs;
  double* const dw = dx + 2 * area * inputs;
  for (int64_t position = 0; position < 2 * area; ++position) {
    const int64_t row = position % area / shape.width, column = position % shape.width;
    for (int64_t tap = 0; tap < shape.num_taps(); ++tap) {
      const int64_t r = row - shape.top + tap / kernel, c = column - shape.left + tap % kernel;
      if (r < 0 || r >= shape.height || c < 0 || c >= shape.width) continue;
      const int64_t from = position / area * area + r * shape.width + c;
      for (int64_t o = 0; o < outputs; ++o) {
        const double above = dy[position * outputs + o];
        for (int64_t i = 0; i < inputs; ++i) {
          const int64_t place = (o * inputs + i) * kernel * kernel + tap;
          results[position * outputs + o] += static_cast<double>(x[from * inputs + i]) * w[place];
          dx[from * inputs + i] += above * w[place];
          dw[place] += above * x[from * inputs + i];
        }
      }
    }
  }
  return results;
}

// A convolution with rounded factors and its gradients, in bands of rows, against the definition.
void rounded_convolution(const char* level, const tile_conv::Shape& shape) {
  set_simd_level(level);
  const tile_conv::Kernels& kernel = kernels().tile_conv;
  if (!kernel.convolve) return;
  std::mt19937 random(13);
  const int64_t area = shape.height * shape.width, taps = shape.kernel * shape.kernel;
  const int64_t inputs = shape.inputs, outputs = shape.outputs;
  const Floats x = whole(random, 2 * area * inputs), dy = whole(random, 2 * area * outputs);
  const Floats w = whole(random, outputs * inputs * taps);
  const PointwiseLayer weight = {.v = w.data(), .outputs = outputs, .inputs = inputs * taps};
  const auto zeros = [](int64_t bytes) { return std::vector<char>(static_cast<size_t>(bytes)); };
  const std::vector<double> expected = sums_of(shape, x, w, dy);
  Floats results(expected.size());
  float* const maps[] = {results.data(), results.data() + 2 * area * outputs};
  for (const bool adjoint : {false, true}) {
    std::vector<char> packed = zeros(kernel.packed_bytes(shape, adjoint));
    kernel.pack(shape, adjoint, weight, 0, outputs, packed.data());
    const int64_t rows = (shape.height + 1) / 2, from = shape.from(adjoint);
    std::vector<char> memory = zeros(kernel.workspace(shape, adjoint, rows));
    for (int64_t band = 0; band < 4; ++band) {
      const int64_t image = band / 2, first = band % 2 * rows;
      const int64_t last = first + rows < shape.height ? first + rows : shape.height;
      if (first >= last) continue;
      kernel.convolve(shape, adjoint, {}, image, packed.data(), nullptr,
                      (adjoint ? dy : x).data() + image * area * from, first, last, memory.data(),
                      maps[adjoint] + image * area * shape.to(adjoint));
    }
  }
  const int64_t places_bytes = kernel.places_bytes(shape), pairs_bytes = kernel.pairs_bytes(shape);
  std::vector<char> places = zeros(2 * places_bytes), pairs = zeros(2 * pairs_bytes);
  std::vector<char> of_x = zeros(kernel.workspace(shape, false, shape.height));
  std::vector<char> of_dy = zeros(kernel.workspace(shape, true, shape.height));
  for (int64_t image = 0; image < 2; ++image) {
    kernel.to_places(shape, {}, image, x.data() + image * area * inputs, of_x.data(),
                     places.data() + image * places_bytes);
    kernel.to_pairs(shape, dy.data() + image * area * outputs, of_dy.data(),
                    pairs.data() + image * pairs_bytes);
  }
  kernel.weight_gradient(shape, 2, places.data(), pairs.data(), 0, kernel.parts(shape),
                         maps[1] + 2 * area * inputs, inputs * taps);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (fabs(results[i] - expected[i]) <= 1e-5 * (1 + fabs(expected[i]))) continue;
    ++failures;
    printf("FAILED at %s: rounded convolution: result %zu is %g, not %g\n", level, i,
           static_cast<double>(results[i]), expected[i]);
    return;
  }
}

}  // namespace

int main() {
  const int64_t sizes[][3] = {{1, 1, 1}, {5, 3, 17}, {33, 40, 17}, {70, 8, 8}};
  for (const char* const* level = simd_levels(); *level; ++level) {
    for (const auto& size : sizes) {
      compare(*level, "attention with dropout on logits",
              [&] { return attention(size[0], size[1], size[2], true); });
      compare(*level, "attention with dropout on probabilities",
              [&] { return attention(size[0], size[1], size[2], false); });
    }
    for (const auto& size : sizes) {
      compare(*level, "pointwise layer",
              [&] { return pointwise(size[0], size[1], size[2], false); });
      compare(*level, "normed pointwise layer",
              [&] { return pointwise(size[0], size[1], size[2], true); });
      compare(*level, "loss of codes", [&] { return code_loss(size[0], size[1], size[2]); });
    }
    // Channels that fill no panel, tiles cut by the edges.
    compare(*level, "tiles", [] { return tiles(6, 9, 16, 48); });
    compare(*level, "tiles of one", [] { return tiles(3, 2, 48, 16); });
    compare(*level, "tiles of half vectors", [] { return tiles(7, 9, 24, 40); });
    // Images, masks that begin above, maps smaller than the kernel, many blocks of rows.
    const patch_conv::Shape shapes[] = {
        {9, 21, 33, 3, 4, 2, 1, 1, 4}, {30, 8, 16, 24, 3, 1, 1, 1, 3},
        {6, 5, 9, 7, 3, 1, 2, 1, 1},   {5, 4, 17, 8, 3, 1, 3, 1, 3},
        {1, 2, 5, 4, 5, 1, 4, 2, 3},   {3, 100, 1, 1, 5, 3, 1, 2, 5}};
    for (const patch_conv::Shape& shape : shapes) {
      compare(*level, "patches", [&] { return patches(shape); });
    }
    // Masks that begin at each side, rows of whole tiles and of parts, channels that fill none.
    for (const int64_t outputs : {1, 17, 48}) {
      for (const int64_t width : {1, 7, 16, 20}) {
        for (const int64_t kernel : {1, 3, 5}) {
          for (const int64_t top : {int64_t{0}, kernel / 2, kernel}) {
            if (kernel == 1 && top > 0) continue;
            rounded_convolution(*level, {.height = 5,
                                         .width = width,
                                         .kernel = kernel,
                                         .top = top,
                                         .left = top,
                                         .live = kernel - (top > 0 ? 1 : 0),
                                         .inputs = outputs == 17 ? 64 : 35,
                                         .outputs = outputs});
          }
        }
      }
    }
    printf("%s: done\n", *level);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
