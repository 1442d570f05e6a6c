// The scalar level with emulated tiles, for tests.
#pragma once

#include "scalar.h"
#include "tiles_emulated.h"

namespace vqvae2_fast::cpu {
namespace {

// Writes kLanes values as bfloat16, nearest, and returns what they stand for.
inline Vec store_bfloat16(Vec values, uint16_t* rounded) {
  Vec stored;
  for (int l = 0; l < Vec::kLanes; ++l) {
    rounded[l] = bfloat16_from_float(values.v[l]);
    stored.v[l] = float_from_bits(static_cast<uint32_t>(rounded[l]) << 16);
  }
  return stored;
}

// Words whose low halves are 16 of `even` and whose high halves are 16 of `odd`.
inline void interleave_halves(const uint16_t* even, const uint16_t* odd, uint32_t* words) {
  for (int i = 0; i < 16; ++i) words[i] = even[i] | static_cast<uint32_t>(odd[i]) << 16;
}

// The transpose of 16 x 16 words.
inline void transpose_words(const uint32_t* words, uint32_t* out) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[16 * j + i] = words[16 * i + j];
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
