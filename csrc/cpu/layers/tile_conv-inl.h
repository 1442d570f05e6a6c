// The kernels of tile_conv.h: include inside a level file after its simd header.
#pragma once

#include "pointwise-inl.h"
#include "tile_conv.h"

namespace vqvae2_fast::cpu::tile_conv {
namespace {

#if defined(VQ_HAS_TILES)
constexpr int64_t kTile = kTileHeight;       // places, or channels, of a tile
constexpr int64_t kDepth = 2 * kTileHeight;  // channels, or places, that a product sums over
constexpr int64_t kTileHalves = kTile * kDepth;

inline int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Rows above a map and columns before it in its padded image; -1 if the map's first is left out.
struct Padding {
  int64_t top, left;
};

inline Padding padding_of(const Shape& shape, bool adjoint) {
  if (!adjoint) return {shape.top, shape.left};
  return {shape.kernel - 1 - shape.top, shape.kernel - 1 - shape.left};
}

// How many places lie from the first one that a position reads to the one that each tap does.
struct Taps {
  static constexpr int64_t kMost = 25;
  int64_t count, places[kMost];

  Taps(const Shape& shape, bool adjoint) : count(shape.num_taps()) {
    for (int64_t tap = 0; tap < count; ++tap) places[tap] = place_of(shape, adjoint, tap);
  }
  static int64_t place_of(const Shape& shape, bool adjoint, int64_t tap) {
    const int64_t row = tap / shape.kernel, column = tap % shape.kernel, last = shape.kernel - 1;
    return adjoint ? (last - row) * shape.pitch() + last - column : row * shape.pitch() + column;
  }
};

// Places of a padded image of `rows` rows, with those that the last tiles read past it.
inline int64_t padded_places(const Shape& shape, int64_t rows) {
  return (rows + shape.kernel - 1) * shape.pitch() + kDepth + shape.kernel;
}

inline int64_t padded_halves(const Shape& shape, bool adjoint, int64_t rows) {
  return padded_places(shape, rows) * rounded_up(shape.from(adjoint), kDepth);
}

// A thread's memory: the padded image, a row of it in float32, sums of four tiles, and the bias.
struct Workspace {
  uint16_t* padded;
  float *row, *sums, *bias;

