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
  // The first `count` lanes, at most all; the others are 0.
  static Vec load_first(const float* p, int64_t count) {
    if (count == kLanes) return load(p);
    return {_mm256_maskload_ps(p, first_lanes(count))};
  }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // As store, past the caches: p is aligned to a vector, and others see what is stored after
  // `finish_streaming`.
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  static void finish_streaming() { _mm_sfence(); }
  void store_first(float* p, int64_t count) const {
    if (count == kLanes) return store(p);
    _mm256_maskstore_ps(p, first_lanes(count), v);
  }
  // The low byte of each lane's bits.
  void store_low_bytes(uint8_t* p) const {
    const __m256i first =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i fours = _mm256_shuffle_epi8(_mm256_castps_si256(v), first);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(p),
        _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
  }
  Vec add_product(Vec a, Vec b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }
  // The same: the product is never rounded here.
  Vec add_product_fused(Vec a, Vec b) const { return add_product(a, b); }
  Vec operator-(Vec b) const { return {_mm256_sub_ps(v, b.v)}; }
  Vec operator+(Vec b) const { return {_mm256_add_ps(v, b.v)}; }
  Vec operator*(Vec b) const { return {_mm256_mul_ps(v, b.v)}; }
  Vec operator/(Vec b) const { return {_mm256_div_ps(v, b.v)}; }
  Vec square_root() const { return {_mm256_sqrt_ps(v)}; }
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

 private:
  static __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// 32-bit words in lanes of 64 bits, whose high halves are of no account. The type has the lanes
// that the intrinsics have: GCC 12 keeps an array of another type, such as __m256i, in memory.
#define VQ_HAS_WIDE_WORDS
struct WideWords {
  static constexpr int kLanes = 4;
  typedef long long Lanes __attribute__((vector_size(32)));
  Lanes v;

  static WideWords broadcast(uint32_t word) { return {_mm256_set1_epi64x(word)}; }
  // kLanes words, and first, first + 1, ..., in the order in which `store` writes the lanes.
  static WideWords load(const uint32_t* words) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    return {_mm256_permute4x64_epi64(_mm256_cvtepu32_epi64(narrow), 0xD8)};
  }
  static WideWords counters(uint32_t first) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 2, 1, 3))};
  }
  WideWords operator+(WideWords b) const { return {_mm256_add_epi64(v, b.v)}; }
  // All 64 bits of the product of the words.
  WideWords times(WideWords b) const { return {_mm256_mul_epu32(v, b.v)}; }
  // A shuffle, since shifts wait for the ports of the products.
  WideWords high() const { return {_mm256_shuffle_epi32(v, 0xF5)}; }
  // a ^ b ^ c
  static WideWords mixed(WideWords a, WideWords b, WideWords c) {
    return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)};
  }
  // words[4 i + j] = word i of the j-th.
  static void store(WideWords a, WideWords b, WideWords c, WideWords d, uint32_t* words) {
    const __m256i ab = _mm256_blend_epi32(a.v, _mm256_slli_epi64(b.v, 32), 0xAA);
    const __m256i cd = _mm256_blend_epi32(c.v, _mm256_slli_epi64(d.v, 32), 0xAA);
    const auto at = [words](int word) { return reinterpret_cast<__m256i*>(words + word); };
    _mm256_storeu_si256(at(0), _mm256_unpacklo_epi64(ab, cd));
    _mm256_storeu_si256(at(8), _mm256_unpackhi_epi64(ab, cd));
  }
};

// Sums of products of int8, four inputs at a time: weights as they are, inputs with 128 added. The
// types have the lanes that the intrinsics have: GCC 12 keeps an array of another type, such as
// __m256i, in memory.
struct QuadSum {
  typedef unsigned Lanes __attribute__((vector_size(32)));
  Lanes v;

  static QuadSum zero() { return {Lanes{}}; }
  static QuadSum load(const int32_t* p) {
    return {reinterpret_cast<Lanes>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  void store(int32_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
  }
  QuadSum operator+(QuadSum b) const { return {v + b.v}; }
  Vec to_float() const { return {_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v))}; }

  // this[l] + sum over k of inputs[k] * weights[4 l + k].
#if defined(__AVXVNNI__)
  static constexpr int kTileRows = 6;
  // Whether the sums are of the inputs with 128 added, which the caller makes up for.
  static constexpr bool kBiased = true;
  struct Weights {
    Lanes v;
  };
  using Inputs = Weights;
  static Weights load_weights(const int8_t* bytes) {
    return {reinterpret_cast<Lanes>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)))};
  }
  static Inputs broadcast(const uint8_t* inputs) {
    int four;
    __builtin_memcpy(&four, inputs, sizeof(four));
    return {reinterpret_cast<Lanes>(_mm256_set1_epi32(four))};
  }
  QuadSum add_products(Inputs inputs, Weights weights) const {
    return {reinterpret_cast<Lanes>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(v),
                                                            reinterpret_cast<__m256i>(inputs.v),
                                                            reinterpret_cast<__m256i>(weights.v)))};
  }
