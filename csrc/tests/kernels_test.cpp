// The CPU kernels of the quantiser without torch: at every SIMD level this CPU has, against plain
// loops. Memory is allocated to the exact size, so that AddressSanitizer sees every access outside.
// .ci/sanitizers builds and runs it.
#include "../cpu/kernels.h"

#include <stdio.h>
#include <string.h>

#include <memory>
#include <thread>

#include "../cpu/quantizer/code_statistics.h"
#include "../cpu/quantizer/residual_statistics.h"
#include "../cpu/quantizer/search.h"
#include "../cpu/weights/weight_norms.h"
#include "search_data.h"

namespace {

using namespace vqvae2_fast::cpu;
using search_data::Floats;
using search_data::Set;

int failures = 0;

void check(bool holds, const char* what, const char* detail) {
  if (holds) return;
  ++failures;
  printf("FAILED at %s: %s (%s)\n", kernels().name, what, detail);
}

// Two threads, so that a race is seen too.
void run_parts(int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  std::thread other([&] { part(count / 2, count); });
  if (count > 1) part(0, count / 2);
  other.join();
}

// Calls `use` with an exact-size copy of the rows in each dtype and stride; the values are rounded
// in place to what the dtype holds.
template <class Use>
void for_each_layout(Floats values, int64_t rows, int64_t dim, const Use& use) {
  use(Rows{values.data(), dim, 1, Dtype::kFloat32}, values);
  Floats transposed(values.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) transposed[d * rows + i] = values[i * dim + d];
  }
  use(Rows{transposed.data(), 1, rows, Dtype::kFloat32}, values);
  std::vector<uint16_t> halves(values.size());
  for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
    Floats rounded(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      halves[i] =
          dtype == Dtype::kBFloat16 ? bfloat16_from_float(values[i]) : half_from_float(values[i]);
      rounded[i] = load_element(halves.data(), static_cast<int64_t>(i), dtype);
    }
    use(Rows{halves.data(), dim, 1, dtype}, rounded);
  }
}

void search(const NearestCodeProblem& problem, int64_t num_rows, const Rows& codes,
            int64_t num_codes, int64_t dim) {
  search_codebook(kernels().nearest_code, problem, num_rows, codes, num_codes, dim, kernels(),
                  run_parts);
}

void test_search(const Set& set) {
  for_each_layout(set.z, set.num_rows, set.dim, [&](const Rows& z, const Floats& values) {
    for_each_layout(set.codes, set.num_codes, set.dim, [&](const Rows& codes, const Floats& code) {
      const Set rounded = {set.name, set.num_rows, set.num_codes, set.dim, values, code};
      std::vector<int64_t> indices(set.num_rows);
      Floats sqdist(set.num_rows);
      NearestCodeProblem problem = {};
      problem.z = z;
      problem.indices = indices.data();
      problem.sqdist = sqdist.data();
      search(problem, set.num_rows, codes, set.num_codes, set.dim);
      int64_t wrong = 0;
      for (int64_t i = 0; i < set.num_rows; ++i) {
        const int64_t expected = search_data::nearest(rounded, i);
        const float exact = static_cast<float>(
            search_data::distance(&values[i * set.dim], &code[expected * set.dim], set.dim));
        wrong += indices[i] != expected;
        wrong += memcmp(&sqdist[i], &exact, sizeof(exact)) != 0 && !(exact != exact);
      }
      check(wrong == 0, "nearest codes and distances", set.name);
    });
  });
}

