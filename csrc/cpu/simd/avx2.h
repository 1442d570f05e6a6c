// Eight lanes of AVX2 with FMA.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace vqvae2_fast::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  // 6 rows x 2 vectors of accumulators, 2 of codes and 1 broadcast fill the 16 registers.
  static constexpr int kTileRows = 6;
  __m256 v;

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  Vec add_product(Vec a, Vec b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }
  // The same: the product is never rounded here.
  Vec add_product_fused(Vec a, Vec b) const { return add_product(a, b); }
  Vec operator-(Vec b) const { return {_mm256_sub_ps(v, b.v)}; }
  Vec operator+(Vec b) const { return {_mm256_add_ps(v, b.v)}; }
  Vec operator*(Vec b) const { return {_mm256_mul_ps(v, b.v)}; }
  Vec operator/(Vec b) const { return {_mm256_div_ps(v, b.v)}; }
  // this where less than bound, else bound; NaN stays (min and max return their second operand).
  Vec at_most(Vec bound) const { return {_mm256_min_ps(bound.v, v)}; }
  Vec at_least(Vec bound) const { return {_mm256_max_ps(bound.v, v)}; }
  // positive where this > 0, else otherwise.
  Vec where_positive(Vec positive, Vec otherwise) const {
    const __m256 is_positive = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ);
    return {_mm256_blendv_ps(otherwise.v, positive.v, is_positive)};
  }
  // 2^n of 1.5 * 2^23 + n, whose low bits hold n; n in -126..127.
  Vec power_of_two() const {
    const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3F800000)))};
  }
};

struct IndexVec {
  __m256i v;
  static IndexVec broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
  void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};

inline void keep_two_least(Vec score, IndexVec index, Vec& best, IndexVec& best_index,
                           Vec& second) {
  const __m256 less = _mm256_cmp_ps(score.v, best.v, _CMP_LT_OQ);
  // max returns its second operand on NaN: a NaN score must not hide behind the best.
  second.v = _mm256_min_ps(_mm256_max_ps(best.v, score.v), second.v);
  best.v = _mm256_blendv_ps(best.v, score.v, less);
  best_index.v = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(best_index.v), _mm256_castsi256_ps(index.v), less));
}

inline uint32_t lanes_at_most(Vec score, float bound) {
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(score.v, _mm256_set1_ps(bound), _CMP_LE_OQ)));
}

}  // namespace
}  // namespace vqvae2_fast::cpu
