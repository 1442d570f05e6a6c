// AVX-512 of processors with AMX: tiles of bfloat16 in the search, of int8 in engine `cpu_w8a8`.
#pragma once

#include "avx512_vnni.h"
#include "tiles.h"

namespace vqvae2_fast::cpu {
namespace {

// Writes kLanes values as bfloat16, nearest, and returns what they stand for; subnormal ones become
// zero.
inline Vec store_bfloat16(Vec values, uint16_t* rounded) {
  const __m256i halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded), halves);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

}  // namespace
}  // namespace vqvae2_fast::cpu