void test_quantize(int64_t rows, int64_t num_codes, int64_t dim) {
  std::mt19937 random(3);
  const Floats code = search_data::gaussian(random, num_codes * dim);
  for_each_layout(
      search_data::gaussian(random, rows * dim), rows, dim, [&](const Rows& z, const Floats& row) {
        const bool is_float = z.dtype == Dtype::kFloat32;
        const size_t bytes = static_cast<size_t>(rows * dim) * (is_float ? 4 : 2);
        std::vector<char> z_q(bytes), dz(bytes);
        std::vector<int64_t> indices(rows);
        std::vector<double> errors(rows / kernels().nearest_code.block_rows(dim) + 1, 0.0);
        NearestCodeProblem problem = {};
        problem.z = z;
        problem.indices = indices.data();
        problem.z_q = z_q.data();
        problem.block_errors = errors.data();
        search(problem, rows, Rows{code.data(), dim, 1, Dtype::kFloat32}, num_codes, dim);
        double expected = 0, total = 0;
        for (int64_t i = 0; i < rows; ++i) {
          expected += search_data::distance(&row[i * dim], &code[indices[i] * dim], dim);
        }
        for (const double error : errors) total += error;
        check(fabs(total - expected) <= 1e-6 * expected, "squared error", "gaussian");
        const Rows codes = {z_q.data(), dim, 1, z.dtype};
        const QuantizeGradient gradient_problem = {
            .dz_q = codes, .z = z, .code = codes, .scale = 0.5f, .dim = dim, .dz = dz.data()};
        kernels().quantize_backward(gradient_problem, 0, rows);
        double largest = 0;
        for (int64_t i = 0; i < rows * dim; ++i) {
          const float nearest = load_element(z_q.data(), i, z.dtype);
          const float gradient = load_element(dz.data(), i, z.dtype);
          const double exact = nearest + 0.5 * (static_cast<double>(row[i]) - nearest);
          largest = fmax(largest, fabs(gradient - exact));
        }
        check(largest < (is_float ? 1e-6 : 2e-2), "gradient", "gaussian");
      });
}

// Three quantisers, against the definition one after the other; then gradient and statistics.
void test_residual(int64_t rows, int64_t num_codes, int64_t dim) {
  constexpr int64_t kQuantizers = 3;
  std::mt19937 random(6);
  const Floats book = search_data::gaussian(random, kQuantizers * num_codes * dim);
  const Codebooks codebooks = {.first = {book.data(), dim, 1, Dtype::kFloat32},
                               .stride = num_codes * dim,
                               .num_quantizers = kQuantizers,
                               .num_codes = num_codes,
                               .dim = dim};
  for_each_layout(
      search_data::gaussian(random, rows * dim), rows, dim, [&](const Rows& z, const Floats& row) {
        const bool is_float = z.dtype == Dtype::kFloat32;
        std::vector<char> z_q(static_cast<size_t>(rows * dim) * (is_float ? 4 : 2)), dz(z_q.size());
        std::vector<int64_t> indices(rows * kQuantizers), counts(kQuantizers * num_codes, -1);
        std::vector<double> errors(
            (rows / kernels().nearest_code.block_rows(dim) + 1) * kQuantizers, 0.0);
        ResidualProblem problem = {};
        problem.z = z;
        problem.indices = indices.data();
        problem.z_q = z_q.data();
        problem.block_errors = errors.data();
        search_residuals(problem, rows, codebooks, kernels(), run_parts);

        Set set = {"residuals", rows, num_codes, dim, row, {}};
        Floats expected_dz(rows * dim, 0.0f), sums(kQuantizers * num_codes * dim, NAN);
        Floats total(rows * dim, 0.0f);
        std::vector<double> expected_sums(sums.size(), 0.0);
        int64_t wrong = 0;
        double left = 0, found = 0;
        for (int64_t q = 0; q < kQuantizers; ++q) {
          set.codes.assign(book.begin() + q * num_codes * dim,
                           book.begin() + (q + 1) * num_codes * dim);
          for (int64_t i = 0; i < rows; ++i) {
            const int64_t k = search_data::nearest(set, i);
            wrong += indices[i * kQuantizers + q] != k;
            for (int64_t d = 0; d < dim; ++d) {
              float& residual = set.z[i * dim + d];
              expected_sums[(q * num_codes + k) * dim + d] += static_cast<double>(residual);
              residual -= set.codes[k * dim + d];
              total[i * dim + d] += set.codes[k * dim + d];
              expected_dz[i * dim + d] += 0.5f * residual;
              left += static_cast<double>(residual) * static_cast<double>(residual);
            }
          }
        }
        for (const double error : errors) found += error;
        check(wrong == 0 && fabs(found - left) <= 1e-6 * left, "residual codes", "gaussian");
        double largest = 0;
        for (int64_t i = 0; i < rows * dim; ++i) {
          largest = fmax(largest, fabs(load_element(z_q.data(), i, z.dtype) - total[i]));
        }
        check(largest <= (is_float ? 0 : 5e-2), "sums of codes", "gaussian");

        const Floats scales(kQuantizers, 0.5f), zero(rows * dim, 0.0f);
        Floats memory(5 * (dim + 16));
        kernels().residual.backward({.dz_q = {zero.data(), dim, 1, Dtype::kFloat32},
                                     .z = z,
                                     .codebooks = codebooks,
                                     .indices = indices.data(),
                                     .indices_stride_row = kQuantizers,
                                     .indices_stride_col = 1,
                                     .scales = scales.data(),
                                     .rotate = true,
                                     .dz = dz.data()},
                                    0, rows, memory.data());
        largest = 0;
        for (int64_t i = 0; i < rows * dim; ++i) {
          largest = fmax(largest, fabs(load_element(dz.data(), i, z.dtype) - expected_dz[i]));
        }
        check(largest <= (is_float ? 1e-5 : 1e-1), "residual gradient", "gaussian");

        residual_statistics({.z = z,
                             .num_rows = rows,
                             .codebooks = codebooks,
                             .indices = indices.data(),
                             .indices_stride_row = kQuantizers,
                             .indices_stride_col = 1,
                             .counts = counts.data(),
                             .sums = sums.data()},
                            kernels(), run_parts);
        wrong = 0;
        for (size_t i = 0; i < sums.size(); ++i) {
          wrong += sums[i] != static_cast<float>(expected_sums[i]);
        }
        check(wrong == 0, "sums of residuals", "gaussian");
      });
}