#else
  // `maddubs` would saturate: bytes become int16, those at even and those at odd places.
#define VQ_SPLITS_QUADS
  static constexpr int kTileRows = 6;
  static constexpr bool kBiased = false;
  struct Weights {
    Lanes even, odd;
  };
  using Inputs = Weights;
  static Weights split(__m256i bytes) {
    return {reinterpret_cast<Lanes>(_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8)),
            reinterpret_cast<Lanes>(_mm256_srai_epi16(bytes, 8))};
  }
  static Weights load_weights(const int8_t* bytes) {
    return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
  }
  static Inputs broadcast(const uint8_t* inputs) {
    uint32_t four;
    __builtin_memcpy(&four, inputs, sizeof(four));
    return split(_mm256_set1_epi32(static_cast<int>(four ^ 0x80808080u)));
  }
  // As many quads as there are lanes.
  static Inputs load_inputs(const uint8_t* inputs) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(inputs));
    return split(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
  }
  // GCC 12 would put several multiplications before their additions: on Zen 3 a tile then takes 1.3
  // times as long, and with 6 rows it has no registers left for all sums.
  QuadSum add_pairs(Lanes inputs, Lanes weights) const {
    QuadSum sum = *this;
    Lanes products;
    asm("vpmaddwd %[weights], %[inputs], %[products]\n\t"
        "vpaddd %[products], %[sum], %[sum]"
        : [sum] "+x"(sum.v), [products] "=x"(products)
        : [inputs] "x"(inputs), [weights] "x"(weights));
    return sum;
  }
  QuadSum add_products(Inputs inputs, Weights weights) const {
    return add_pairs(inputs.even, weights.even).add_pairs(inputs.odd, weights.odd);
  }
#endif
};

#define VQ_HAS_PAIR_PRODUCTS

// Eight sums of products of int16 pairs. The type has the lanes that the intrinsics have: GCC 12
// keeps an array of another type, such as __m256i, in memory.
struct PairSum {
  typedef unsigned Lanes __attribute__((vector_size(32)));
  Lanes v;

  static PairSum zero() { return {Lanes{}}; }
  // this[l] + z.low * codes[l].low + z.high * codes[l].high.
  PairSum add_products(uint32_t z, const uint32_t* codes) const {
    const __m256i row = _mm256_set1_epi32(static_cast<int>(z));
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
#if defined(__AVXVNNI__)
    return {
        reinterpret_cast<Lanes>(_mm256_dpwssd_avx_epi32(reinterpret_cast<__m256i>(v), row, code))};
#else
    return {v + reinterpret_cast<Lanes>(_mm256_madd_epi16(row, code))};
#endif
  }
  Vec to_float() const { return {_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v))}; }
};

// Writes kLanes values as int16, nearest, and returns what they stand for.
inline Vec store_rounded(Vec values, int16_t* rounded) {
  const __m256i integers = _mm256_cvtps_epi32(values.v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rounded), words);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words))};
}

// Per lane: keeps the least score and the second least. The low bits of a score are replaced by a
// tag, which says where it came from; a NaN score is dropped (min and max return their second
// operand).
inline void keep_two_least(Vec score, uint32_t clear, uint32_t tag, Vec& best, Vec& second) {
  const __m256 clear_bits = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(clear)));
  const __m256 tag_bits = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(tag)));
  const __m256 tagged = _mm256_or_ps(_mm256_and_ps(score.v, clear_bits), tag_bits);
  second.v = _mm256_min_ps(_mm256_max_ps(best.v, tagged), second.v);
  best.v = _mm256_min_ps(tagged, best.v);
}

// sums[i] = lane_sum(a[i]) of four, in another order.
inline void lane_sums(const Vec* a, float* sums) {
  const __m256 fours =
      _mm256_hadd_ps(_mm256_hadd_ps(a[0].v, a[1].v), _mm256_hadd_ps(a[2].v, a[3].v));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
}

inline float lane_sum(Vec a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline float least_lane(Vec a) {
  __m128 half = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_min_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_min_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline uint32_t lanes_at_most(Vec score, float bound) {
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(score.v, _mm256_set1_ps(bound), _CMP_LE_OQ)));
}

}  // namespace
}  // namespace vqvae2_fast::cpu

#include "bytes_avx2.h"
