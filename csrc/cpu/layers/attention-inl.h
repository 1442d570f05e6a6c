// The kernels of attention.h: include inside a level file after its simd header. Vectors lie across
// keys for logits and across channels for outputs and gradients.
#pragma once

#include "../counter_noise-inl.h"
#include "../simd/math-inl.h"
#include "attention.h"

namespace vqvae2_fast::cpu::attention {
namespace {

// Queries of a tile: with two vectors of keys their sums fill half of the registers.
constexpr int kRows = Vec::kTileRows >= 12 ? 8 : 4;
constexpr int kLanes = Vec::kLanes;
// Masks the logits of keys that a query does not see.
constexpr float kLowest = -3.0e38f;

inline int64_t padded(int64_t count, int64_t multiple = kLanes) {
  return (count + multiple - 1) / multiple * multiple;
}

// kLanes ones, then kLanes zeros. The mask of n lanes begins at kLanes - n.
struct LaneMasks {
  float values[2 * kLanes];
  LaneMasks() {
    for (int i = 0; i < 2 * kLanes; ++i) values[i] = i < kLanes ? 1.0f : 0.0f;
  }
  Vec first(int64_t count) const {
    return Vec::load(values + (count < 0 ? kLanes : count > kLanes ? 0 : kLanes - count));
  }
};

inline Vec zero() { return Vec::broadcast(0.0f); }

// out [kRows, count] = a [kRows, depth] times columns [depth, width].
template <int kVecs>
inline void product_tile(const float* a, int64_t a_stride, const float* columns, int64_t width,
                         int64_t depth, float* out, int64_t out_stride) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sums[r][v] = zero();
  }
  for (int64_t c = 0; c < depth; ++c) {
    Vec right[kVecs];
    for (int v = 0; v < kVecs; ++v) right[v] = Vec::load(columns + c * width + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec left = Vec::broadcast(a[r * a_stride + c]);
      for (int v = 0; v < kVecs; ++v) sums[r][v] = sums[r][v].add_product(left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sums[r][v].store(out + r * out_stride + v * kLanes);
  }
}

// `count` is a multiple of kLanes.
inline void product(const float* a, int64_t a_stride, const float* columns, int64_t width,
                    int64_t depth, int64_t count, float* out, int64_t out_stride) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
    product_tile<2>(a, a_stride, columns + j, width, depth, out + j, out_stride);
  }
  if (j < count) product_tile<1>(a, a_stride, columns + j, width, depth, out + j, out_stride);
}

// into[j] += the sum over r of w[r][j] rows[r], for all j: [count, width].
inline void add_outer_products(const float* w, int64_t w_stride, const float* rows, int64_t width,
                               int64_t count, float* into) {
  for (int64_t c = 0; c < width; c += kLanes) {
    Vec right[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) right[r] = Vec::load(rows + r * width + c);
    for (int64_t j = 0; j < count; ++j) {
      Vec sum = Vec::load(into + j * width + c);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum = sum.add_product(Vec::broadcast(w[r * w_stride + j]), right[r]);
      }
      sum.store(into + j * width + c);
    }
  }
}

// Writes positions first..first + count of a head times `scale` as [padded_count, width], zeros
// elsewhere.
inline void pack_rows(const HeadRows& rows, int64_t first, int64_t count, int64_t channels,
                      float scale, int64_t padded_count, int64_t width, float* out) {
  for (int64_t p = 0; p < count; ++p) {
    const float* source = rows.data + (first + p) * rows.stride_position;
    float* const target = out + p * width;
    if (rows.stride_channel == 1) {
      for (int64_t c = 0; c < channels; ++c) target[c] = source[c] * scale;
    } else {
      for (int64_t c = 0; c < channels; ++c) target[c] = source[c * rows.stride_channel] * scale;
    }
    for (int64_t c = channels; c < width; ++c) target[c] = 0;
  }
  for (int64_t i = count * width; i < padded_count * width; ++i) out[i] = 0;
}

// packed [positions, width] -> [channels, positions].
inline void transpose(const float* packed, int64_t positions, int64_t width, int64_t channels,
                      float* out) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < positions; ++p) out[c * positions + p] = packed[p * width + c];
  }
}

