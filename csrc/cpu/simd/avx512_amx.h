// AVX-512 of processors with AMX: tiles of bfloat16 in the search and in rounded convolutions, of
// int8 in engine `cpu_w8a8`.
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

// Words whose low halves are 16 of `even` and whose high halves are 16 of `odd`.
inline void interleave_halves(const uint16_t* even, const uint16_t* odd, uint32_t* words) {
  const auto widen = [](const uint16_t* halves) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  };
  _mm512_storeu_si512(words, _mm512_or_si512(widen(even), _mm512_slli_epi32(widen(odd), 16)));
}

// The transpose of 16 x 16 words. Pieces of four words are put in place as they are loaded, because
// shuffles have one port and loads have two.
inline void transpose_words(const uint32_t* words, uint32_t* out) {
  for (int group = 0; group < 4; ++group) {  // columns 4 group..4 group + 3
    __m512i rows[4];                         // of rows i, i + 4, i + 8 and i + 12
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto piece = [&](int row) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(words + 16 * row + 4 * group));
      };
      rows[i] = _mm512_broadcast_i32x4(piece(i));
      rows[i] = _mm512_mask_broadcast_i32x4(rows[i], 0x00F0, piece(i + 4));
      rows[i] = _mm512_mask_broadcast_i32x4(rows[i], 0x0F00, piece(i + 8));
      rows[i] = _mm512_mask_broadcast_i32x4(rows[i], 0xF000, piece(i + 12));
    }
    const __m512i low_even = _mm512_unpacklo_epi32(rows[0], rows[1]);
    const __m512i low_odd = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i high_even = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i high_odd = _mm512_unpackhi_epi32(rows[2], rows[3]);
    uint32_t* const to = out + 64 * group;
    _mm512_store_si512(to, _mm512_unpacklo_epi64(low_even, low_odd));
    _mm512_store_si512(to + 16, _mm512_unpackhi_epi64(low_even, low_odd));
    _mm512_store_si512(to + 32, _mm512_unpacklo_epi64(high_even, high_odd));
    _mm512_store_si512(to + 48, _mm512_unpackhi_epi64(high_even, high_odd));
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
