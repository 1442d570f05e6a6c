// The first screen of many codes: scores in int16 from products of bytes, the least of each block
// of codes kept. Include after a simd/ header. The band and its proof:
// vqvae2_fast/ops/nearest_code/README.md.
#pragma once

#include <math.h>
#include <string.h>

#include "band-inl.h"
#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

#if defined(VQ_HAS_BYTE_PRODUCTS)
// Blocks of codes whose least scores are in memory at once, and tiles that pass over them.
constexpr int64_t kPartBlocks = 64;
constexpr int64_t kPartTiles = 4;
// Candidates that a row keeps; each stands for the kByteBlock / kByteLanes codes of a lane of a
// block. With more it goes to the next screen.
constexpr int kMostCandidates = 48;
constexpr int kMostScore = 32767;

struct ByteTile {
  uint32_t words[kTileRows][kMostByteDims / 2];  // two int8, twice in a word
  uint32_t factors[kTileRows], offsets[kTileRows];
};

struct ByteRow {
  int width;  // twice the error that a score may have; less than 0 if the row is not screened
  int least, count;
  struct {
    int32_t first;  // of its codes
    int score;
  } candidates[kMostCandidates];

  int bound() const { return least + width < kMostScore ? least + width : kMostScore; }
  void drop_beaten() {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      candidates[kept] = candidates[i];
      kept += candidates[i].score <= bound();
    }
    count = kept;
  }
};

inline uint32_t twice(int value) { return (static_cast<uint32_t>(value) & 0xFFFFu) * 0x10001u; }

// Writes m - z as bytes of a tile in a unit of its own, in which no score leaves int16.
inline ByteRow stage_bytes(const PackedCodebook& codebook, const float* z, int r, ByteTile& tile) {
  const ByteCodes& bytes = codebook.bytes;
  const int64_t dim = codebook.dim;
  const float max_norm = static_cast<float>(codebook.max_norm);
  float values[kMostByteDims], square = 0;
  for (int64_t d = 0; d < dim; ++d) {
    values[d] = codebook.center[d] - z[d];
    square += values[d] * values[d];
  }
  const float norm = norm_above(square, dim);
  ByteRow row = {.width = -1, .least = kMostScore, .count = 0, .candidates = {}};
  memset(tile.words[r], 0, sizeof(tile.words[r]));
  tile.factors[r] = tile.offsets[r] = 0;
  if (!(norm < 0x1p16f * max_norm)) return row;
  // |bytes| <= norm / unit + sqrt(D) / 2, and half norms count up to their largest.
  const float room = 32000 - bytes.norm * sqrtf(static_cast<float>(dim)) / 2;
  const float unit = (32768 * bytes.half_unit / bytes.unit + norm * bytes.norm) / room;
  const float inverse = 1 / unit, product = unit * bytes.unit;
  float errors = 0;
  int sum = 0, packed[kMostByteDims] = {};
  for (int64_t d = 0; d < dim; ++d) {
    constexpr float kInteger = 0x1.8p23f;
    const float scaled = values[d] * inverse, low = scaled < -127 ? -127.0f : scaled;
    const float integer = ((low > 127 ? 127.0f : low) + kInteger) - kInteger;
    const float error = values[d] - integer * unit;
    errors += error * error;
    packed[d] = static_cast<int>(integer);
    sum += packed[d];
  }
  for (int64_t d = 0; d < dim; d += 2) {
    tile.words[r][d / 2] = twice((packed[d] & 0xFF) | (packed[d + 1] & 0xFF) << 8);
  }
  tile.factors[r] = twice(static_cast<int>(32768 * bytes.half_unit / product + 0.5f));
  tile.offsets[r] = twice(-64 * sum);
  // The roundings of m - z and of the errors, whose squares were summed in float32.
  const float error = norm_above(errors, dim) + norm * 0x1p-22f;
  const float width = static_cast<float>(VQ_BAND_SCALE) *
                      (2.02f * (error * max_norm + (norm + error) * bytes.residual) / product + 6);
  if (width < kMostScore) row.width = static_cast<int>(width) + 1;
  return row;
}