inline void unpack_row(const float* packed, int64_t channels, float scale, float* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = packed[c] * scale;
}

// The words that `dropout_mask` keeps: uniform_from_word(word) >= p, where both sides are exact
// in units of 2^-24.
inline uint32_t least_kept_word(float dropout_p) {
  const double units = static_cast<double>(dropout_p) * 8388608.0 - 0.5;
  uint32_t least = units > 0 ? static_cast<uint32_t>(units) : 0;
  if (static_cast<double>(least) < units) ++least;
  return least << 9;
}

// 1 or 0 for the first 4 * quads keys of each query of a tile: [kRows, 4 * quads]. The counters of
// all rows follow one another, so that short rows fill the vectors too.
inline void mask_tile(const AttentionHead& head, int64_t first_row, int64_t quads, float* keep) {
  const uint32_t least = least_kept_word(head.dropout_p), across = static_cast<uint32_t>(quads);
  const float rows_each = 1.0f / static_cast<float>(quads);
  const uint32_t first = static_cast<uint32_t>(first_row), group = head.group;
  const uint64_t seed = head.seed;
  for (int32_t begin = 0; begin < kRows * quads; begin += kShortNoiseBlock) {
    uint32_t columns[kShortNoiseBlock], rows[kShortNoiseBlock], words[4 * kShortNoiseBlock];
    for (int32_t i = 0; i < kShortNoiseBlock; ++i) {
      const int32_t at = begin + i;
      const uint32_t row =
          static_cast<uint32_t>(static_cast<int32_t>((static_cast<float>(at) + 0.5f) * rows_each));
      columns[i] = static_cast<uint32_t>(at) - row * across;
      rows[i] = first + row;
    }
    fill_words<kShortNoiseBlock>(seed, columns, rows, group, kPurposeDropout << 16, words);
    for (int i = 0; i < 4 * kShortNoiseBlock; ++i) {
      keep[4 * begin + i] = words[i] >= least ? 1.0f : 0.0f;
    }
  }
}

// A row of logits -> e^(logit - largest) where the query sees the key, else 0; returns their sum.
// keep drops logits (null for none).
inline float exponentials(float* row, const float* keep, int64_t visible, int64_t columns,
                          const LaneMasks& masks) {
  Vec largest = Vec::broadcast(kLowest);
  for (int64_t j = 0; j < columns; j += kLanes) {
    Vec x = Vec::load(row + j);
    if (keep) x = Vec::load(keep + j).where_positive(x, zero());
    x = masks.first(visible - j).where_positive(x, Vec::broadcast(kLowest));
    x.store(row + j);
    largest = largest.at_least(x);
  }
  const Vec shift = Vec::broadcast(least_lane(zero() - largest));
  Vec sum = zero();
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec e = exponential(Vec::load(row + j) + shift);
    const Vec seen = masks.first(visible - j).where_positive(e, zero());
    seen.store(row + j);
    sum = sum + seen;
  }
  return lane_sum(sum);
}

// Keys and values of a head packed, and a tile of queries with its logits.
class Tiles {
 public:
  Tiles(const AttentionHead& head, float* memory)
      : width(padded(head.dim)),
        value_width(padded(head.value_dim)),
        head_(head),
        columns_(padded(head.length)),
        next_(memory) {
    k = take(columns_ * width), v = take(columns_ * value_width);
    keys_ = take(head.dim * columns_), queries = take(kRows * width);
    weights = take(kRows * columns_), keep_ = take(keep_floats(columns_));
    pack_rows(head.k, 0, head.length, head.dim, 1.0f, columns_, width, k);
    pack_rows(head.v, 0, head.length, head.value_dim, 1.0f, columns_, value_width, v);
    transpose(k, columns_, width, head.dim, keys_);
  }

  static int64_t floats(int64_t length, int64_t dim, int64_t value_dim) {
    const int64_t columns = padded(length);
    return columns * (padded(dim) + padded(value_dim) + dim + kRows) + kRows * padded(dim) +
           keep_floats(columns) + 6 * kAlignment;
  }

