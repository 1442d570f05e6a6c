// The first screen of many codes: scores in integers from products of bytes, kept for a part of the
// codes and picked by the least of each block. Include after a simd/ header. The band and its
// proof: vqvae2_fast/ops/nearest_code/README.md.
#pragma once

#include <math.h>
#include <string.h>

#include "band-inl.h"
#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

#if defined(VQ_HAS_BYTE_PRODUCTS)
// A block is this many vectors of codes, two panels.
constexpr int64_t kBlockVectors = 4;
constexpr int64_t kByteBlock = kBlockVectors * ByteSum::kLanes;

// csrc/tests/band_test.cpp keeps all candidates of its few codes.
#if defined(VQ_ALL_CANDIDATES)
constexpr bool kAllCandidates = true;
#else
constexpr bool kAllCandidates = false;
#endif

// Whether `candidates` of a row cost less than bytes save in its products.
inline bool bytes_pay(int64_t num_codes, int64_t dim, double candidates) {
  return candidates * ByteSum::kProductsPerCandidate <= static_cast<double>(num_codes * dim);
}

inline bool suit_bytes(int64_t num_codes, int64_t dim) {
  return num_codes >= ByteSum::kFewestCodes && dim >= ByteSum::kFewestDims &&
         dim <= ByteSum::kMostDims && bytes_pay(num_codes, dim, 2);
}

constexpr ByteLayout kByteLayout = {.suits = suit_bytes,
                                    .block = kByteBlock,
                                    .dims = ByteSum::kDims,
                                    .most_component = ByteSum::kMostCode,
                                    .most_half = ByteSum::kMostHalf};
// Integers of a row are at most kMostByte; as bytes they have kByteBias added.
constexpr int kMostByte = 127, kByteBias = 128;
// Blocks of codes whose scores are in memory at once, 24 KiB, and tiles that pass over them.
constexpr int64_t kPartBlocks = kTileRows > 6 ? 8 : 16;
constexpr int64_t kPartTiles = 4;
// Room for the candidates of a row. If it does not suffice, the row goes to the next screen.
constexpr int kMostCandidates = Shortlist::kCapacity;

// Rows as bytes with 128 added, in one unit, so that the sums of all of them start alike.
struct ByteTile {
  uint32_t words[kTileRows][ByteSum::kMostDims / ByteSum::kDims];
  uint32_t factor;
  float product;  // of the units of rows and codes
};

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
    const bool is_narrow = width < static_cast<float>(ByteSum::kMostScore - least);
    bound = is_narrow ? least + static_cast<int>(width) + 1 : ByteSum::kMostScore;
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

// The scores of a tile with a part of the codes.
struct ByteScores {
  ByteSum all[kTileRows][kPartBlocks * kBlockVectors];
  ByteSum minima[kTileRows][kPartBlocks];  // of blocks
};

// The least unit of the integers of a row in which nothing is clipped and no score leaves its type,
// or infinity if the row is not screened.
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
  if constexpr (sizeof(ByteSum::Score) == 2) {
    // |integers| <= norm / unit + sqrt(D) / 2, and half norms count up to their largest. In 32
    // bits the sum of products is at most 2^23.
    const float room = 32000 - bytes.norm * sqrtf(static_cast<float>(dim)) / 2;
    least = (32768 * bytes.half_unit / bytes.unit + norm * bytes.norm) / room;
  }
  const float unit = largest * (1.0001f / kMostByte);
  return unit > least ? unit : least;
}

// Sorts list[0..count), a block at most, by the units of its rows, so that those of a tile are much
// the same, and writes the units in this order. A bucket of units is at most a sixteenth wide; the
// last one holds all that are 240 times the least or more.
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
    found[n] = byte_unit(codebook, rows[list[n]]);
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
inline void stage_bytes(const PackedCodebook& codebook, const float* z, float unit, uint32_t* words,
                        ByteRow& row) {
  constexpr int kDims = ByteSum::kDims;
  // The last bit of 1.5 * 2^23 stands for one.
  constexpr float kBiased = 0x1.8p23f + kByteBias;
  const int64_t dim = codebook.dim;
  const Vec inverse = Vec::broadcast(1 / unit);
  Vec squares = Vec::broadcast(0.0f), error_squares = squares;
  uint8_t packed[ByteSum::kMostDims + Vec::kLanes];  // whole vectors are written
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
  row.least = row.bound = ByteSum::kMostScore;
  row.count = 0;
}

