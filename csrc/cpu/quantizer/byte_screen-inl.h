// The first screen of many codes: scores in integers from products of bytes, kept for a part of the
// codes and picked by the least of each block. Include after a simd/ header. The band and its
// proof: vqvae2_fast/ops/nearest_code/README.md.
//
// A `Sum` is a vector of scores: ByteSum of int32, or ShortByteSum of int16 where a level has it.
#pragma once

#include "byte_rows-inl.h"

namespace vqvae2_fast::cpu {
namespace {

#if defined(VQ_HAS_BYTE_PRODUCTS)
// A block is this many vectors of codes, two panels.
constexpr int64_t kBlockVectors = 4;
template <class Sum>
constexpr int64_t kByteBlock = kBlockVectors * Sum::kLanes;

// csrc/tests/band_test.cpp keeps all candidates of its few codes.
#if defined(VQ_ALL_CANDIDATES)
constexpr bool kAllCandidates = true;
#else
constexpr bool kAllCandidates = false;
#endif

// From how many codes and dimensions on products of bytes are faster than the next screen, and how
// many products cost as much as one candidate.
struct ByteLimits {
  int64_t fewest_codes, fewest_dims, products_per_candidate;
};
template <class Sum>
constexpr ByteLimits kByteLimits = {};
#if defined(__AVX512VNNI__)
template <>
constexpr ByteLimits kByteLimits<ByteSum> = {256, 32, 12000};
#elif defined(__AVX512F__)
template <>
constexpr ByteLimits kByteLimits<ByteSum> = {256, 65, 6000};
#elif defined(__AVXVNNI__)
template <>
constexpr ByteLimits kByteLimits<ByteSum> = {256, 1, 4000};
#else
template <>
constexpr ByteLimits kByteLimits<ByteSum> = {256, 65, 8000};
#endif
#if defined(VQ_HAS_SHORT_BYTE_SUMS)
template <>
constexpr ByteLimits kByteLimits<ShortByteSum> = {256, 1, 3000};
#endif

// Whether `candidates` of a row cost less than bytes save in its products.
template <class Sum>
inline bool bytes_pay(int64_t num_codes, int64_t dim, double candidates) {
  return candidates * static_cast<double>(kByteLimits<Sum>.products_per_candidate) <=
         static_cast<double>(num_codes * dim);
}

template <class Sum>
inline bool suit_bytes(int64_t num_codes, int64_t dim) {
  constexpr ByteLimits kLimits = kByteLimits<Sum>;
  return num_codes >= kLimits.fewest_codes && dim >= kLimits.fewest_dims && dim <= Sum::kMostDims &&
         bytes_pay<Sum>(num_codes, dim, 2);
}

// Blocks of codes whose scores are in memory at once, 24 KiB, and tiles that pass over them.
constexpr int64_t kPartBlocks = kTileRows > 6 ? 8 : 16;
constexpr int64_t kPartTiles = 4;

// The scores of a tile with a part of the codes.
template <class Sum>
struct ByteScores {
  Sum all[kTileRows][kPartBlocks * kBlockVectors];
  Sum minima[kTileRows][kPartBlocks];  // of blocks
};

// Adds the products of `words` words of a tile with those of a panel to a pair of sums for each
// row.
template <class Sum, class Sums>
[[gnu::always_inline]] inline void add_byte_products(const uint32_t* tile, int64_t words,
                                                     const int8_t* codes, Sums* low, Sums* high) {
  constexpr int64_t kVector = Sum::kDims * Sum::kLanes, kRow = ByteTile<Sum>::kWords;
  // At least once: with a loop that may be empty, GCC 12 also stores all sums in each pass.
  int64_t i = 0;
  do {
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      low[r] = low[r].add_products(tile[r * kRow + i], codes);
      high[r] = high[r].add_products(tile[r * kRow + i], codes + kVector);
    }
    codes += 2 * kVector;
  } while (++i < words);
}

// The same for a section, whose starts come before its words. This is not inlined, because pointers
// of the caller must not take registers from the loop.
template <class Sum>
[[gnu::noinline]] void add_byte_section(const uint32_t* tile, int64_t words, const int8_t* codes,
                                        Sum* low, Sum* high) {
  using Section = typename Sum::Section;
  constexpr int64_t kVector = Sum::kDims * Sum::kLanes;
  Section low_section[kTileRows], high_section[kTileRows];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    low_section[r] = Section::load(codes);
    high_section[r] = Section::load(codes + kVector);
  }
  add_byte_products<Sum>(tile, words, codes + 2 * kVector, low_section, high_section);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    low[r] = low[r].plus(low_section[r]);
    high[r] = high[r].plus(high_section[r]);
  }
}

