// The search of a codebook for all rows of any kind of problem: packs the codebook if that pays,
// and gives blocks of rows to threads.
#pragma once

#include "aligned.h"
#include "kernels.h"
#include "pack_codebook.h"
#include "run_parts.h"

namespace vqvae2_fast::cpu {

// Solves `problem` for `num_rows` rows with `search`, which belongs to the SIMD level of `kernels`.
// The codebook is [num_codes, dim]; the problem's own pointer to it is set here.
template <class Problem>
void search_codebook(const SearchKernels<Problem>& search, Problem problem, int64_t num_rows,
                     const Rows& codebook, int64_t num_codes, int64_t dim,
                     const KernelTable& kernels, const RunParts& run_parts) {
  if (num_rows <= kFewRows) {
    const PackedCodebookStorage unpacked = unpacked_codebook(codebook, num_codes, dim);
    problem.codebook = &unpacked.view;
    const auto copies = aligned<float>(num_rows * dim);
    search.few_rows(problem, num_rows, copies.get());
    return;
  }
  const auto packed = packed_codebook(codebook, num_codes, dim, kernels, run_parts);
  problem.codebook = &packed->view;
  const int64_t block = search.block_rows(dim), workspace = search.workspace(dim);
  run_parts((num_rows + block - 1) / block, [&](int64_t first, int64_t last) {
    const auto memory = aligned<char>(workspace);
    const int64_t end = last * block < num_rows ? last * block : num_rows;
    search.rows(problem, first * block, end, memory.get());
  });
}

}  // namespace vqvae2_fast::cpu