// Writes the rows list[0..kTileRows) as a tile.
inline void stage_byte_tile(const PackedCodebook& codebook, const float* const* rows,
                            const int64_t* list, const float* units, ByteTile& tile,
                            ByteRow* state) {
  float unit = 0;
  for (int r = 0; r < kTileRows; ++r) {
    if (units[r] < INFINITY && units[r] > unit) unit = units[r];
  }
  tile.product = unit * codebook.bytes.unit;
  tile.factor = unit > 0 ? ByteSum::factor(codebook.bytes.half_unit / tile.product) : 0;
  for (int r = 0; r < kTileRows; ++r) {
    if (units[r] < INFINITY) {
      stage_bytes(codebook, rows[list[r]], unit, tile.words[r], state[r]);
    } else {
      state[r].is_screened = false;
      state[r].count = 0;
      memset(tile.words[r], 0, sizeof(tile.words[r]));
    }
  }
}

// The scores of blocks first..last.
[[gnu::noinline]] inline void screen_byte_tile(const PackedCodebook& codebook, int64_t first,
                                               int64_t last, const ByteTile& tile,
                                               ByteScores& scores) {
  constexpr int64_t kDims = ByteSum::kDims, kLanes = ByteSum::kLanes;
  const int64_t words = (codebook.dim + kDims - 1) / kDims;
  const int8_t* codes = codebook.bytes.panels + first * kByteBlock * kDims * words;
  const auto* half_norms =
      static_cast<const ByteSum::Half*>(codebook.bytes.half_norms) + first * kByteBlock;
  const auto* offsets =
      static_cast<const ByteSum::Offset*>(codebook.bytes.offsets) + first * kByteBlock;
  for (int64_t panel = 0; panel < 2 * (last - first); ++panel) {
    const ByteSum low_start = ByteSum::start(half_norms, tile.factor, offsets);
    const ByteSum high_start = ByteSum::start(half_norms + kLanes, tile.factor, offsets + kLanes);
    ByteSum low[kTileRows], high[kTileRows];
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      low[r] = low_start;
      high[r] = high_start;
    }
    // At least once: with a loop that may be empty, GCC 12 also stores all sums in each pass.
    int64_t i = 0;
    do {
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        low[r] = low[r].add_products(tile.words[r][i], codes);
        high[r] = high[r].add_products(tile.words[r][i], codes + kDims * kLanes);
      }
      codes += 2 * kDims * kLanes;
    } while (++i < words);
    half_norms += 2 * kLanes;
    offsets += 2 * kLanes;
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      scores.all[r][2 * panel] = low[r];
      scores.all[r][2 * panel + 1] = high[r];
      low[r] = low[r].lesser(high[r]);
    }
    const int64_t block = panel / 2;
    if (panel % 2 == 0) {
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) scores.minima[r][block] = low[r];
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        scores.minima[r][block] = scores.minima[r][block].lesser(low[r]);
      }
    }
  }
}

// A row with more candidates costs less in the next screen, which takes two to three times as long
// as what bytes save.
inline int64_t most_candidates(const PackedCodebook& codebook) {
  constexpr int64_t kRoom = kMostCandidates - kBlockVectors;
  const int64_t most = 3 * codebook.num_codes * codebook.dim / ByteSum::kProductsPerCandidate;
  return most < kRoom && !kAllCandidates ? most : kRoom;
}

// Adds the candidates of row r from num_blocks blocks, which start with block `first`.
inline void collect_candidates(const PackedCodebook& codebook, float product, ByteRow& row,
                               const ByteScores& scores, int r, int64_t first, int64_t num_blocks,
                               int64_t most) {
  constexpr int kLanes = ByteSum::kLanes;
  constexpr int64_t kWordBlocks = 64 / kLanes;
  ByteSum lanes_least = scores.minima[r][0];
  for (int64_t block = 1; block < num_blocks; ++block) {
    lanes_least = lanes_least.lesser(scores.minima[r][block]);
  }
  const int part_least = lanes_least.least();
  row.lower(codebook, product, part_least);
  const auto bound = static_cast<ByteSum::Score>(row.bound);
  if (part_least > bound) return;
  for (int64_t base = 0; base < num_blocks; base += kWordBlocks) {
    // A bit for each lane of these blocks; few branches, because none of them can be foreseen.
    const int64_t end = base + kWordBlocks < num_blocks ? base + kWordBlocks : num_blocks;
    uint64_t open = 0;
    for (int64_t block = base; block < end; ++block) {
      open |= uint64_t{scores.minima[r][block].lanes_at_most(bound)} << (block - base) * kLanes;
    }
    for (; open; open &= open - 1) {
      if (row.count > most) row.drop_beaten();
      if (row.count > most) {
        row.is_screened = false;
        return;
      }
      const int bit = __builtin_ctzll(open), lane = bit % kLanes;
      const int64_t vector = (base + bit / kLanes) * kBlockVectors;
      for (int64_t v = vector; v < vector + kBlockVectors; ++v) {
        const auto score = static_cast<ByteSum::Score>(scores.all[r][v].v[lane]);
        row.candidates[row.count] = {
            .code = static_cast<int32_t>(first * kByteBlock + v * kLanes + lane), .score = score};
        row.count += score <= bound;
      }
    }
  }
}

