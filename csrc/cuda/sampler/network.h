// A prior and one draw from it, as the kernels see them: sizes, and the addresses of everything on
// the card. Plain data, passed to kernels by value.
//
// Sizes: B samples; N network rows, B or 2B under guidance (with the class, then without); C
// channels, R channels inside a gated layer, K codes. Addresses are of device memory; all strides
// are in elements. Everything of outputs in pairs (`*_pairs`) is in the order of units: see
// program.h.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cuda::sampler {

// Positions whose keys and values one warp attends to. Partial results are merged in order.
constexpr int kChunk = 128;
// Words of a partial result: the largest score, the sum of weights, then the weighted values.
constexpr int kPartialHead = 2;
// Times of a block's step, with VQ_STAGE_TIMES.
constexpr int kMoments = 3;

// Inputs of n convolutions, activated: the rows above and the current one, in a ring of rows.
// [layer, n, row % slots, left + column, channel]; columns outside the map stay zero.
struct Ring {
  float* values;
  int32_t columns, left, channels;
};

struct Rule {
  float temperature;    // 0: the best code, whatever the noise
  float top_p;          // 1: all
  float guidance;       // u + s * (c - u)
  int32_t top_k;        // K: all
  float largest_logit;  // logits beyond it are told by too_large
};

struct Network {
  int32_t height, width, batch, rows;
  int32_t channels, inner, num_embeddings, num_classes, num_labels;
  int32_t num_layers, layers_per_block, num_blocks;
  int32_t side_by_side;  // no convolution reads its own position
  int32_t slots;         // rows of the rings
  int32_t num_heads, head_dim, max_chunks;
  int32_t joined_stride, merged_stride;  // of [x, y, coordinates] and [y, coordinates]
  int32_t out_stride;                    // of [y, attended values]
  int32_t code_stride;                   // of a row of logits

  // The prior.
  const float* stem_above;         // [taps above, K, C]
  const int32_t* stem_above_taps;  // [taps above, 2]: row and column of each
  int32_t num_stem_above, num_stem_left;
  const float* stem_left;   // [taps left, K, C], columns -num_stem_left .. -1
  const float* stem_bias;   // [H * W, C]
  const float* background;  // [H * W, 2]

  // Memory of the draw.
  Ring ring1, ring2;
  // [layers, N, W, R], [.., 2C pairs]: taps above and biases.
  float *row1, *row2;
  float* stem_row;                   // [B, W, C]
  float* key_value;                  // [N, 2 heads * d], of the chain of a cluster
  float* gated;                      // [layers, N, C]: what each layer adds at this position
  float *x, *y;                      // [N, C]: a block's input, its layers' output
  float* merged[2];                  // [N, merged_stride], by parity of the block
  float *joined, *joined_activated;  // [N, joined_stride]
  float* out_inputs;        // [N, out_stride]: ELU of y and, with many rows, of attended values
  float *query, *partials;  // [N, heads * d]; [N, heads, chunks, d + 2]
  float* keys;              // [blocks, N, heads, P / 32, d, 32]
  float* values;            // [blocks, N, heads, P, d]
  float* activated;         // [N, C]: ELU(x) for the last layers
  float* logits;            // [N, code_stride]
  uint32_t* progress;       // [blocks of the grid]: the last stage that each has done

  // The draw.
  const int64_t* known;  // [B, H, W], -1 to draw; or null
  const float* noise;    // [B, H, W, K]; null: counter-based
  uint64_t seed;
  int64_t first_sample;
  uint32_t stream;
  Rule rule;
  int64_t* codes;      // [B, H, W]
  float* log_prob;     // [B, H, W], or null
  float* all_logits;   // [B, H, W, K], or null
  int32_t* too_large;  // set to 1 by a logit beyond the rule's largest, or NaN
#if defined(VQ_STAGE_TIMES)
  uint64_t* stage_times;  // stage_times.cuh, or null
#endif
};

}  // namespace vqvae2_fast::cuda::sampler
