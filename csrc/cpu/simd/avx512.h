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
  // The first `count` lanes, at most all; the others are 0.
  static Vec load_first(const float* p, int64_t count) {
    return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
  }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  // As store, past the caches: p is aligned to a vector, and others see what is stored after
  // `finish_streaming`.
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  static void finish_streaming() { _mm_sfence(); }
  void store_first(float* p, int64_t count) const {
    _mm512_mask_storeu_ps(p, first_lanes(count), v);
  }
  // The low byte of each lane's bits.
  void store_low_bytes(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
  }
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

 private:
  static __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>((uint32_t{1} << count) - 1);
  }
};

// 32-bit words in lanes of 64 bits, whose high halves are of no account. The type has the lanes
// that the intrinsics have: GCC 12 keeps an array of another type, such as __m512i, in memory.
#define VQ_HAS_WIDE_WORDS
struct WideWords {
  static constexpr int kLanes = 8;
  typedef long long Lanes __attribute__((vector_size(64)));
  Lanes v;

  static WideWords broadcast(uint32_t word) { return {_mm512_set1_epi64(word)}; }
  // kLanes words, and first, first + 1, ..., in the order in which `store` writes the lanes.
  static WideWords load(const uint32_t* words) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return {_mm512_permutexvar_epi64(order(), _mm512_cvtepu32_epi64(narrow))};
  }
  static WideWords counters(uint32_t first) {
    return {_mm512_add_epi64(_mm512_set1_epi64(first), order())};
  }
  WideWords operator+(WideWords b) const { return {_mm512_add_epi64(v, b.v)}; }
  // All 64 bits of the product of the words.
  WideWords times(WideWords b) const { return {_mm512_mul_epu32(v, b.v)}; }
  // A shuffle, since shifts wait for the port of the products.
  WideWords high() const { return {_mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xF5))}; }
  // a ^ b ^ c
  static WideWords mixed(WideWords a, WideWords b, WideWords c) {
    return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)};
  }
  // words[4 i + j] = word i of the j-th.
  static void store(WideWords a, WideWords b, WideWords c, WideWords d, uint32_t* words) {
    const __m512i ab = _mm512_mask_blend_epi32(0xAAAA, a.v, _mm512_slli_epi64(b.v, 32));
    const __m512i cd = _mm512_mask_blend_epi32(0xAAAA, c.v, _mm512_slli_epi64(d.v, 32));
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(ab, cd));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(ab, cd));
  }

 private:
  static __m512i order() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
};

// Sums of products of int8, four inputs at a time: weights as they are, inputs with 128 added. The
// types have the lanes that the intrinsics have: GCC 12 keeps an array of another type, such as
// __m512i, in memory.
struct QuadSum {
  static constexpr int kTileRows = 12;
  typedef unsigned Lanes __attribute__((vector_size(64)));
  Lanes v;

  static QuadSum zero() { return {Lanes{}}; }
  static QuadSum load(const int32_t* p) { return {reinterpret_cast<Lanes>(_mm512_loadu_si512(p))}; }
  void store(int32_t* p) const { _mm512_storeu_si512(p, reinterpret_cast<__m512i>(v)); }
  QuadSum operator+(QuadSum b) const { return {v + b.v}; }
  Vec to_float() const { return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v))}; }

  // this[l] + sum over k of inputs[k] * weights[4 l + k].
#if defined(__AVX512VNNI__)
  // Whether the sums are of the inputs with 128 added, which the caller makes up for.
  static constexpr bool kBiased = true;
  struct Weights {
    Lanes v;
  };
  using Inputs = Weights;
  static Weights load_weights(const int8_t* bytes) {
    return {reinterpret_cast<Lanes>(_mm512_loadu_si512(bytes))};
  }
  static Inputs broadcast(const uint8_t* inputs) {
    int four;
    __builtin_memcpy(&four, inputs, sizeof(four));
    return {reinterpret_cast<Lanes>(_mm512_set1_epi32(four))};
  }
  QuadSum add_products(Inputs inputs, Weights weights) const {
    return {reinterpret_cast<Lanes>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(v),
                                                        reinterpret_cast<__m512i>(inputs.v),
                                                        reinterpret_cast<__m512i>(weights.v)))};
  }
#else
  // `maddubs` would saturate: bytes become int16, those at even and those at odd places.
  static constexpr bool kBiased = false;
  struct Weights {
    Lanes even, odd;
  };
  using Inputs = Weights;
  static Weights split(__m512i bytes) {
    return {reinterpret_cast<Lanes>(_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8)),
            reinterpret_cast<Lanes>(_mm512_srai_epi16(bytes, 8))};
  }
  static Weights load_weights(const int8_t* bytes) { return split(_mm512_loadu_si512(bytes)); }
  static Inputs broadcast(const uint8_t* inputs) {
    uint32_t four;
    __builtin_memcpy(&four, inputs, sizeof(four));
    return split(_mm512_set1_epi32(static_cast<int>(four ^ 0x80808080u)));
  }
  QuadSum add_products(Inputs inputs, Weights weights) const {
    const __m512i even = _mm512_madd_epi16(reinterpret_cast<__m512i>(inputs.even),
                                           reinterpret_cast<__m512i>(weights.even));
    const __m512i odd = _mm512_madd_epi16(reinterpret_cast<__m512i>(inputs.odd),
                                          reinterpret_cast<__m512i>(weights.odd));
    return {v + reinterpret_cast<Lanes>(even) + reinterpret_cast<Lanes>(odd)};
  }
#endif
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

// sums[i] = lane_sum(a[i]) of four, in another order.
inline void lane_sums(const Vec* a, float* sums) {
  const __m512 low =
      _mm512_add_ps(_mm512_unpacklo_ps(a[0].v, a[1].v), _mm512_unpackhi_ps(a[0].v, a[1].v));
  const __m512 high =
      _mm512_add_ps(_mm512_unpacklo_ps(a[2].v, a[3].v), _mm512_unpackhi_ps(a[2].v, a[3].v));
  const __m512d pairs[2] = {_mm512_castps_pd(low), _mm512_castps_pd(high)};
  const __m512 fours = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[1])),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[1])));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(fours), _mm512_extractf32x8_ps(fours, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

inline float least_lane(Vec a) { return _mm512_reduce_min_ps(a.v); }

inline uint32_t lanes_at_most(Vec score, float bound) {
  return _mm512_cmp_ps_mask(score.v, _mm512_set1_ps(bound), _CMP_LE_OQ);
}

}  // namespace
}  // namespace vqvae2_fast::cpu

// Tiles are faster than bytes.
#if !defined(__AMX_TILE__)
#include "bytes_avx512.h"
#endif