  static int64_t bytes(const Shape& shape, bool adjoint, int64_t rows) {
    const int64_t floats = rounded_up(shape.width * shape.from(adjoint), kTile) +
                           4 * kTile * kTile + rounded_up(shape.to(adjoint), kTile);
    return rounded_up(2 * padded_halves(shape, adjoint, rows), 64) + 4 * floats;
  }
  Workspace(const Shape& shape, bool adjoint, int64_t rows, void* memory)
      : padded(static_cast<uint16_t*>(memory)) {
    row = reinterpret_cast<float*>(static_cast<char*>(memory) +
                                   rounded_up(2 * padded_halves(shape, adjoint, rows), 64));
    sums = row + rounded_up(shape.width * shape.from(adjoint), kTile);
    bias = sums + 4 * kTile * kTile;
  }
};

inline void round_channels(const float* values, int64_t channels, uint16_t* halves) {
  int64_t c = 0;
  for (; c + Vec::kLanes <= channels; c += Vec::kLanes) {
    store_bfloat16(Vec::load(values + c), halves + c);
  }
  if (c < channels) store_bfloat16(Vec::load_first(values + c, channels - c), halves + c);
}

// Rows first..last of a map, and those around them that the kernel reads, as a padded image. What
// lies before, behind and past the channels of a row is zero already.
inline void fill_padded(const Shape& shape, const Padding& padding, int64_t channels,
                        const Activation& activation, int64_t image, const float* x, int64_t first,
                        int64_t last, float* row_memory, uint16_t* padded) {
  const int64_t depth = rounded_up(channels, kDepth), width = shape.width;
  const int64_t begin = padding.left < 0 ? -padding.left : 0;
  const int64_t fits = shape.pitch() - padding.left, end = fits < width ? fits : width;
  const bool activates = !activation.is_identity();
  for (int64_t p = 0; p < last - first + shape.kernel - 1; ++p) {
    const int64_t row = first + p - padding.top;
    uint16_t* const to = padded + p * shape.pitch() * depth;
    if (row < 0 || row >= shape.height) {
      __builtin_memset(to, 0, static_cast<size_t>(2 * shape.pitch() * depth));
      continue;
    }
    const float* values = x + row * width * channels;
    if (activates) {
      const int64_t position = image * shape.height * width + row * width;
      gated_layer::activate(activation, values, channels, position, position + width, row_memory);
      values = row_memory;
    }
    for (int64_t c = begin; c < end; ++c) {
      round_channels(values + c * channels, channels, to + (c + padding.left) * depth);
    }
  }
}

inline int64_t packed_bytes(const Shape& shape, bool adjoint) {
  return 2 * rounded_up(shape.to(adjoint), kTile) * rounded_up(shape.from(adjoint), kDepth) *
         shape.num_taps();
}

// Tiles [columns / 16, taps, channels / 32, 16 pairs of channels, 16 columns, 2].
inline void pack(const Shape& shape, bool adjoint, const PointwiseLayer& weight, int64_t first,
                 int64_t last, void* packed) {
  auto* const halves = static_cast<uint16_t*>(packed);
  const int64_t taps = shape.num_taps(), area = shape.kernel * shape.kernel;
  const int64_t chunks = rounded_up(shape.from(adjoint), kDepth) / kDepth;
  for (int64_t o = first; o < last; ++o) {
    const float factor = pointwise::scale_of(weight, o);
    for (int64_t i = 0; i < shape.inputs; ++i) {
      const float* taps_of = weight.v + (o * shape.inputs + i) * area;
      const int64_t channel = adjoint ? o : i, column = adjoint ? i : o;
      uint16_t* const to = halves +
                           (column / kTile * taps * chunks + channel / kDepth) * kTileHalves +
                           channel % kDepth / 2 * kDepth + column % kTile * 2 + channel % 2;
      for (int64_t tap = 0; tap < taps; ++tap) {
        to[tap * chunks * kTileHalves] = bfloat16_from_float(taps_of[tap] * factor);
      }
    }
  }
}

// Two tiles of factors: bytes from one of their rows to the next, and from the first to the second.
struct TwoTiles {
  int64_t stride, to_second;
};

// sums (tiles 0 to 3) += the products of ROWS tiles of rows and COLUMNS of columns.
template <int ROWS, int COLUMNS>
inline void add_products(const void* rows, const TwoTiles& of_rows, const void* columns,
                         const TwoTiles& of_columns) {
  Tiles::load<4>(rows, of_rows.stride);
  Tiles::load<6>(columns, of_columns.stride);
  Tiles::add_bfloat16_products<0, 4, 6>();
  if constexpr (COLUMNS > 1) {
    Tiles::load<7>(static_cast<const char*>(columns) + of_columns.to_second, of_columns.stride);
    Tiles::add_bfloat16_products<1, 4, 7>();
  }
  if constexpr (ROWS > 1) {
    Tiles::load<5>(static_cast<const char*>(rows) + of_rows.to_second, of_rows.stride);
    Tiles::add_bfloat16_products<2, 5, 6>();
    if constexpr (COLUMNS > 1) Tiles::add_bfloat16_products<3, 5, 7>();
  }
}

struct Factors {
  const uint16_t* rows;  // of the first tile of places; the second one is `to_second` halves on
  int64_t to_second, depth;
  const uint16_t* columns;  // and of columns
  int64_t to_next;
};

// sums (tiles 0 to 3) = the bias + the products of ROWS tiles of places and COLUMNS of columns.
template <int ROWS, int COLUMNS>
inline void multiply(const Taps& taps, const Factors& factors, const float* bias) {
  Tiles::load<0>(bias, 0);
  if constexpr (COLUMNS > 1) Tiles::load<1>(bias + kTile, 0);
  if constexpr (ROWS > 1) Tiles::load<2>(bias, 0);
  if constexpr (ROWS > 1 && COLUMNS > 1) Tiles::load<3>(bias + kTile, 0);
  const TwoTiles of_rows = {2 * factors.depth, 2 * factors.to_second};
  const TwoTiles of_columns = {kTileBytes, 2 * factors.to_next};
  const uint16_t* columns = factors.columns;
  for (int64_t tap = 0; tap < taps.count; ++tap) {
    const uint16_t* rows = factors.rows + taps.places[tap] * factors.depth;
    for (int64_t d = 0; d < factors.depth; d += kDepth, columns += kTileHalves) {
      add_products<ROWS, COLUMNS>(rows + d, of_rows, columns, of_columns);
    }
  }
}

// Stores 16 places by up to 16 columns of a tile's sums.
template <int SUM>
inline void store_sums(const Shape& shape, int64_t place, int64_t rows, int64_t columns,
                       int64_t channels, float* memory, float* y) {
  const int64_t width = shape.width, pitch = shape.pitch();
  const bool in_a_row =
      shape.kernel == 1 ? place + kTile <= rows * width : place % pitch + kTile <= width;
  if (in_a_row && columns == kTile) {
    Tiles::store<SUM>(y + (place / pitch * width + place % pitch) * channels, 4 * channels);
    return;
  }
  Tiles::store<SUM>(memory, kTileBytes);
  int64_t row = place / pitch, column = place % pitch;
  for (int64_t i = 0; i < kTile && row < rows; ++i) {
    if (column < width) {
      float* const to = y + (row * width + column) * channels;
      for (int64_t c = 0; c < columns; c += Vec::kLanes) {
        const int64_t count = columns - c < Vec::kLanes ? columns - c : Vec::kLanes;
        Vec::load(memory + i * kTile + c).store_first(to + c, count);
      }
    }
    if (++column == pitch) column = 0, ++row;
  }
}

inline void convolve(const Shape& shape, bool adjoint, const Activation& activation, int64_t image,
                     const void* packed, const float* bias, const float* x, int64_t first,
                     int64_t last, void* memory, float* y) {
  const int64_t rows = last - first, from = shape.from(adjoint), to = shape.to(adjoint);
  const int64_t depth = rounded_up(from, kDepth), pitch = shape.pitch();
  const Workspace work(shape, adjoint, rows, memory);
  fill_padded(shape, padding_of(shape, adjoint), from, activation, image, x, first, last, work.row,
              work.padded);
  for (int64_t c = 0; c < rounded_up(to, kTile); ++c) work.bias[c] = bias && c < to ? bias[c] : 0;
  // Tiles of one row where they fill it; otherwise they pass over the places between the rows.
  const bool by_rows = shape.width % kTile == 0;
  const int64_t in_row = shape.width / kTile;
  const int64_t tiles = by_rows ? rows * in_row : (rows * pitch + kTile - 1) / kTile;
  const auto place_of = [&](int64_t tile) {
    return by_rows ? tile / in_row * pitch + tile % in_row * kTile : tile * kTile;
  };
  const int64_t column_halves = shape.num_taps() * depth * kTile;
  float* const out = y + first * shape.width * to;
  const Taps taps(shape, adjoint);
  const Tiles owned;
  for (int64_t c = 0; c < to; c += 2 * kTile) {
    const int64_t left = to - c, counts[2] = {left < kTile ? left : kTile,
                                              left < 2 * kTile ? left - kTile : kTile};
    const bool two = left > kTile;
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const int64_t place = place_of(tile), next = place_of(tile + 1);
      const Factors factors = {
          .rows = work.padded + place * depth,
          .to_second = (next - place) * depth,
          .depth = depth,
          .columns = static_cast<const uint16_t*>(packed) + c / kTile * column_halves,
          .to_next = column_halves};
      const bool both = tile + 1 < tiles;
      if (both && two) {
        multiply<2, 2>(taps, factors, work.bias + c);
      } else if (both) {
        multiply<2, 1>(taps, factors, work.bias + c);
      } else if (two) {
        multiply<1, 2>(taps, factors, work.bias + c);
      } else {
        multiply<1, 1>(taps, factors, work.bias + c);
      }
      const auto store = [&]<int SUM>(int64_t from_place) {
        store_sums<SUM>(shape, from_place, rows, counts[SUM % 2], to, work.sums,
                        out + c + SUM % 2 * kTile);
      };
      store.template operator()<0>(place);
      if (two) store.template operator()<1>(place);
      if (both) store.template operator()<2>(next);
      if (both && two) store.template operator()<3>(next);
    }
  }
}

// Places of an image that the weight's gradient sums over: those of the map's rows, with the ones
// between them, whose dy is zero.
inline int64_t summed_places(const Shape& shape) {
  return rounded_up(shape.height * shape.pitch(), kDepth);
}

// Halves from one channel's places to the next one's: an odd number of cache lines, so that a
// tile's rows do not share the sets of a cache.
inline int64_t channel_halves(const Shape& shape) {
  const int64_t reach = (shape.kernel - 1) * (shape.pitch() + 1);  // of the last tap
  const int64_t lines = (summed_places(shape) + reach) / kDepth + 1;
  return (lines | 1) * kDepth;
}

inline int64_t places_bytes(const Shape& shape) {
  return 2 * rounded_up(shape.inputs, kTile) * channel_halves(shape);
}

inline int64_t pairs_bytes(const Shape& shape) {
  return 2 * rounded_up(shape.outputs, kTile) * summed_places(shape);
}

// Words [16] of the places `place` and the next one, 16 channels from `channel` on.
inline void pair_of(const uint16_t* padded, int64_t depth, int64_t places, int64_t place,
                    int64_t channel, uint32_t* words) {
  static constexpr uint16_t kZeros[kTile] = {};
  const auto halves = [&](int64_t at) {
    return at < places ? padded + at * depth + channel : kZeros;
  };
  interleave_halves(halves(place), halves(place + 1), words);
}

inline void to_places(const Shape& shape, const Activation& activation, int64_t image,
                      const float* x, void* memory, void* out) {
  const int64_t depth = rounded_up(shape.inputs, kDepth), stride = channel_halves(shape);
  const int64_t places = padded_places(shape, shape.height);
  const Workspace work(shape, false, shape.height, memory);
  fill_padded(shape, padding_of(shape, false), shape.inputs, activation, image, x, 0, shape.height,
              work.row, work.padded);
  alignas(64) uint32_t words[kTile][kTile], turned[kTile][kTile];
  for (int64_t c = 0; c < shape.inputs; c += kTile) {
    for (int64_t place = 0; place < stride; place += kDepth) {
      for (int64_t pair = 0; pair < kTile; ++pair) {
        pair_of(work.padded, depth, places, place + 2 * pair, c, words[pair]);
      }
      transpose_words(words[0], turned[0]);
      for (int64_t i = 0; i < kTile; ++i) {
        __builtin_memcpy(static_cast<uint16_t*>(out) + (c + i) * stride + place, turned[i],
                         kTileBytes);
      }
    }
  }
}

inline void to_pairs(const Shape& shape, const float* dy, void* memory, void* out) {
  const int64_t depth = rounded_up(shape.outputs, kDepth), width = rounded_up(shape.outputs, kTile);
  const int64_t places = shape.height * shape.pitch();
  const Workspace work(shape, true, shape.height, memory);
  fill_padded(shape, Padding{0, 0}, shape.outputs, {}, 0, dy, 0, shape.height, work.row,
              work.padded);
  auto* words = static_cast<uint32_t*>(out);
  for (int64_t place = 0; place < summed_places(shape); place += 2, words += width) {
    for (int64_t c = 0; c < width; c += kTile) {
      pair_of(work.padded, depth, places, place, c, words + c);
    }
  }
}

inline int64_t parts(const Shape& shape) {
  return rounded_up(shape.inputs, 2 * kTile) / (2 * kTile) * shape.num_taps() *
         (rounded_up(shape.outputs, 2 * kTile) / (2 * kTile));
}

// sums [inputs, outputs] (tiles 0 to 3) of ROWS tiles of inputs and COLUMNS of outputs for a tap.
template <int ROWS, int COLUMNS>
inline void sum_places(const Shape& shape, int64_t images, const char* places, const char* pairs,
                       int64_t from_place) {
  const int64_t stride = 2 * channel_halves(shape), width = rounded_up(shape.outputs, kTile);
  const int64_t summed = summed_places(shape);
  const TwoTiles of_rows = {stride, kTile * stride}, of_columns = {4 * width, kTileBytes};
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  for (int64_t image = 0; image < images; ++image) {
    const char* rows = places + image * places_bytes(shape) + 2 * from_place;
    const char* columns = pairs + image * pairs_bytes(shape);
    for (int64_t place = 0; place < summed; place += kDepth) {
      add_products<ROWS, COLUMNS>(rows + 2 * place, of_rows, columns + 2 * place * width,
                                  of_columns);
    }
  }
}

inline void weight_gradient(const Shape& shape, int64_t images, const void* places,
                            const void* pairs, int64_t first, int64_t last, float* dw,
                            int64_t stride) {
  const int64_t taps = shape.num_taps(), area = shape.kernel * shape.kernel;
  const int64_t blocks = rounded_up(shape.outputs, 2 * kTile) / (2 * kTile);
  alignas(64) float sums[kTile][kTile];
  const Tiles owned;
  for (int64_t part = first; part < last; ++part) {
    const int64_t tap = part % taps, o = part / taps % blocks * 2 * kTile;
    const int64_t i = part / taps / blocks * 2 * kTile;
    const bool two_rows = shape.inputs - i > kTile, two_columns = shape.outputs - o > kTile;
    const char* rows = static_cast<const char*>(places) + 2 * i * channel_halves(shape);
    const char* of_outputs = static_cast<const char*>(pairs) + 4 * o;
    const int64_t from = Taps::place_of(shape, false, tap);
    if (two_rows && two_columns) {
      sum_places<2, 2>(shape, images, rows, of_outputs, from);
    } else if (two_rows) {
      sum_places<2, 1>(shape, images, rows, of_outputs, from);
    } else if (two_columns) {
      sum_places<1, 2>(shape, images, rows, of_outputs, from);
    } else {
      sum_places<1, 1>(shape, images, rows, of_outputs, from);
    }
    const auto spread = [&]<int SUM>() {
      Tiles::store<SUM>(sums, kTileBytes);
      const int64_t begin = i + SUM / 2 * kTile, from_output = o + SUM % 2 * kTile;
      for (int64_t n = 0; n < kTile && from_output + n < shape.outputs; ++n) {
        float* const to = dw + (from_output + n) * stride + begin * area + tap;
        for (int64_t m = 0; m < kTile && begin + m < shape.inputs; ++m) to[m * area] = sums[m][n];
      }
    };
    spread.template operator()<0>();
    spread.template operator()<1>();
    spread.template operator()<2>();
    spread.template operator()<3>();
  }
}

constexpr Kernels kKernels = {.packed_bytes = packed_bytes,
                              .workspace = Workspace::bytes,
                              .pack = pack,
                              .convolve = convolve,
                              .places_bytes = places_bytes,
                              .pairs_bytes = pairs_bytes,
                              .to_places = to_places,
                              .to_pairs = to_pairs,
                              .parts = parts,
                              .weight_gradient = weight_gradient};
#else
constexpr Kernels kKernels = {};
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu::tile_conv
