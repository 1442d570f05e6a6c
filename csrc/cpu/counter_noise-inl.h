// Rows of counter-based noise. Plain loops over independent counters, which the compiler turns into
// the level's vectors; every level computes the same bits.
#pragma once

#include "../common/counter_noise.h"

namespace vqvae2_fast::cpu {
namespace {

// Counters whose words are held at a time: the integer and the float half are vectorised
// separately.
constexpr int kNoiseBlock = 64, kShortNoiseBlock = 16;

// words[4 * i + j] of counters first..first+kBlock.
template <int kBlock = kNoiseBlock>
inline void fill_words(uint64_t seed, uint32_t first, uint32_t row, uint32_t sample, uint32_t last,
                       uint32_t* words) {
  for (uint32_t i = 0; i < kBlock; ++i) {
    const Words4 block = philox4x32(first + i, row, sample, last, seed);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = block.w[j];
  }
}

inline void fill_gumbel(uint64_t seed, uint32_t sample, uint32_t position, uint32_t stream,
                        int64_t num_embeddings, float* noise) {
  uint32_t words[4 * kNoiseBlock];
  for (int64_t k = 0; k < num_embeddings; k += 4 * kNoiseBlock) {
    fill_words(seed, static_cast<uint32_t>(k >> 2), position, sample, stream | kPurposeDraw << 16,
               words);
    const int64_t left = num_embeddings - k;
    const int64_t count = left < 4 * kNoiseBlock ? left : 4 * kNoiseBlock;
    for (int64_t i = 0; i < count; ++i) noise[k + i] = gumbel_from_word(words[i]);
  }
}

inline void fill_dropout_mask(uint64_t seed, uint32_t sample, uint32_t row, int64_t num_columns,
                              float dropout_p, uint8_t* keep) {
  uint32_t words[4 * kNoiseBlock];
  for (int64_t c = 0; c < num_columns; c += 4 * kNoiseBlock) {
    fill_words(seed, static_cast<uint32_t>(c >> 2), row, sample, kPurposeDropout << 16, words);
    const int64_t left = num_columns - c;
    const int64_t count = left < 4 * kNoiseBlock ? left : 4 * kNoiseBlock;
    for (int64_t i = 0; i < count; ++i) keep[c + i] = uniform_from_word(words[i]) >= dropout_p;
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
