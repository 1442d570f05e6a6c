// The table of CPU kernels: one set of function pointers per SIMD level, chosen once at run time.
//
// Kernels take pointers, sizes and strides, and do not use torch. All strides are in elements.
#pragma once

#include <stdint.h>

#include "layers/attention.h"
#include "layers/code_loss.h"
#include "layers/gated_layer.h"
#include "layers/patch_conv.h"
#include "layers/pointwise.h"
#include "layers/product.h"
#include "layers/tile_conv.h"
#include "layers/winograd.h"
#include "quantizer/ema_update.h"
#include "quantizer/nearest_code.h"
#include "quantizer/residual.h"
#include "quantizer/scalar_quantize.h"
#include "rows.h"
#include "sampler/kernels.h"

namespace vqvae2_fast::cpu {

struct KernelTable {
  const char* name;
  int64_t panel_width;  // codes of a panel of the search
  bool has_pairs;       // the search also uses panels of int16 pairs
  bool has_tiles;       // and tiles of bfloat16

  SearchKernels<NearestCodeProblem> nearest_code;
  // What PackedCodebook::halves_of_stored should be.
  bool (*codes_lie_close)(const PackedCodebook& codebook);
  // Fills panels first..last of a codebook whose codes and center are set.
  PanelNorms (*fill_panels)(const PackedCodebook& codebook, int64_t first, int64_t last,
                            const PanelBuffers& out);
  // How to pack a codebook for products of bytes; false if the next screen alone is faster.
  bool (*byte_layout)(int64_t num_codes, int64_t dim, ByteLayout& layout);
  // Rows begin..end of the gradient.
  void (*quantize_backward)(const QuantizeGradient& problem, int64_t begin, int64_t end);

  ResidualKernels residual;

  // sums[d] = the rows order[begin..end), added in that order in float64.
  void (*sum_rows)(const Rows& z, int64_t dim, const int64_t* order, int64_t begin, int64_t end,
                   double* sums);
  // One step of the averages: see EmaProblem.
  void (*ema_update)(const EmaProblem& problem);

  // K Gumbel values of one (sample, position).
  void (*gumbel_noise)(uint64_t seed, uint32_t sample, uint32_t position, uint32_t stream,
                       int64_t num_embeddings, float* noise);

  // One row of a dropout mask: keep[c] = uniform(c) >= dropout_p.
  void (*dropout_mask)(uint64_t seed, uint32_t sample, uint32_t row, int64_t num_columns,
                       float dropout_p, uint8_t* keep);

  sampler::Kernels sampler;
  // For kernels of 2x2, 3x3 and 5x5.
  winograd::Transforms winograd2, winograd3, winograd5;
  GatedLayer gated_layer;
  AttentionKernels attention;
  PointwiseKernels pointwise;
  Products products;
  tile_conv::Kernels tile_conv;  // null without tiles
  patch_conv::Kernels patch_conv;
  CodeLossKernels code_loss;
  ScalarQuantizeKernels scalar_quantize;
};

extern const KernelTable kScalarKernels;
#if defined(VQ_X86)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx2VnniKernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAvx512AmxKernels;
#elif defined(VQ_ARM64)
extern const KernelTable kNeonKernels;
#endif

// The table in use: the best level this CPU has, or VQVAE2_FAST_SIMD. If the variable names another
// one, throws std::runtime_error with the available levels.
const KernelTable& kernels();
// Switches the level for this process (tests). Throws as above.
void set_simd_level(const char* name);
// Names of the levels of this build that this CPU runs, and of those that it cannot; lowest first,
// null-terminated.
const char* const* simd_levels();
const char* const* missing_simd_levels();

}  // namespace vqvae2_fast::cpu
