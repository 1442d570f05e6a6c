// The nearest-code search of one SIMD level: include after a simd/ header, inside a level file.
//
// Rows are processed in blocks: they are staged, screened against the whole codebook, settled one
// by one from what the screen left open, and finished (distances, codes, errors) while they are in
// the cache.
#pragma once

#include "band-inl.h"
#include "byte_screen-inl.h"
#include "exact_distance-inl.h"
#include "nearest_code.h"
#include "quantize_rows-inl.h"
#include "screen-inl.h"
#include "tile_screen-inl.h"

namespace vqvae2_fast::cpu {
namespace {

// Words of the tiles of a block: they should stay in the second-level cache together with the
// codes.
constexpr int64_t kBlockWords = 16 << 10;
// A row with more open lanes than this costs less in the next screen: all codes of an open lane are
// compared, at a fraction of the rate of the screen.
constexpr int kMaxOpenLanes = 2;

inline int64_t block_tiles(int64_t dim) {
  const int64_t tiles = kBlockWords / staged_words(dim);
#if defined(VQ_HAS_TILES)
  // Whole tiles of that screen.
  static_assert(8 * kTileRows % kTilesRows == 0);
  if (dim <= kMostTileDims) return tiles < kMaxBlockTiles ? 8 : kMaxBlockTiles;
#endif
  return tiles < 1 ? 1 : tiles > kMaxBlockTiles ? kMaxBlockTiles : tiles;
}

inline int64_t block_rows(int64_t dim) { return block_tiles(dim) * kTileRows; }

// Memory that a thread needs while it searches, in parts of a single allocation.
struct Workspace {
  const float** rows;     // [block_rows], contiguous float32
  float* copies;          // [block_rows, D], copies of rows that were not contiguous float32
  uint32_t* words;        // staged tiles
  Vec *best, *second;     // [block_rows]
  StagedRows staged;      // [block_rows] each
  float *least, *bounds;  // [block_rows]
  int64_t* unsettled;     // [block_rows]

  static int64_t bytes(int64_t dim) { return Workspace(nullptr, dim).end_; }

  // 64-byte aligned memory of `bytes`.
  Workspace(void* memory, int64_t dim) : next_(static_cast<char*>(memory)), start_(next_) {
    const int64_t rows_in_block = block_rows(dim);
    words = take<uint32_t>(block_tiles(dim) * staged_words(dim));
    best = take<Vec>(rows_in_block);
    second = take<Vec>(rows_in_block);
    copies = take<float>(rows_in_block * dim);
    rows = take<const float*>(rows_in_block);
    const int64_t whole_vectors = rows_in_block + Vec::kLanes - 1;
    staged = {take<float>(whole_vectors), take<float>(whole_vectors), take<float>(whole_vectors)};
    least = take<float>(whole_vectors);
    bounds = take<float>(whole_vectors);
    unsettled = take<int64_t>(rows_in_block);
    end_ = next_ - start_;
  }

 private:
  template <class T>
  T* take(int64_t count) {
    char* const part = next_;
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }
  char *next_, *start_;
  int64_t end_;
};

// Settles what a row's lanes leave open up to a bound. Returns false if it is too much.
inline bool settle_row(const PackedCodebook& codebook, const Tags& tags, float least, float bound,
                       Vec best, Vec second, const float* z, int64_t* index) {
  if (!(bound < kEmptyScore)) return false;
  const uint32_t lanes = lanes_at_most(best, bound);
  const uint32_t open = lanes_at_most(second, bound);
  if (open == 0 && (lanes & (lanes - 1)) == 0 && tags.shift == 0) {
    *index = static_cast<int64_t>(bits_of(least) & tags.mask) * Vec::kLanes + __builtin_ctz(lanes);
    return true;
  }
  if (__builtin_popcount(open) > kMaxOpenLanes) return false;
  float lane_best[Vec::kLanes];
  best.store(lane_best);
  const auto each_named_code = [&](const auto& use) {
    for (uint32_t named = lanes & ~open; named; named &= named - 1) {
      const int lane = __builtin_ctz(named);
      const int64_t tag = bits_of(lane_best[lane]) & tags.mask;
      for (int64_t v = tag << tags.shift; v < (tag + 1) << tags.shift; ++v) {
        const int64_t code = v * Vec::kLanes + lane;
        if (code < codebook.num_codes) use(code);
      }
    }
  };
  Shortlist shortlist(codebook, z);
  // A few codes are added at once, because how many of them a bound excludes is hard to predict.
  if (Vec::kLanes << tags.shift <= Shortlist::kCapacity) {
    int32_t codes[Shortlist::kCapacity];
    int count = 0;
    each_named_code([&](int64_t code) { codes[count++] = static_cast<int32_t>(code); });
    shortlist.add_all(codes, count);
  } else {
    each_named_code([&](int64_t code) { shortlist.add(code); });
  }
  for (uint32_t left = open; left; left &= left - 1) {
    shortlist.add_every(__builtin_ctz(left), Vec::kLanes);
  }
  *index = shortlist.nearest();
  return true;
}

// Screens the rows list[0..count) of a block and settles what it can; the others stay in the list.
template <class Screen>
inline int64_t screen_rows(const PackedCodebook& codebook, const Workspace& work, int64_t* list,
                           int64_t count, int64_t* indices) {
  using Word = typename Screen::Word;
  const Tags tags(2 * codebook.num_panels, Screen::tag_shift(codebook));
  Word* const words = reinterpret_cast<Word*>(work.words);
  const int64_t num_tiles = (count + Screen::kTileRows - 1) / Screen::kTileRows;
  const int64_t num_rows = num_tiles * Screen::kTileRows;
  // The last tile repeats its last row.
  for (int64_t i = count; i < num_rows; ++i) list[i] = list[count - 1];
  stage_rows<Screen>(codebook, work.rows, list, num_rows, words, work.staged);
  screen_tiles<Screen>(codebook, tags, words, work.staged.units, num_tiles, work.best, work.second);
  for (int64_t i = 0; i < count; ++i) work.least[i] = least_lane(work.best[i]);
  candidate_bounds<Screen>(codebook, tags, work.staged, work.least, count, work.bounds);
  int64_t num_left = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = list[i];
    if (!settle_row(codebook, tags, work.least[i], work.bounds[i], work.best[i], work.second[i],
                    work.rows[row], indices + row)) {
      list[num_left++] = row;
    }
  }
  return num_left;
}

// Whether a screen is worth its time. After a block where it was not, it is skipped for
// kFewestSkipped blocks, and for twice as many each time that this is so again.
class Trial {
 public:
  bool is_due() {
    if (skipped_ == 0) return true;
    --skipped_;
    return false;
  }
  void report(bool is_slow) {
    if (is_slow) skipped_ = next_;
    const int twice = 2 * next_ < kMostSkipped ? 2 * next_ : kMostSkipped;
    next_ = is_slow ? twice : kFewestSkipped;
  }

