// Sums of products of bytes for the search (byte_screen-inl.h). Included by avx512.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define VQ_HAS_BYTE_PRODUCTS

namespace vqvae2_fast::cpu {
namespace {

// Sixteen scores of int32, sums of products of bytes, four dimensions at a time.
struct ByteSum {
  static constexpr int kLanes = 16, kDims = 4;
  static constexpr int kMostDims = 512, kMostCode = 127;
#if defined(__AVX512VNNI__)
  static constexpr int kSectionWords = 0;
#else
  static constexpr int kSectionWords = 16;
#endif
  // Of two components that share a word: with these, a sum of two products does not saturate.
  static constexpr int kMostPair = kSectionWords > 0 ? 127 : 0;
  static constexpr int kMostHalf = 1 << 22, kMostScore = 1 << 30;
  using Half = float;
  using Offset = int32_t;
  using Score = int32_t;
  typedef unsigned Lanes __attribute__((vector_size(64)));
  Lanes v;

  static Half half(float count) { return count; }
  static uint32_t factor(float ratio) {
    uint32_t bits;
    __builtin_memcpy(&bits, &ratio, sizeof(bits));
    return bits;
  }
  // round(half_norms * factor) - offsets.
  static ByteSum start(const Half* half_norms, uint32_t factor, const Offset* offsets) {
    const __m512 ratio = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(factor)));
    const __m512i scaled = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(half_norms), ratio));
    return {reinterpret_cast<Lanes>(_mm512_sub_epi32(scaled, _mm512_loadu_si512(offsets)))};
  }
#if defined(__AVX512VNNI__)
  // this[l] + sum over k of z[k] * codes[4 l + k], unsigned z and signed codes.
  ByteSum add_products(uint32_t z, const int8_t* codes) const {
    const __m512i row = _mm512_set1_epi32(static_cast<int>(z));
    return {reinterpret_cast<Lanes>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(v), row, _mm512_loadu_si512(codes)))};
  }
#else
  // Sums of a section of the words, in two int16 for each score, which wrap around. In the end they
  // are whole, because a section starts with what the bias adds to it.
  struct Section {
    typedef unsigned short Lanes __attribute__((vector_size(64)));
    Lanes v;

    static Section load(const int8_t* start) {
      return {reinterpret_cast<Lanes>(_mm512_loadu_si512(start))};
    }
    // As ByteSum::add_products.
    Section add_products(uint32_t z, const int8_t* codes) const {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(z));
      return {v + reinterpret_cast<Lanes>(_mm512_maddubs_epi16(row, _mm512_loadu_si512(codes)))};
    }
  };
  ByteSum plus(Section section) const {
    const __m512i pairs =
        _mm512_madd_epi16(reinterpret_cast<__m512i>(section.v), _mm512_set1_epi16(1));
    return {v + reinterpret_cast<Lanes>(pairs)};
  }
#endif
  ByteSum lesser(ByteSum b) const {
    return {reinterpret_cast<Lanes>(
        _mm512_min_epi32(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(b.v)))};
  }
  Score least() const { return _mm512_reduce_min_epi32(reinterpret_cast<__m512i>(v)); }
  uint32_t lanes_at_most(Score bound) const {
    return _mm512_cmple_epi32_mask(reinterpret_cast<__m512i>(v), _mm512_set1_epi32(bound));
  }
};

#if !defined(__AVX512VNNI__)
#define VQ_HAS_SHORT_BYTE_SUMS

// Thirty-two scores of int16, which wrap around: sums of products of bytes, two dimensions at a
// time. Words of rows stand twice in 32 bits.
struct ShortByteSum {
  static constexpr int kLanes = 32, kDims = 2;
  static constexpr int kMostDims = 64, kSectionWords = 0;
  static constexpr int kMostCode = 63;  // a sum of two products does not saturate
  static constexpr int kMostPair = 0;
  static constexpr int kMostHalf = 32767, kMostScore = 32767;
  using Half = int16_t;
  using Offset = int16_t;
  using Score = int16_t;
  typedef unsigned short Lanes __attribute__((vector_size(64)));
  Lanes v;

  static Half half(float count) { return static_cast<Half>(count + 0.5f); }
  static uint32_t factor(float ratio) { return static_cast<uint32_t>(32768 * ratio + 0.5f); }
  // round(half_norms * factor / 2^15) - offsets.
  static ShortByteSum start(const Half* half_norms, uint32_t factor, const Offset* offsets) {
    const __m512i scaled = _mm512_mulhrs_epi16(_mm512_loadu_si512(half_norms),
                                               _mm512_set1_epi16(static_cast<int16_t>(factor)));
    return {reinterpret_cast<Lanes>(_mm512_sub_epi16(scaled, _mm512_loadu_si512(offsets)))};
  }
  // this[l] + z.low * codes[l].low + z.high * codes[l].high, unsigned z and signed codes.
  ShortByteSum add_products(uint32_t z, const int8_t* codes) const {
    const __m512i row = _mm512_set1_epi32(static_cast<int>(z));
    return {v + reinterpret_cast<Lanes>(_mm512_maddubs_epi16(row, _mm512_loadu_si512(codes)))};
  }
  ShortByteSum lesser(ShortByteSum b) const {
    return {reinterpret_cast<Lanes>(
        _mm512_min_epi16(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(b.v)))};
  }
  Score least() const {
    const __m512i all = reinterpret_cast<__m512i>(v);
    const __m256i half =
        _mm256_min_epi16(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i quarter =
        _mm_min_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    // The instruction compares without signs.
    const __m128i sign = _mm_set1_epi16(-0x8000);
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(quarter, sign));
    return static_cast<Score>(_mm_cvtsi128_si32(_mm_xor_si128(least, sign)));
  }
  uint32_t lanes_at_most(Score bound) const {
    return _mm512_cmple_epi16_mask(reinterpret_cast<__m512i>(v), _mm512_set1_epi16(bound));
  }
};
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