  float* take(int64_t count) {
    float* const taken = next_;
    next_ += padded(count, kAlignment);
    return taken;
  }

  // Computes the exponentials of queries first..first + kRows, and their sums.
  void begin(int64_t first_row) {
    first = first_row;
    rows = head_.length - first < kRows ? head_.length - first : kRows;
    columns = padded(first + rows);
    const float kept = 1.0f / (1.0f - head_.dropout_p);
    pack_rows(head_.q, first, rows, head_.dim, head_.on_logits ? head_.scale * kept : head_.scale,
              kRows, width, queries);
    product(queries, width, keys_, columns_, head_.dim, columns, weights, columns_);
    if (head_.dropout_p > 0) {
      const int64_t quads = (first + kRows + 3) / 4;
      keep_stride_ = 4 * quads;
      mask_tile(head_, first, quads, keep_);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      // A row beyond the last query sees no key.
      const int64_t visible = r < rows ? first + r : 0;
      sums[r] = exponentials(row(weights, r), head_.drops_logits() ? keep(r) : nullptr, visible,
                             columns, masks);
    }
  }

  float* row(float* tile, int64_t r) const { return tile + r * columns_; }
  const float* keep(int64_t r) const { return keep_ + r * keep_stride_; }
  int64_t row_stride() const { return columns_; }

  int64_t width, value_width;
  float *k, *v, *queries, *weights;
  int64_t first = 0, rows = 0, columns = 0;
  float sums[kRows];
  LaneMasks masks;

 private:
  static constexpr int64_t kAlignment = 16;
  // A tile ends up to kRows + 2 keys beyond the last one. Counters come in blocks, and the last
  // row's vectors reach beyond its end.
  static int64_t keep_floats(int64_t columns) {
    return kRows * (columns + kRows + 2) + 4 * kShortNoiseBlock + kLanes;
  }
  const AttentionHead& head_;
  int64_t columns_, keep_stride_ = 0;
  float *keys_, *keep_, *next_;
};

inline int64_t workspace(int64_t length, int64_t dim, int64_t value_dim, bool backward) {
  const int64_t columns = padded(length), tiles = Tiles::floats(length, dim, value_dim);
  const int64_t widest = padded(dim > value_dim ? dim : value_dim);
  if (!backward) return tiles + kRows * widest + 16;
  return tiles + columns * (value_dim + padded(dim) + padded(value_dim) + 2 * kRows) +
         kRows * (widest + padded(value_dim)) + 7 * 16;
}

inline void forward(const AttentionHead& head, float* out, int64_t stride_position, float* memory) {
  Tiles tiles(head, memory);
  float* const results = tiles.take(kRows * tiles.value_width);
  for (int64_t first = 0; first < head.length; first += kRows) {
    tiles.begin(first);
    const float kept = 1.0f / (1.0f - head.dropout_p);
    for (int64_t r = 0; r < tiles.rows && head.drops_weights(); ++r) {
      float* const weights = tiles.row(tiles.weights, r);
      for (int64_t j = 0; j < tiles.columns; j += kLanes) {
        const Vec keep = Vec::load(tiles.keep(r) + j);
        keep.where_positive(Vec::load(weights + j) * Vec::broadcast(kept), zero())
            .store(weights + j);
      }
    }
    product(tiles.weights, tiles.row_stride(), tiles.v, tiles.value_width, first + tiles.rows - 1,
            tiles.value_width, results, tiles.value_width);
    for (int64_t r = 0; r < tiles.rows; ++r) {
      unpack_row(results + r * tiles.value_width, head.value_dim, 1.0f / tiles.sums[r],
                 out + (first + r) * stride_position);
    }
  }
  // Position 0 sees nothing.
  for (int64_t c = 0; c < head.value_dim; ++c) out[c] = 0;
}