 private:
  static constexpr int kFewestSkipped = 15, kMostSkipped = 240;
  int skipped_ = 0, next_ = kFewestSkipped;
};

struct Trials {
  Trial bytes, tiles, pairs;
};

inline void search_block(const PackedCodebook& codebook, const Workspace& work, int64_t count,
                         int64_t* indices, Trials* trials) {
  if (codebook.dim > kMaxScreenedDim) {
    for (int64_t i = 0; i < count; ++i) indices[i] = search_directly(codebook, work.rows[i]);
    return;
  }
  int64_t left = count;
  for (int64_t i = 0; i < count; ++i) work.unsettled[i] = i;
#if defined(VQ_HAS_BYTE_PRODUCTS)
  if (codebook.bytes.panels && trials->bytes.is_due()) {
    bool is_slow;
    left = with_byte_sums(codebook.dim, [&](auto sum) {
      return screen_bytes<decltype(sum)>(codebook, work.rows, work.unsettled, left, work.least,
                                         indices, &is_slow);
    });
    trials->bytes.report(is_slow);
  }
#endif
#if defined(VQ_HAS_TILES)
  if (left > 0 && codebook.tiles.panels && trials->tiles.is_due()) {
    const int64_t given = left;
    left = screen_rows<TileScreen>(codebook, work, work.unsettled, left, indices);
    trials->tiles.report(3 * left > given);
  }
#endif
#if defined(VQ_HAS_PAIR_PRODUCTS)
  if (left > 0 && trials->pairs.is_due()) {
    const int64_t given = left;
    left = screen_rows<PairScreen>(codebook, work, work.unsettled, left, indices);
    // Both screens for every row cost more than only float32.
    trials->pairs.report(3 * left > given);
  }
#endif
  if (left > 0) left = screen_rows<FloatScreen>(codebook, work, work.unsettled, left, indices);
  for (int64_t i = 0; i < left; ++i) {
    const int64_t row = work.unsettled[i];
    indices[row] = search_directly(codebook, work.rows[row]);
  }
  (void)trials;
}

// A few rows against a codebook that is not packed; copies holds num_rows x D floats.
inline void search_few_rows(const NearestCodeProblem& problem, int64_t num_rows, float* copies) {
  const float* rows[kFewRows];
  load_rows(problem.z, 0, num_rows, problem.codebook->dim, copies, rows);
  for (int64_t i = 0; i < num_rows; ++i) {
    problem.indices[i] = search_directly(*problem.codebook, rows[i]);
  }
  finish_rows(problem, rows, 0, num_rows, 0);
}

// Rows begin..end, begin a multiple of block_rows.
inline void search_rows(const NearestCodeProblem& problem, int64_t begin, int64_t end,
                        void* memory) {
  const PackedCodebook& codebook = *problem.codebook;
  const int64_t dim = codebook.dim, rows_in_block = block_rows(dim);
  const Workspace work(memory, dim);
  Trials trials;
  for (int64_t first = begin; first < end; first += rows_in_block) {
    const int64_t count = first + rows_in_block < end ? rows_in_block : end - first;
    load_rows(problem.z, first, count, dim, work.copies, work.rows);
    search_block(codebook, work, count, problem.indices + first, &trials);
    finish_rows(problem, work.rows, first, count, first / rows_in_block);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