void test_statistics(int64_t rows, int64_t num_codes, int64_t dim, bool one_code) {
  std::mt19937 random(4);
  std::vector<int64_t> indices(rows);
  for (int64_t& index : indices) index = one_code ? num_codes / 2 : random() % num_codes;
  for_each_layout(
      search_data::gaussian(random, rows * dim), rows, dim, [&](const Rows& z, const Floats& row) {
        std::vector<int64_t> counts(num_codes, -1);
        Floats sums(num_codes * dim, NAN);
        const StatisticsProblem problem = {.z = z,
                                           .num_rows = rows,
                                           .dim = dim,
                                           .num_codes = num_codes,
                                           .indices = indices.data(),
                                           .indices_stride = 1,
                                           .counts = counts.data(),
                                           .sums = sums.data()};
        check(code_statistics(problem, kernels(), run_parts) == -1, "statistics run", "indices");
        std::vector<double> expected(num_codes * dim, 0.0);
        std::vector<int64_t> expected_counts(num_codes, 0);
        for (int64_t i = 0; i < rows; ++i) {
          ++expected_counts[indices[i]];
          for (int64_t d = 0; d < dim; ++d) expected[indices[i] * dim + d] += row[i * dim + d];
        }
        double largest = 0;
        for (int64_t i = 0; i < num_codes * dim; ++i) {
          largest = fmax(largest, fabs(sums[i] - expected[i]) / (1 + fabs(expected[i])));
        }
        check(counts == expected_counts && largest < 1e-7, "statistics", one_code ? "one" : "all");
        if (rows > 2) {
          const int64_t kept = indices[2];
          indices[2] = num_codes;
          check(code_statistics(problem, kernels(), run_parts) == 2, "bad index", "too large");
          indices[2] = kept;
        }
      });
}