// The scores of blocks first..last.
template <class Sum>
[[gnu::noinline]] inline void screen_byte_tile(const PackedCodebook& codebook, int64_t first,
                                               int64_t last, const ByteTile<Sum>& tile,
                                               ByteScores<Sum>& scores) {
  constexpr int64_t kDims = Sum::kDims, kLanes = Sum::kLanes;
  const int64_t words = byte_words<Sum>(codebook.dim);
  const int8_t* codes = codebook.bytes.panels +
                        first * kByteBlock<Sum> * kDims * stored_byte_words<Sum>(codebook.dim);
  const auto* half_norms =
      static_cast<const typename Sum::Half*>(codebook.bytes.half_norms) + first * kByteBlock<Sum>;
  const auto* offsets =
      static_cast<const typename Sum::Offset*>(codebook.bytes.offsets) + first * kByteBlock<Sum>;
  for (int64_t panel = 0; panel < 2 * (last - first); ++panel) {
    const Sum low_start = Sum::start(half_norms, tile.factor, offsets);
    const Sum high_start = Sum::start(half_norms + kLanes, tile.factor, offsets + kLanes);
    Sum low[kTileRows], high[kTileRows];
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      low[r] = low_start;
      high[r] = high_start;
    }
    if constexpr (Sum::kSectionWords == 0) {
      add_byte_products<Sum>(tile.words[0], words, codes, low, high);
      codes += words * 2 * kDims * kLanes;
    } else {
      for (int64_t i = 0; i < words; i += Sum::kSectionWords) {
        const int64_t rest = words - i,
                      count = rest < Sum::kSectionWords ? rest : Sum::kSectionWords;
        add_byte_section<Sum>(tile.words[0] + i, count, codes, low, high);
        codes += (1 + count) * 2 * kDims * kLanes;
      }
    }
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
template <class Sum>
inline int64_t most_candidates(const PackedCodebook& codebook) {
  constexpr int64_t kRoom = kMostCandidates - kBlockVectors;
  const int64_t most =
      3 * codebook.num_codes * codebook.dim / kByteLimits<Sum>.products_per_candidate;
  return most < kRoom && !kAllCandidates ? most : kRoom;
}

// Adds the candidates of row r from num_blocks blocks, which start with block `first`.
template <class Sum>
inline void collect_candidates(const PackedCodebook& codebook, float product, ByteRow<Sum>& row,
                               const ByteScores<Sum>& scores, int r, int64_t first,
                               int64_t num_blocks, int64_t most) {
  constexpr int kLanes = Sum::kLanes;
  constexpr int64_t kWordBlocks = 64 / kLanes;
  Sum lanes_least = scores.minima[r][0];
  for (int64_t block = 1; block < num_blocks; ++block) {
    lanes_least = lanes_least.lesser(scores.minima[r][block]);
  }
  const int part_least = lanes_least.least();
  row.lower(codebook, product, part_least);
  const auto bound = static_cast<typename Sum::Score>(row.bound);
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
        const auto score = static_cast<typename Sum::Score>(scores.all[r][v].v[lane]);
        row.candidates[row.count] = {
            .code = static_cast<int32_t>(first * kByteBlock<Sum> + v * kLanes + lane),
            .score = score};
        row.count += score <= bound;
      }
    }
  }
}

// The nearest code of a row, or -1 if this screen does not tell.
template <class Sum>
inline int64_t settle_bytes(const PackedCodebook& codebook, ByteRow<Sum>& row, const float* z) {
  if (!row.is_screened || row.bound == Sum::kMostScore) return -1;
  // With a single part, all candidates are within the last bound.
  if (codebook.num_codes > kPartBlocks * kByteBlock<Sum>) {
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
template <class Sum>
inline int64_t screen_bytes(const PackedCodebook& codebook, const float* const* rows, int64_t* list,
                            int64_t count, float* units, int64_t* indices, bool* is_slow) {
  const int64_t num_blocks = (codebook.num_codes + kByteBlock<Sum> - 1) / kByteBlock<Sum>;
  const int64_t most = most_candidates<Sum>(codebook);
  ByteTile<Sum> tiles[kPartTiles];
  ByteRow<Sum> state[kPartTiles * kTileRows];
  ByteScores<Sum> scores;
  int64_t num_left = 0, num_candidates = 0;
  sort_by_unit<Sum>(codebook, rows, list, count, units);
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
      stage_byte_tile<Sum>(codebook, rows, list + row, units + row, tiles[i],
                           state + i * kTileRows);
    }
    for (int64_t first = 0; first < num_blocks; first += kPartBlocks) {
      const int64_t last = first + kPartBlocks < num_blocks ? first + kPartBlocks : num_blocks;
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        screen_byte_tile<Sum>(codebook, first, last, tiles[tile], scores);
        for (int r = 0; r < kTileRows; ++r) {
          ByteRow<Sum>& row = state[tile * kTileRows + r];
          if (!row.is_screened) continue;
          collect_candidates<Sum>(codebook, tiles[tile].product, row, scores, r, first,
                                  last - first, most);
        }
      }
    }
    for (int64_t i = 0; i < num; ++i) {
      const int64_t row = list[begin + i], code = settle_bytes<Sum>(codebook, state[i], rows[row]);
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
             (4 * num_left > count || !bytes_pay<Sum>(codebook.num_codes, codebook.dim, mean));
  return num_left;
}

// Calls use(Sum{}) with the sums that suit so many dimensions.
template <class Use>
inline auto with_byte_sums(int64_t dim, const Use& use) {
#if defined(VQ_HAS_SHORT_BYTE_SUMS)
  if (dim <= ShortByteSum::kMostDims) return use(ShortByteSum{});
#endif
  (void)dim;
  return use(ByteSum{});
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
