// The C library (csrc/include/vqvae2_fast.h): what the operators' bindings do, without torch and on
// the calling thread.
#include <stdio.h>
#include <string.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "../cpu/quantizer/scalar_grid.h"
#include "../cpu/quantizer/search.h"
#include "../include/vqvae2_fast.h"

namespace vqvae2_fast {
namespace {

constexpr int64_t kLargestLevel = 1 << 22;  // as in ops/scalar_quantize/op.py

// Fixed memory: there may be no other when it is written.
thread_local char last_error[512];

// The status of a call. C has no exceptions.
template <class Call>
int status_of(const Call& call) noexcept {
  try {
    call();
    return VQ2_OK;
  } catch (const std::bad_alloc&) {
    snprintf(last_error, sizeof(last_error),
             "there is no memory for intermediate values: pass fewer vectors at a time.");
    return VQ2_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    snprintf(last_error, sizeof(last_error), "%s", error.what());
    return VQ2_INVALID_ARGUMENT;
  }
}

void check_least(const char* name, int64_t size, int64_t least) {
  if (size >= least) return;
  throw std::invalid_argument("expected " + std::string(name) + " of at least " +
                              std::to_string(least) + ", got " + std::to_string(size) + ".");
}

void check_memory(const char* name, const void* memory) {
  if (memory) return;
  throw std::invalid_argument("expected memory for " + std::string(name) + ", got NULL.");
}

// As a `RunParts` of csrc/cpu.
void on_this_thread(int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  part(0, count);
}

cpu::Rows rows_of(const float* matrix, int64_t dim) {
  return {.data = matrix, .stride_row = dim, .stride_col = 1, .dtype = cpu::Dtype::kFloat32};
}

// Of the arguments that the residual quantiser and its inverse share; false if N = 0.
bool check_residual(int64_t num_vectors, const float* codebooks, int64_t num_quantizers,
                    int64_t num_codes, int64_t dim, const int64_t* indices, const float* z_q) {
  check_least("num_vectors", num_vectors, 0);
  check_least("num_quantizers", num_quantizers, 1);
  check_least("num_codes", num_codes, 1);
  check_least("dim", dim, 1);
  if (num_vectors == 0) return false;
  check_memory("codebooks", codebooks);
  check_memory("indices", indices);
  check_memory("z_q", z_q);
  return true;
}

}  // namespace
}  // namespace vqvae2_fast

using namespace vqvae2_fast;

const char* vq2_last_error(void) { return last_error; }

const char* vq2_simd_level(void) {
  const char* name = nullptr;
  status_of([&] { name = cpu::kernels().name; });
  return name;
}

int vq2_nearest_code(const float* z, int64_t num_vectors, const float* codebook, int64_t num_codes,
                     int64_t dim, int64_t* indices, float* sqdist) {
  return status_of([&] {
    check_least("num_vectors", num_vectors, 0);
    check_least("num_codes", num_codes, 1);
    check_least("dim", dim, 1);
    if (num_vectors == 0) return;
    check_memory("z", z);
    check_memory("codebook", codebook);
    check_memory("indices", indices);
    cpu::NearestCodeProblem problem = {};
    problem.z = rows_of(z, dim);
    problem.indices = indices;
    problem.sqdist = sqdist;
    const cpu::KernelTable& kernels = cpu::kernels();
    cpu::search_codebook(kernels.nearest_code, problem, num_vectors, rows_of(codebook, dim),
                         num_codes, dim, kernels, on_this_thread);
  });
}

int vq2_residual_nearest_code(const float* z, int64_t num_vectors, const float* codebooks,
                              int64_t num_quantizers, int64_t num_codes, int64_t dim,
                              int64_t* indices, float* z_q) {
  return status_of([&] {
    if (!check_residual(num_vectors, codebooks, num_quantizers, num_codes, dim, indices, z_q)) {
      return;
    }
    check_memory("z", z);
    const cpu::KernelTable& kernels = cpu::kernels();
    const int64_t blocks = num_vectors / kernels.nearest_code.block_rows(dim) + 1;
    std::vector<double> errors(blocks * num_quantizers);
    cpu::ResidualProblem problem = {};
    problem.z = rows_of(z, dim);
    problem.indices = indices;
    problem.z_q = z_q;
    problem.block_errors = errors.data();
    const cpu::Codebooks books = {.first = rows_of(codebooks, dim),
                                  .stride = num_codes * dim,
                                  .num_quantizers = num_quantizers,
                                  .num_codes = num_codes,
                                  .dim = dim};
    cpu::search_residuals(problem, num_vectors, books, kernels, on_this_thread);
  });
}

int vq2_lookup(const int64_t* indices, int64_t num_vectors, const float* codebooks,
               int64_t num_quantizers, int64_t num_codes, int64_t dim, float* z_q) {
  return status_of([&] {
    if (!check_residual(num_vectors, codebooks, num_quantizers, num_codes, dim, indices, z_q)) {
      return;
    }
    for (int64_t n = 0; n < num_vectors; ++n) {
      float* const sum = z_q + n * dim;
      for (int64_t q = 0; q < num_quantizers; ++q) {
        const int64_t index = indices[n * num_quantizers + q];
        if (index < 0 || index >= num_codes) {
          throw std::invalid_argument(
              "expected indices from 0 to below num_codes=" + std::to_string(num_codes) + ", got " +
              std::to_string(index) + " of vector " + std::to_string(n) + ".");
        }
        const float* const code = codebooks + (q * num_codes + index) * dim;
        if (q == 0) memcpy(sum, code, static_cast<size_t>(dim) * sizeof(float));
        for (int64_t d = 0; q > 0 && d < dim; ++d) sum[d] += code[d];
      }
    }
  });
}

int vq2_scalar_quantize(const float* z, int64_t num_vectors, const int64_t* levels, int64_t dim,
                        int symmetric, int hard, int64_t* indices, float* values) {
  return status_of([&] {
    check_least("num_vectors", num_vectors, 0);
    check_least("dim", dim, 1);
    check_memory("levels", levels);
    for (int64_t d = 0; d < dim; ++d) {
      if (levels[d] >= 2 && levels[d] <= kLargestLevel) continue;
      throw std::invalid_argument("expected levels from 2 to " + std::to_string(kLargestLevel) +
                                  ", got " + std::to_string(levels[d]) + ".");
    }
    if (num_vectors == 0) return;
    check_memory("z", z);
    check_memory("indices", indices);
    check_memory("values", values);
    const cpu::ScalarGridStorage grid({levels, levels + dim}, symmetric != 0, hard != 0);
    const auto digits = cpu::aligned<float>(cpu::kDigitRows * dim);
    cpu::kernels().scalar_quantize.round(grid.get(), z, 0, num_vectors, digits.get(), values,
                                         {.wide = indices});
  });
}
