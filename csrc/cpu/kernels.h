// The table of CPU kernels: one set of function pointers per SIMD level, chosen once at run time.
//
// Kernels take pointers, sizes and strides and know no torch. All strides are in elements.
#pragma once

#include <stdint.h>

#include "nearest_code.h"
#include "rows.h"
#include "sampler/kernels.h"

namespace vqvae2_fast::cpu {

struct KernelTable {
  const char* name;
  // Codes per packed panel of this level's nearest-code microkernel.
  int64_t panel_width;

  // Nearest codes of rows begin..end; scratch holds nearest_code_scratch(D) floats.
  void (*nearest_code)(const NearestCodeProblem& problem, int64_t begin, int64_t end,
                       float* scratch);
  int64_t (*nearest_code_scratch)(int64_t dim);

  // sums[k] for codes first..last: rows order[offsets[k]..offsets[k+1]] are added in that order in
  // float64 and rounded once. accumulator holds D doubles.
  void (*code_sums)(const Rows& z, int64_t dim, const int64_t* order, const int64_t* offsets,
                    int64_t first, int64_t last, float* sums, double* accumulator);

  // K Gumbel values of one (sample, position).
  void (*gumbel_noise)(uint64_t seed, uint32_t sample, uint32_t position, uint32_t stream,
                       int64_t num_embeddings, float* noise);

  // One row of a dropout mask: keep[c] = uniform(c) >= dropout_p.
  void (*dropout_mask)(uint64_t seed, uint32_t sample, uint32_t row, int64_t num_columns,
                       float dropout_p, uint8_t* keep);

  sampler::Kernels sampler;
};

extern const KernelTable kScalarKernels;
#if defined(VQ_X86)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

// The table in use: the best level this CPU has, or VQVAE2_FAST_SIMD. Throws std::runtime_error
// with the levels that there are if the variable names another one.
const KernelTable& kernels();
// Switches the level for this process (tests). Throws as above.
void set_simd_level(const char* name);
// Names of the levels that this build and this CPU have, lowest first, null-terminated.
const char* const* simd_levels();

}  // namespace vqvae2_fast::cpu