void test_ema(int64_t num_codes, int64_t dim) {
  std::mt19937 random(5);
  const Floats sums = search_data::gaussian(random, num_codes * dim);
  const std::vector<int64_t> counts(num_codes, 3);
  Floats size(num_codes, 2.0f), average(num_codes * dim, 1.0f), code(num_codes * dim, NAN);
  const EmaProblem problem = {.num_codes = num_codes,
                              .dim = dim,
                              .counts = counts.data(),
                              .sums = sums.data(),
                              .cluster_size = size.data(),
                              .embed_avg = average.data(),
                              .codebook = code.data(),
                              .decay = 0.75,
                              .epsilon = 1e-5};
  kernels().ema_update(problem);
  double largest = 0;
  for (int64_t i = 0; i < num_codes * dim; ++i) {
    largest = fmax(largest, fabs(code[i] - (0.75 + 0.25 * sums[i]) / 2.25));
  }
  check(largest < 1e-5, "averages", "all codes alike");
}

// The norms of the definition, of a weight whose dead taps are NaN.
void test_norms(int64_t outputs, int64_t inputs, int64_t taps, int64_t live, int threads) {
  std::mt19937 random(6);
  const int64_t count = inputs * taps;
  Floats values = search_data::gaussian(random, outputs * count), norms(outputs);
  bool same = true;
  std::vector<float> expected;
  for (int64_t o = 0; o < outputs; ++o) {
    double sums[16] = {};
    for (int64_t e = 0; e < count; ++e) {
      float& value = values[o * count + e];
      if (e % taps < live) {
        sums[e % 16] += static_cast<double>(value) * value;
      } else {
        value = NAN;
      }
    }
    for (int64_t half = 8; half > 0; half /= 2) {
      for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
    }
    expected.push_back(static_cast<float>(sqrt(sums[0])));
  }
  weight_norms({{.values = values.data(),
                 .outputs = outputs,
                 .inputs = inputs,
                 .taps = taps,
                 .live = live,
                 .norms = norms.data()}},
               threads);
  for (int64_t o = 0; o < outputs; ++o) same &= norms[o] == expected[o];
  check(same, "norms", "of a weight");
}

void test_within(int64_t count, int threads) {
  Floats values(count, -2.0f);
  const std::vector<Block> blocks = {{values.data(), count * 4}, {values.data(), 4}};
  check(within(blocks, 2.0f, threads), "within", "at the bound");
  for (const float beyond : {2.0000002f, -2.0000002f, INFINITY, NAN, -NAN}) {
    values[count - 1] = beyond;
    check(!within(blocks, 2.0f, threads), "within", "beyond the bound");
  }
}

}  // namespace

int main() {
  for (const int threads : {1, 3}) {
    test_norms(1, 1, 1, 1, threads);
    test_norms(3, 5, 9, 4, threads);
    test_norms(70, 33, 25, 25, threads);
    test_norms(5000, 129, 9, 5, threads);
    test_within(1, threads);
    test_within((1 << 22) + 3, threads);
  }
  for (const char* const* level = simd_levels(); *level; ++level) {
    set_simd_level(*level);
    std::mt19937 random(1);
    for (const auto& [n, k, d] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                  {3, 5, 2},
                                  {8, 40, 17},
                                  {9, 33, 16},
                                  {61, 70, 31},
                                  {211, 129, 65},
                                  {30, 40, 130},
                                  {40, 515, 64},
                                  {40, 260, 127},
                                  {20, 257, 511}}) {
      test_search(search_data::midpoints(random, n, k, d, 0));
      test_search(search_data::midpoints(random, n, k, d, 30));
      test_search(search_data::aligned_roundings(random, n, k, d));
      test_search(search_data::scales(random, n, k, d, -38, 38));
      test_search(search_data::scales(random, n, k, d, -44, -39));
      test_search(search_data::far_out(random, n, k, d));
      test_search(search_data::duplicates(random, n, k, d));
      test_search(search_data::integers(random, n, k, d));
      test_search(search_data::not_finite(random, n, k, d));
      test_quantize(n, k, d);
      test_residual(n, k, d);
      test_statistics(n, k, d, false);
      test_ema(k, d);
    }
    test_search(search_data::duplicates(random, 20, 20000, 3));  // more vectors than tags
    test_statistics(9000, 40, 5, false);
    test_statistics(9000, 40, 5, true);
    printf("%s: done\n", *level);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