// For one row: weights from exponentials, then kept = weights after dropout, and dlogits from
// dweights.
inline void softmax_backward(const AttentionHead& head, const Tiles& tiles, int64_t r,
                             const float* weights, float* kept_weights, float* dweights) {
  const Vec kept = Vec::broadcast(1.0f / (1.0f - head.dropout_p));
  const Vec inverse =
      Vec::broadcast(tiles.first + r == 0 || r >= tiles.rows ? 0.0f : 1.0f / tiles.sums[r]);
  Vec along = zero();
  for (int64_t j = 0; j < tiles.columns; j += kLanes) {
    Vec weight = Vec::load(weights + j) * inverse, above = Vec::load(dweights + j);
    if (head.drops_weights()) {
      const Vec factor = Vec::load(tiles.keep(r) + j).where_positive(kept, zero());
      above = above * factor;
      (weight * factor).store(kept_weights + j);
    } else {
      weight.store(kept_weights + j);
    }
    along = along.add_product(above, weight);
  }
  const Vec mean = Vec::broadcast(lane_sum(along));
  for (int64_t j = 0; j < tiles.columns; j += kLanes) {
    const Vec weight = Vec::load(weights + j) * inverse;
    Vec above = Vec::load(dweights + j);
    if (head.drops_weights()) {
      above = above * Vec::load(tiles.keep(r) + j).where_positive(kept, zero());
    }
    Vec dlogit = weight * (above - mean);
    if (head.drops_logits()) dlogit = Vec::load(tiles.keep(r) + j).where_positive(dlogit, zero());
    dlogit.store(dweights + j);
  }
}

inline void backward(const AttentionHead& head, const HeadRows& dout, float* dq, float* dk,
                     float* dv, int64_t stride_position, int64_t value_stride_position,
                     float* memory) {
  Tiles tiles(head, memory);
  const int64_t columns = tiles.row_stride();
  const int64_t widest = tiles.width > tiles.value_width ? tiles.width : tiles.value_width;
  float* const values = tiles.take(head.value_dim * columns);  // [dv, L]
  float* const dkeys = tiles.take(columns * tiles.width);
  float* const dvalues = tiles.take(columns * tiles.value_width);
  float* const kept_weights = tiles.take(kRows * columns);
  float* const dweights = tiles.take(kRows * columns);
  float* const above = tiles.take(kRows * tiles.value_width);
  float* const results = tiles.take(kRows * widest);
  transpose(tiles.v, columns, tiles.value_width, head.value_dim, values);
  for (int64_t i = 0; i < columns * tiles.width; ++i) dkeys[i] = 0;
  for (int64_t i = 0; i < columns * tiles.value_width; ++i) dvalues[i] = 0;
  const float kept = head.on_logits ? 1.0f / (1.0f - head.dropout_p) : 1.0f;
  for (int64_t first = 0; first < head.length; first += kRows) {
    tiles.begin(first);
    pack_rows(dout, first, tiles.rows, head.value_dim, 1.0f, kRows, tiles.value_width, above);
    product(above, tiles.value_width, values, columns, head.value_dim, tiles.columns, dweights,
            columns);
    for (int64_t r = 0; r < kRows; ++r) {
      softmax_backward(head, tiles, r, tiles.row(tiles.weights, r), kept_weights + r * columns,
                       dweights + r * columns);
    }
    const int64_t seen = first + tiles.rows - 1;
    add_outer_products(kept_weights, columns, above, tiles.value_width, seen, dvalues);
    // The queries already contain the scale of the logits.
    add_outer_products(dweights, columns, tiles.queries, tiles.width, seen, dkeys);
    product(dweights, columns, tiles.k, tiles.width, seen, tiles.width, results, tiles.width);
    for (int64_t r = 0; r < tiles.rows; ++r) {
      unpack_row(results + r * tiles.width, head.dim, head.scale * kept,
                 dq + (first + r) * stride_position);
    }
  }
  for (int64_t p = 0; p < head.length; ++p) {
    unpack_row(dkeys + p * tiles.width, head.dim, 1.0f, dk + p * stride_position);
    unpack_row(dvalues + p * tiles.value_width, head.value_dim, 1.0f,
               dv + p * value_stride_position);
  }
}

constexpr AttentionKernels kKernels = {
    .workspace = workspace, .forward = forward, .backward = backward};

}  // namespace
}  // namespace vqvae2_fast::cpu::attention