// The nearest code of a row, or -1 if this screen does not tell.
inline int64_t settle_bytes(const PackedCodebook& codebook, ByteRow& row, const float* z) {
  if (!row.is_screened || row.bound == ByteSum::kMostScore) return -1;
  // With a single part, all candidates are within the last bound.
  if (codebook.num_codes > kPartBlocks * kByteBlock) {
    row.drop_beaten();
    // Codes are mostly in the third-level cache: all their lines are asked for at once.
    for (int i = 0; i < row.count; ++i) {
      const float* const code = codebook.codes + row.candidates[i].code * codebook.dim;
      for (int64_t d = 0; d < codebook.dim; d += 16) __builtin_prefetch(code + d);
    }
  }
  if (row.count == 1) return row.candidates[0].code;  // not padding, which repeats the last code
  int32_t codes[kMostCandidates + 1];
  int count = 0;
  for (int i = 0; i < row.count; ++i) {
    codes[count] = row.candidates[i].code;
    count += codes[count] < codebook.num_codes;  // else padding
  }
  Shortlist shortlist(codebook, z);
  shortlist.add_all(codes, count);
  return shortlist.nearest();
}

// Screens the rows list[0..count) and settles what it can; the others stay in the list, in another
// order. list and units have room for whole tiles. Sets *is_slow if the next screen alone would
// have been faster.
inline int64_t screen_bytes(const PackedCodebook& codebook, const float* const* rows, int64_t* list,
                            int64_t count, float* units, int64_t* indices, bool* is_slow) {
  const int64_t num_blocks = (codebook.num_codes + kByteBlock - 1) / kByteBlock;
  const int64_t most = most_candidates(codebook);
  ByteTile tiles[kPartTiles];
  ByteRow state[kPartTiles * kTileRows];
  ByteScores scores;
  int64_t num_left = 0, num_candidates = 0;
  sort_by_unit(codebook, rows, list, count, units);
  for (int64_t i = count; i % kTileRows; ++i) {  // the last tile repeats its last row
    list[i] = list[count - 1];
    units[i] = units[count - 1];
  }
  for (int64_t begin = 0; begin < count; begin += kPartTiles * kTileRows) {
    const int64_t rest = count - begin;
    const int64_t num = rest < kPartTiles * kTileRows ? rest : kPartTiles * kTileRows;
    const int64_t num_tiles = (num + kTileRows - 1) / kTileRows;
    for (int64_t i = 0; i < num_tiles; ++i) {
      const int64_t row = begin + i * kTileRows;
      stage_byte_tile(codebook, rows, list + row, units + row, tiles[i], state + i * kTileRows);
    }
    for (int64_t first = 0; first < num_blocks; first += kPartBlocks) {
      const int64_t last = first + kPartBlocks < num_blocks ? first + kPartBlocks : num_blocks;
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        screen_byte_tile(codebook, first, last, tiles[tile], scores);
        for (int r = 0; r < kTileRows; ++r) {
          ByteRow& row = state[tile * kTileRows + r];
          if (!row.is_screened) continue;
          collect_candidates(codebook, tiles[tile].product, row, scores, r, first, last - first,
                             most);
        }
      }
    }
    for (int64_t i = 0; i < num; ++i) {
      const int64_t row = list[begin + i], code = settle_bytes(codebook, state[i], rows[row]);
      num_candidates += state[i].count;
      if (code < 0) {
        list[num_left++] = row;
      } else {
        indices[row] = code;
      }
    }
  }
  const double mean = static_cast<double>(num_candidates) / static_cast<double>(count);
  *is_slow = !kAllCandidates &&
             (4 * num_left > count || !bytes_pay(codebook.num_codes, codebook.dim, mean));
  return num_left;
}
#else
constexpr ByteLayout kByteLayout = {};
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
