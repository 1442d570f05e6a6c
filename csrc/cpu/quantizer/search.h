// The search of a codebook, or of several in a row, for all rows: packs the codebooks if that pays,
// and gives blocks of rows to threads.
#pragma once

#include <memory>
#include <vector>

#include "../aligned.h"
#include "../float_mode.h"
#include "../kernels.h"
#include "../threads/run_parts.h"
#include "pack_codebook.h"

namespace vqvae2_fast::cpu {

// Solves `problem` for `num_rows` rows with `search`, which belongs to the SIMD level of `kernels`.
// The codebook is [num_codes, dim]; the problem's own pointer to it is set here.
template <class Problem>
void search_codebook(const SearchKernels<Problem>& search, Problem problem, int64_t num_rows,
                     const Rows& codebook, int64_t num_codes, int64_t dim,
                     const KernelTable& kernels, const RunParts& run_parts) {
  const DefaultFloats mode;
  if (num_rows <= kFewRows) {
    const PackedCodebookStorage unpacked = unpacked_codebook(codebook, num_codes, dim);
    problem.codebook = &unpacked.view;
    const auto copies = aligned<float>(num_rows * dim);
    search.few_rows(problem, num_rows, copies.get());
    return;
  }
  const auto packed = packed_codebook(codebook, num_codes, dim, 1, kernels, run_parts);
  problem.codebook = &packed->view;
  const int64_t block = search.block_rows(dim), workspace = search.workspace(dim);
  run_parts((num_rows + block - 1) / block, [&](int64_t first, int64_t last) {
    const auto memory = aligned<char>(workspace);
    const int64_t end = last * block < num_rows ? last * block : num_rows;
    search.rows(problem, first * block, end, memory.get());
    packed->renumber(problem.indices + first * block, end - first * block);
  });
}

// Solves a residual problem for `num_rows` rows; its codebooks are set here. A shared codebook is
// packed once.
inline void search_residuals(ResidualProblem problem, int64_t num_rows, const Codebooks& codebooks,
                             const KernelTable& kernels, const RunParts& run_parts) {
  const DefaultFloats mode;
  const int64_t quantizers = codebooks.num_quantizers, dim = codebooks.dim;
  const int64_t different = codebooks.is_shared() ? 1 : quantizers;
  std::vector<const PackedCodebook*> views(quantizers);
  problem.num_quantizers = quantizers;
  problem.codebooks = views.data();
  if (num_rows <= kFewRows) {
    std::vector<PackedCodebookStorage> unpacked;
    for (int64_t q = 0; q < different; ++q) {
      unpacked.push_back(unpacked_codebook(codebooks[q], codebooks.num_codes, dim));
    }
    for (int64_t q = 0; q < quantizers; ++q) views[q] = &unpacked[q % different].view;
    const auto memory = aligned<float>(2 * num_rows * dim);
    kernels.residual.few_rows(problem, num_rows, memory.get());
    return;
  }
  std::vector<std::shared_ptr<const PackedCodebookStorage>> packed;
  for (int64_t q = 0; q < different; ++q) {
    packed.push_back(
        packed_codebook(codebooks[q], codebooks.num_codes, dim, different, kernels, run_parts));
  }
  for (int64_t q = 0; q < quantizers; ++q) views[q] = &packed[q % different]->view;
  const int64_t block = kernels.nearest_code.block_rows(dim);
  const int64_t workspace = kernels.residual.workspace(dim, quantizers);
  run_parts((num_rows + block - 1) / block, [&](int64_t first, int64_t last) {
    const auto memory = aligned<char>(workspace);
    const int64_t end = last * block < num_rows ? last * block : num_rows;
    kernels.residual.rows(problem, first * block, end, memory.get());
    for (int64_t q = 0; q < quantizers; ++q) {
      packed[q % different]->renumber(problem.indices + first * block * quantizers + q,
                                      end - first * block, quantizers);
    }
  });
}

}  // namespace vqvae2_fast::cpu
