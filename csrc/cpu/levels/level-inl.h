// The kernel table of one SIMD level: a level file includes its simd/ header, names the table with
// VQ_LEVEL_TABLE and VQ_LEVEL_NAME, and includes this. Everything else stays in anonymous
// namespaces, so that no function compiled with one level's flags can be linked into another (`nm`
// shows none).
#include "../counter_noise-inl.h"
#include "../kernels.h"
#include "../layers/attention-inl.h"
#include "../layers/code_loss-inl.h"
#include "../layers/gated_layer-inl.h"
#include "../layers/patch_conv-inl.h"
#include "../layers/pointwise-inl.h"
#include "../layers/product-inl.h"
#include "../layers/tile_conv-inl.h"
#include "../layers/winograd-inl.h"
#include "../quantizer/code_statistics-inl.h"
#include "../quantizer/ema_update-inl.h"
#include "../quantizer/nearest_code-inl.h"
#include "../quantizer/pack_codebook-inl.h"
#include "../quantizer/residual-inl.h"
#include "../quantizer/scalar_quantize-inl.h"
#include "../sampler/elementwise-inl.h"

#if defined(VQ_HAS_PAIR_PRODUCTS)
#define VQ_LEVEL_PAIRS true
#else
#define VQ_LEVEL_PAIRS false
#endif

#if defined(VQ_HAS_TILES)
#define VQ_LEVEL_TILES true
#else
#define VQ_LEVEL_TILES false
#endif

namespace vqvae2_fast::cpu {

const KernelTable VQ_LEVEL_TABLE = {
    .name = VQ_LEVEL_NAME,
    .panel_width = kPanelWidth,
    .has_pairs = VQ_LEVEL_PAIRS,
    .has_tiles = VQ_LEVEL_TILES,
    .nearest_code = {.few_rows = search_few_rows,
                     .rows = search_rows,
                     .workspace = Workspace::bytes,
                     .block_rows = block_rows},
    .codes_lie_close = codes_lie_close,
    .fill_panels = fill_panels,
    .byte_layout = byte_layout,
    .quantize_backward = quantize_backward,
    .residual = {.few_rows = residual_few_rows,
                 .rows = residual_rows,
                 .workspace = residual_workspace,
                 .backward = residual_backward,
                 .sum_slice = residual_sum_slice},
    .sum_rows = sum_rows,
    .ema_update = ema_update,
    .gumbel_noise = fill_gumbel,
    .dropout_mask = fill_dropout_mask,
    .sampler = sampler::kKernels,
    .winograd2 = winograd::transforms<2>(),
    .winograd3 = winograd::transforms<3>(),
    .winograd5 = winograd::transforms<5>(),
    .gated_layer = gated_layer::kKernels,
    .attention = attention::kKernels,
    .pointwise = pointwise::kKernels,
    .products = products::kKernels,
    .tile_conv = tile_conv::kKernels,
    .patch_conv = patch_conv::kKernels,
    .code_loss = code_loss::kKernels,
    .scalar_quantize = scalar_quantize::kKernels,
};

}  // namespace vqvae2_fast::cpu
