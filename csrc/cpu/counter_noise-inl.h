// Rows of counter-based noise: include after a simd/ header. Every level computes the same bits.
#pragma once

#include "../common/counter_noise.h"

namespace vqvae2_fast::cpu {
namespace {

// Counters whose words are held at a time: the integer and the float half are vectorised
// separately.
constexpr int kNoiseBlock = 64, kShortNoiseBlock = 16;

#if defined(VQ_HAS_WIDE_WORDS)
// `philox4x32` of 2 * kLanes counters: words[4 * i + j]. A word stays in the lane of its products,
// and two groups of lanes run side by side, because a round waits for its products.
inline void fill_wide_words(uint64_t seed, const WideWords (&first)[2],
                            const WideWords (&second)[2], uint32_t third, uint32_t last,
                            uint32_t* words) {
  using Wide = WideWords;
  const Wide factor0 = Wide::broadcast(kPhiloxFactor0), factor1 = Wide::broadcast(kPhiloxFactor1);
  const Wide step0 = Wide::broadcast(kPhiloxStep0), step1 = Wide::broadcast(kPhiloxStep1);
  Wide key0 = Wide::broadcast(static_cast<uint32_t>(seed));
  Wide key1 = Wide::broadcast(static_cast<uint32_t>(seed >> 32));
  Wide c0[2], c1[2], c2[2], c3[2];
  for (int g = 0; g < 2; ++g) {
    c0[g] = first[g], c1[g] = second[g];
    c2[g] = Wide::broadcast(third), c3[g] = Wide::broadcast(last);
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < 2; ++g) {
      const Wide p0 = c0[g].times(factor0), p1 = c2[g].times(factor1);
      c0[g] = Wide::mixed(p1.high(), c1[g], key0);
      c1[g] = p1;
      c2[g] = Wide::mixed(p0.high(), c3[g], key1);
      c3[g] = p0;
    }
    key0 = key0 + step0;
    key1 = key1 + step1;
  }
  for (int g = 0; g < 2; ++g) {
    Wide::store(c0[g], c1[g], c2[g], c3[g], words + g * 4 * Wide::kLanes);
  }
}
#endif

// words[4 * i + j] of kBlock counters, whose first two words are given.
template <int kBlock>
inline void fill_words(uint64_t seed, const uint32_t* first, const uint32_t* second, uint32_t third,
                       uint32_t last, uint32_t* words) {
#if defined(VQ_HAS_WIDE_WORDS)
  using Wide = WideWords;
  static_assert(kBlock % (2 * Wide::kLanes) == 0);
  for (int i = 0; i < kBlock; i += 2 * Wide::kLanes) {
    const int half = i + Wide::kLanes;
    fill_wide_words(seed, {Wide::load(first + i), Wide::load(first + half)},
                    {Wide::load(second + i), Wide::load(second + half)}, third, last,
                    words + 4 * i);
  }
#else
  for (int i = 0; i < kBlock; ++i) {
    const Words4 block = philox4x32(first[i], second[i], third, last, seed);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = block.w[j];
  }
#endif
}

// words[4 * i + j] of counters first..first+kBlock.
template <int kBlock = kNoiseBlock>
inline void fill_words(uint64_t seed, uint32_t first, uint32_t row, uint32_t sample, uint32_t last,
                       uint32_t* words) {
#if defined(VQ_HAS_WIDE_WORDS)
  using Wide = WideWords;
  static_assert(kBlock % (2 * Wide::kLanes) == 0);
  const Wide of_row = Wide::broadcast(row);
  for (uint32_t i = 0; i < kBlock; i += 2 * Wide::kLanes) {
    const Wide low = Wide::counters(first + i), high = Wide::counters(first + i + Wide::kLanes);
    fill_wide_words(seed, {low, high}, {of_row, of_row}, sample, last, words + 4 * i);
  }
#else
  for (uint32_t i = 0; i < kBlock; ++i) {
    const Words4 block = philox4x32(first + i, row, sample, last, seed);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = block.w[j];
  }
#endif
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