// The least scores of blocks first..last, [kTileRows, kPartBlocks], and of all in a row.
[[gnu::noinline]] inline void screen_byte_tile(const PackedCodebook& codebook, int64_t first,
                                               int64_t last, const ByteTile& tile, ByteSum* minima,
                                               ByteSum* least) {
  constexpr int64_t kPanels = kByteBlock / kBytePanel;
  const int64_t words = (codebook.dim + 1) / 2;
  const uint8_t* codes = codebook.bytes.panels + first * kByteBlock * 2 * words;
  const int16_t* half_norms = codebook.bytes.half_norms + first * kByteBlock;
  for (int r = 0; r < kTileRows; ++r) least[r] = ByteSum::broadcast(kMostScore);
  for (int64_t block = 0; block < last - first; ++block) {
    ByteSum block_least[kTileRows];
    for (int r = 0; r < kTileRows; ++r) block_least[r] = ByteSum::broadcast(kMostScore);
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      ByteSum low[kTileRows], high[kTileRows];
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        low[r] = ByteSum::start(half_norms, tile.factors[r], tile.offsets[r]);
        high[r] = ByteSum::start(half_norms + kByteLanes, tile.factors[r], tile.offsets[r]);
      }
      for (int64_t i = 0; i < words; ++i) {
#pragma GCC unroll 12
        for (int r = 0; r < kTileRows; ++r) {
          low[r] = low[r].add_products(tile.words[r][i], codes);
          high[r] = high[r].add_products(tile.words[r][i], codes + 2 * kByteLanes);
        }
        codes += 2 * kBytePanel;
      }
      half_norms += kBytePanel;
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        block_least[r] = block_least[r].lesser(low[r].lesser(high[r]));
      }
    }
    for (int r = 0; r < kTileRows; ++r) {
      minima[r * kPartBlocks + block] = block_least[r];
      least[r] = least[r].lesser(block_least[r]);
    }
  }
}

// Adds the candidates of num_blocks blocks from `first` on.
inline void collect_candidates(ByteRow& row, const ByteSum* minima, ByteSum least, int64_t first,
                               int64_t num_blocks) {
  const int part_least = least.least();
  if (part_least < row.least) row.least = part_least;
  const int16_t bound = static_cast<int16_t>(row.bound());
  for (int64_t block = 0; block < num_blocks; ++block) {
    uint32_t lanes = minima[block].lanes_at_most(bound);
    for (; lanes; lanes &= lanes - 1, lanes &= lanes - 1) {
      if (row.count == kMostCandidates) row.drop_beaten();
      if (row.count == kMostCandidates) {
        row.width = -1;
        return;
      }
      const int lane = __builtin_ctz(lanes) / 2;
      row.candidates[row.count++] = {
          .first = static_cast<int32_t>((first + block) * kByteBlock + lane),
          .score = minima[block].lane(lane)};
    }
  }
}

// The nearest code of a row, or -1 if this screen does not tell.
inline int64_t settle_bytes(const PackedCodebook& codebook, ByteRow& row, const float* z) {
  if (row.width < 0 || row.bound() == kMostScore) return -1;
  row.drop_beaten();
  Shortlist shortlist(codebook, z);
  for (int i = 0; i < row.count; ++i) {
    for (int64_t v = 0; v < kByteBlock; v += kByteLanes) {
      const int64_t code = row.candidates[i].first + v;
      if (code < codebook.num_codes) shortlist.add(code);
    }
  }
  return shortlist.nearest();
}

// Screens the rows list[0..count) and settles what it can; the others stay in the list.
inline int64_t screen_bytes(const PackedCodebook& codebook, const float* const* rows, int64_t* list,
                            int64_t count, int64_t* indices) {
  const int64_t num_blocks = (codebook.num_codes + kByteBlock - 1) / kByteBlock;
  ByteTile tiles[kPartTiles];
  ByteRow state[kPartTiles * kTileRows];
  ByteSum minima[kTileRows * kPartBlocks], least[kTileRows];
  int64_t num_left = 0;
  for (int64_t begin = 0; begin < count; begin += kPartTiles * kTileRows) {
    const int64_t rest = count - begin;
    const int64_t num = rest < kPartTiles * kTileRows ? rest : kPartTiles * kTileRows;
    const int64_t num_tiles = (num + kTileRows - 1) / kTileRows;
    for (int64_t i = 0; i < num_tiles * kTileRows; ++i) {  // the last tile repeats its last row
      const int64_t row = list[begin + (i < num ? i : num - 1)];
      state[i] =
          stage_bytes(codebook, rows[row], static_cast<int>(i % kTileRows), tiles[i / kTileRows]);
    }
    for (int64_t first = 0; first < num_blocks; first += kPartBlocks) {
      const int64_t last = first + kPartBlocks < num_blocks ? first + kPartBlocks : num_blocks;
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        screen_byte_tile(codebook, first, last, tiles[tile], minima, least);
        for (int r = 0; r < kTileRows; ++r) {
          ByteRow& row = state[tile * kTileRows + r];
          if (row.width < 0) continue;
          collect_candidates(row, minima + r * kPartBlocks, least[r], first, last - first);
        }
      }
    }
    for (int64_t i = 0; i < num; ++i) {
      const int64_t row = list[begin + i], code = settle_bytes(codebook, state[i], rows[row]);
      if (code < 0) {
        list[num_left++] = row;
      } else {
        indices[row] = code;
      }
    }
  }
  return num_left;
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
