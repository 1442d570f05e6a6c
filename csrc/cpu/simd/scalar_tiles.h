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

}  // namespace
}  // namespace vqvae2_fast::cpu
