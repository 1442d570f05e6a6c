// Rows of the search as bytes: the first half of the screen of byte_screen-inl.h. Include after a
// simd/ header.
#pragma once

#include <math.h>
#include <string.h>

#include "band-inl.h"
#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

#if defined(VQ_HAS_BYTE_PRODUCTS)
// Integers of a row are at most kMostByte; as bytes they have kByteBias added.
constexpr int kMostByte = 127, kByteBias = 128;

// Words of a row, and of a code, which has one more at the start of each section.
template <class Sum>
constexpr int64_t byte_words(int64_t dim) {
  return (dim + Sum::kDims - 1) / Sum::kDims;
}
template <class Sum>
constexpr int64_t stored_byte_words(int64_t dim) {
  const int64_t words = byte_words<Sum>(dim);
  if constexpr (Sum::kSectionWords == 0) return words;
  return words + (words + Sum::kSectionWords - 1) / Sum::kSectionWords;
}

// Room for the candidates of a row. If it does not suffice, the row goes to the next screen.
constexpr int kMostCandidates = Shortlist::kCapacity;

// Rows as bytes with 128 added, in one unit, so that the sums of all of them start alike.
template <class Sum>
struct ByteTile {
  static constexpr int64_t kWords = Sum::kMostDims / Sum::kDims;
  uint32_t words[kTileRows][kWords];
  uint32_t factor;
  float product;  // of the units of rows and codes
};

template <class Sum>
struct ByteRow {
  bool is_screened;
  float norm, error;  // upper bounds of |z'| and of the error of its bytes
  int least, count;
  int bound;  // scores up to this may belong to the nearest code
  struct {
    int32_t code;
    int score;
  } candidates[kMostCandidates];

  // Takes the least score of a part of the codes, where a score counts `product`.
  void lower(const PackedCodebook& codebook, float product, int score) {
    if (score >= least) return;
    least = score;
    // As in Band, with the largest norm.
    const float moved = codebook.bytes.residual, largest = static_cast<float>(codebook.max_norm);
    float above = product * static_cast<float>(least + 3), length = norm, offset = 0;
    if (codebook.halves_of_stored) {
      length = norm + error;
      offset = error + moved;
    } else {
      above += 1.01f * (error * (largest + moved) + norm * moved);
    }
    const float square = length * length * (1 + 0x1p-20f) + 2 * above;
    const float distance = (sqrtf(square > 0 ? square : 0) + offset) * 1.0001f;
    const float farther = codebook.halves_of_stored ? distance + moved : norm;
    const float nearer = (distance < largest ? distance : largest) + moved;
    const float errors = moved * farther + error * nearer;
    const float width = static_cast<float>(VQ_BAND_SCALE) * (2.02f * errors / product + 6);
    const bool is_narrow = width < static_cast<float>(Sum::kMostScore - least);
    bound = is_narrow ? least + static_cast<int>(width) + 1 : Sum::kMostScore;
  }
  void drop_beaten() {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      candidates[kept] = candidates[i];
      kept += candidates[i].score <= bound;
    }
    count = kept;
  }
};

// Dimensions of a section of words, 0 if the words are not divided.
template <class Sum>
constexpr int64_t kSectionDims = Sum::kSectionWords * Sum::kDims;

// An upper bound of |z'| within any section.
template <class Sum>
inline float section_norm(const PackedCodebook& codebook, const float* z) {
  Vec squares = Vec::broadcast(0.0f);
  float largest = 0;
  for_each_centered(z, codebook, [&](int64_t d, Vec values) {
    squares = squares.add_product(values, values);
    const int64_t end = d + Vec::kLanes;
    if (end % kSectionDims<Sum> != 0 && end < codebook.dim) return;
    const float square = lane_sum(squares);
    largest = square > largest ? square : largest;
    squares = Vec::broadcast(0.0f);
  });
  return norm_above(largest, kSectionDims<Sum>);
}

// The least unit of the integers of a row in which nothing is clipped and no score leaves its type,
// or infinity if the row is not screened.
template <class Sum>
inline float byte_unit(const PackedCodebook& codebook, const float* z) {
  const ByteCodes& bytes = codebook.bytes;
  const int64_t dim = codebook.dim;
  const Vec zero = Vec::broadcast(0.0f);
  Vec squares = zero, sizes = zero;
  for_each_centered(z, codebook, [&](int64_t, Vec values) {
    squares = squares.add_product(values, values);
    sizes = sizes.at_least(values).at_least(zero - values);
  });
  const float norm = norm_above(lane_sum(squares), dim), largest = -least_lane(zero - sizes);
  if (!(norm < 0x1p16f * static_cast<float>(codebook.max_norm))) return INFINITY;
  float least = bytes.half_unit / bytes.unit * 1.0001f;
  // |integers| <= norm / unit + sqrt(D) / 2. In 32 bits the sum of products is at most 2^23.
  const auto room = [](float code_norm, int64_t dims) {
    return 32000 - code_norm * sqrtf(static_cast<float>(dims)) / 2;
  };
  if constexpr (sizeof(typename Sum::Score) == 2) {
    // Half norms count up to their largest.
    const float products = norm * bytes.norm;
    least = (32768 * bytes.half_unit / bytes.unit + products) / room(bytes.norm, dim);
  } else if constexpr (Sum::kSectionWords > 0) {
    const float products = section_norm<Sum>(codebook, z) * bytes.section_norm;
    const float needed = products / room(bytes.section_norm, kSectionDims<Sum>);
    least = needed > least ? needed : least;
  }
  const float unit = largest * (1.0001f / kMostByte);
  return unit > least ? unit : least;
}

