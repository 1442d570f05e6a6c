// Sums of products of bytes for the search (byte_screen-inl.h). Included by avx2.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define VQ_HAS_BYTE_PRODUCTS

namespace vqvae2_fast::cpu {
namespace {

// Eight scores of int32, sums of products of bytes, four dimensions at a time.
struct ByteSum {
  static constexpr int kLanes = 8, kDims = 4;
  static constexpr int kMostDims = 512, kMostCode = 127;
#if defined(__AVXVNNI__)
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
  typedef unsigned Lanes __attribute__((vector_size(32)));
  Lanes v;

  static Half half(float count) { return count; }
  static uint32_t factor(float ratio) {
    uint32_t bits;
    __builtin_memcpy(&bits, &ratio, sizeof(bits));
    return bits;
  }
  // round(half_norms * factor) - offsets.
  static ByteSum start(const Half* half_norms, uint32_t factor, const Offset* offsets) {
    const __m256 ratio = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(factor)));
    const __m256i scaled = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(half_norms), ratio));
    const __m256i less = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets));
    return {reinterpret_cast<Lanes>(_mm256_sub_epi32(scaled, less))};
  }
#if defined(__AVXVNNI__)
  // this[l] + sum over k of z[k] * codes[4 l + k], unsigned z and signed codes.
  ByteSum add_products(uint32_t z, const int8_t* codes) const {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i row = _mm256_set1_epi32(static_cast<int>(z));
    return {
        reinterpret_cast<Lanes>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(v), row, code))};
  }
#else
  // Sums of a section of the words, in two int16 for each score, which wrap around. In the end they
  // are whole, because a section starts with what the bias adds to it.
  struct Section {
    typedef unsigned short Lanes __attribute__((vector_size(32)));
    Lanes v;

    static Section load(const int8_t* start) {
      const auto* const words = reinterpret_cast<const __m256i*>(start);
      return {reinterpret_cast<Lanes>(_mm256_loadu_si256(words))};
    }
    // As ByteSum::add_products.
    Section add_products(uint32_t z, const int8_t* codes) const {
      const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      const __m256i row = _mm256_set1_epi32(static_cast<int>(z));
      return {v + reinterpret_cast<Lanes>(_mm256_maddubs_epi16(row, code))};
    }
  };
  ByteSum plus(Section section) const {
    const __m256i pairs =
        _mm256_madd_epi16(reinterpret_cast<__m256i>(section.v), _mm256_set1_epi16(1));
    return {v + reinterpret_cast<Lanes>(pairs)};
  }
#endif
  ByteSum lesser(ByteSum b) const {
    return {reinterpret_cast<Lanes>(
        _mm256_min_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(b.v)))};
  }
  Score least() const {
    const __m256i all = reinterpret_cast<__m256i>(v);
    __m128i half = _mm_min_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_min_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_min_epi32(half, _mm_shuffle_epi32(half, 1)));
  }
  uint32_t lanes_at_most(Score bound) const {
    const __m256i above =
        _mm256_cmpgt_epi32(reinterpret_cast<__m256i>(v), _mm256_set1_epi32(bound));
    return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above))) & 0xFFu;
  }
};

#if !defined(__AVXVNNI__)
#define VQ_HAS_SHORT_BYTE_SUMS

// Sixteen scores of int16, which wrap around: sums of products of bytes, two dimensions at a time.
// Words of rows stand twice in 32 bits.
struct ShortByteSum {
  static constexpr int kLanes = 16, kDims = 2;
  static constexpr int kMostDims = 64, kSectionWords = 0;
  static constexpr int kMostCode = 63;  // a sum of two products does not saturate
  static constexpr int kMostPair = 0;
  static constexpr int kMostHalf = 32767, kMostScore = 32767;
  using Half = int16_t;
  using Offset = int16_t;
  using Score = int16_t;
  typedef unsigned short Lanes __attribute__((vector_size(32)));
  Lanes v;

  static Half half(float count) { return static_cast<Half>(count + 0.5f); }
  static uint32_t factor(float ratio) { return static_cast<uint32_t>(32768 * ratio + 0.5f); }
  // round(half_norms * factor / 2^15) - offsets.
  static ShortByteSum start(const Half* half_norms, uint32_t factor, const Offset* offsets) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half_norms));
    const __m256i ratio = _mm256_set1_epi16(static_cast<int16_t>(factor));
    const __m256i less = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets));
    return {reinterpret_cast<Lanes>(_mm256_sub_epi16(_mm256_mulhrs_epi16(halves, ratio), less))};
  }
  // this[l] + z.low * codes[l].low + z.high * codes[l].high, unsigned z and signed codes.
  ShortByteSum add_products(uint32_t z, const int8_t* codes) const {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i row = _mm256_set1_epi32(static_cast<int>(z));
    return {v + reinterpret_cast<Lanes>(_mm256_maddubs_epi16(row, code))};
  }
  ShortByteSum lesser(ShortByteSum b) const {
    return {reinterpret_cast<Lanes>(
        _mm256_min_epi16(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(b.v)))};
  }
  Score least() const {
    const __m256i all = reinterpret_cast<__m256i>(v);
    const __m128i half =
        _mm_min_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    // The instruction compares without signs.
    const __m128i sign = _mm_set1_epi16(-0x8000);
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, sign));
    return static_cast<Score>(_mm_cvtsi128_si32(_mm_xor_si128(least, sign)));
  }
  uint32_t lanes_at_most(Score bound) const {
    const __m256i above =
        _mm256_cmpgt_epi16(reinterpret_cast<__m256i>(v), _mm256_set1_epi16(bound));
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(above), _mm256_extracti128_si256(above, 1));
    return ~static_cast<uint32_t>(_mm_movemask_epi8(bytes)) & 0xFFFFu;
  }
};
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
