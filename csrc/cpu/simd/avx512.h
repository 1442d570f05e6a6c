// Sixteen lanes of AVX-512.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace vqvae2_fast::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  // 12 rows x 2 vectors of accumulators, 2 of codes and a broadcast leave 5 of the 32 registers.
  static constexpr int kTileRows = 12;
  __m512 v;

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  // kLanes words, two bfloat16 each: the low halves and the high halves.
  static void load_halves(const float* words, Vec& low, Vec& high) {
    const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(words));
    low = {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
    high = {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)))};
  }
  // kLanes signed bytes.
  static Vec load_bytes(const int8_t* bytes) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(packed))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  Vec add_product(Vec a, Vec b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }
  // The same: the product is never rounded here.
  Vec add_product_fused(Vec a, Vec b) const { return add_product(a, b); }
  Vec operator-(Vec b) const { return {_mm512_sub_ps(v, b.v)}; }
  Vec operator+(Vec b) const { return {_mm512_add_ps(v, b.v)}; }
  Vec operator*(Vec b) const { return {_mm512_mul_ps(v, b.v)}; }
  Vec operator/(Vec b) const { return {_mm512_div_ps(v, b.v)}; }
  Vec square_root() const { return {_mm512_sqrt_ps(v)}; }
  // this where less than bound, else bound; NaN stays (min and max return their second operand).
  Vec at_most(Vec bound) const { return {_mm512_min_ps(bound.v, v)}; }
  Vec at_least(Vec bound) const { return {_mm512_max_ps(bound.v, v)}; }
  // positive where this > 0, else otherwise.
  Vec where_positive(Vec positive, Vec otherwise) const {
    const __mmask16 is_positive = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
    return {_mm512_mask_mov_ps(otherwise.v, is_positive, positive.v)};
  }
  // 2^n of 1.5 * 2^23 + n, whose low bits hold n; n in -126..127.
  Vec power_of_two() const {
    const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3F800000)))};
  }
};

#if defined(__AVX512VNNI__)
// Without VNNI, int16 takes two instructions, multiplication and addition, for the products that
// float32 computes in two, at the same rate on the processors for which this is the best level.
#define VQ_HAS_PAIR_PRODUCTS

// Sixteen sums of products of int16 pairs. The type has the lanes that the intrinsics have: GCC 12
// keeps an array of another type, such as __m512i, in memory.
struct PairSum {
  typedef int Lanes __attribute__((vector_size(64)));
  Lanes v;

  static PairSum zero() { return {Lanes{}}; }
  // this[l] + z.low * codes[l].low + z.high * codes[l].high.
  PairSum add_products(uint32_t z, const uint32_t* codes) const {
    const __m512i row = _mm512_set1_epi32(static_cast<int>(z));
    const __m512i code = _mm512_loadu_si512(codes);
    return {reinterpret_cast<Lanes>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(v), row, code))};
  }
  Vec to_float() const { return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v))}; }
};

// Writes kLanes values as int16, nearest, and returns what they stand for.
inline Vec store_rounded(Vec values, int16_t* rounded) {
  const __m256i words = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(values.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded), words);
  return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(words))};
}
#endif

// Per lane: keeps the least score and the second least. The low bits of a score are replaced by a
// tag, which says where it came from; a NaN score is dropped (min and max return their second
// operand).
inline void keep_two_least(Vec score, uint32_t clear, uint32_t tag, Vec& best, Vec& second) {
  constexpr int kSelect = 0xEA;  // (score & clear) | tag
  const __m512 tagged = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_castps_si512(score.v), _mm512_set1_epi32(static_cast<int>(clear)),
      _mm512_set1_epi32(static_cast<int>(tag)), kSelect));
  second.v = _mm512_min_ps(_mm512_max_ps(best.v, tagged), second.v);
  best.v = _mm512_min_ps(tagged, best.v);
}

inline float lane_sum(Vec a) { return _mm512_reduce_add_ps(a.v); }

inline float least_lane(Vec a) { return _mm512_reduce_min_ps(a.v); }

inline uint32_t lanes_at_most(Vec score, float bound) {
  return _mm512_cmp_ps_mask(score.v, _mm512_set1_ps(bound), _CMP_LE_OQ);
}

}  // namespace
}  // namespace vqvae2_fast::cpu