// Sorts list[0..count), a block at most, by the units of its rows, so that those of a tile are much
// the same, and writes the units in this order. A bucket of units is at most a sixteenth wide; the
// last one holds all that are 240 times the least or more.
template <class Sum>
inline void sort_by_unit(const PackedCodebook& codebook, const float* const* rows, int64_t* list,
                         int64_t count, float* units) {
  constexpr int kBuckets = 128, kMantissaBits = 4;
  static_assert(kMaxBlockTiles * kTileRows < 256);
  int64_t unsorted[kMaxBlockTiles * kTileRows];
  float found[kMaxBlockTiles * kTileRows];
  uint8_t buckets[kMaxBlockTiles * kTileRows];
  float least = INFINITY;
  for (int64_t n = 0; n < count; ++n) {
    unsorted[n] = list[n];
    found[n] = byte_unit<Sum>(codebook, rows[list[n]]);
    least = found[n] < least ? found[n] : least;
  }
  // Positive floats are in the order of their bits.
  uint8_t ends[kBuckets] = {};
  for (int64_t n = 0; n < count; ++n) {
    const uint32_t above = (bits_of(found[n]) - bits_of(least)) >> (23 - kMantissaBits);
    buckets[n] = static_cast<uint8_t>(above < kBuckets ? above : kBuckets - 1);
    ++ends[buckets[n]];
  }
  for (int i = 1; i < kBuckets; ++i) ends[i] = static_cast<uint8_t>(ends[i] + ends[i - 1]);
  for (int64_t n = count - 1; n >= 0; --n) {
    const int64_t i = --ends[buckets[n]];
    list[i] = unsorted[n];
    units[i] = found[n];
  }
}

// Writes m - z as bytes of a tile in the given unit, and begins the row.
template <class Sum>
inline void stage_bytes(const PackedCodebook& codebook, const float* z, float unit, uint32_t* words,
                        ByteRow<Sum>& row) {
  constexpr int kDims = Sum::kDims;
  // The last bit of 1.5 * 2^23 stands for one.
  constexpr float kBiased = 0x1.8p23f + kByteBias;
  const int64_t dim = codebook.dim;
  const Vec inverse = Vec::broadcast(1 / unit);
  Vec squares = Vec::broadcast(0.0f), error_squares = squares;
  uint8_t packed[Sum::kMostDims + Vec::kLanes];  // whole vectors are written
  for_each_centered(z, codebook, [&](int64_t d, Vec values) {
    const Vec integers = values * inverse + Vec::broadcast(kBiased);
    const Vec errors = values - (integers - Vec::broadcast(kBiased)) * Vec::broadcast(unit);
    squares = squares.add_product(values, values);
    error_squares = error_squares.add_product(errors, errors);
    integers.store_low_bytes(packed + d);
  });
  for (int64_t d = 0; d < dim; d += kDims) {
    uint32_t word = 0;
    memcpy(&word, packed + d, kDims);
    words[d / kDims] = kDims == 2 ? word * 0x10001u : word;
  }
  // The roundings of m - z and of the errors, whose squares were summed in float32.
  const float norm = norm_above(lane_sum(squares), dim);
  row.error = norm_above(lane_sum(error_squares), dim) + norm * 0x1p-22f;
  row.norm = norm;
  row.is_screened = true;
  row.least = row.bound = Sum::kMostScore;
  row.count = 0;
}

// Writes the rows list[0..kTileRows) as a tile.
template <class Sum>
inline void stage_byte_tile(const PackedCodebook& codebook, const float* const* rows,
                            const int64_t* list, const float* units, ByteTile<Sum>& tile,
                            ByteRow<Sum>* state) {
  float unit = 0;
  for (int r = 0; r < kTileRows; ++r) {
    if (units[r] < INFINITY && units[r] > unit) unit = units[r];
  }
  tile.product = unit * codebook.bytes.unit;
  tile.factor = unit > 0 ? Sum::factor(codebook.bytes.half_unit / tile.product) : 0;
  for (int r = 0; r < kTileRows; ++r) {
    if (units[r] < INFINITY) {
      stage_bytes<Sum>(codebook, rows[list[r]], unit, tile.words[r], state[r]);
    } else {
      state[r].is_screened = false;
      state[r].count = 0;
      memset(tile.words[r], 0, sizeof(tile.words[r]));
    }
  }
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
