// AVX-512 with bfloat16 dot products: the vectors of avx512.h, and pairs of dimensions.
#pragma once

#include "avx512.h"

#define VQ_HAS_PAIR_PRODUCTS

namespace vqvae2_fast::cpu {
namespace {

// this[l] + z.low * codes[l].low + z.high * codes[l].high; each word holds two bfloat16. Denormal
// inputs count as zero, denormal results become zero.
inline Vec add_pair_products(Vec sum, uint32_t z, const uint32_t* codes) {
  return {_mm512_dpbf16_ps(sum.v,
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(z))),
                           reinterpret_cast<__m512bh>(_mm512_loadu_si512(codes)))};
}

// Writes kLanes values as bfloat16, nearest even, and returns what rounding took away, exactly.
inline Vec store_rounded(Vec values, uint16_t* rounded) {
  const __m256i bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded), bits);
  const __m512i widened = _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  return {_mm512_sub_ps(values.v, _mm512_castsi512_ps(widened))};
}

}  // namespace
}  // namespace vqvae2_fast::cpu
