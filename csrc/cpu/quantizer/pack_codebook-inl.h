// Fills the panels of a packed codebook: include after a simd/ header, inside a level file.
#pragma once

#include <math.h>
#include <string.h>

#include "byte_screen-inl.h"
#include "nearest_code.h"
#include "screen-inl.h"

namespace vqvae2_fast::cpu {
namespace {

// Rounds to nearest, and outside the range to its nearest end.
inline int16_t rounded_to_int16(float value) {
  // The last bit of 1.5 * 2^23 stands for one, so adding and subtracting it leaves the nearest
  // integer.
  constexpr float kInteger = 0x1.8p23f;
  const float low = value < -32768.0f ? -32768.0f : value;
  const float inside = low > 32767.0f ? 32767.0f : low;
  return static_cast<int16_t>(static_cast<int32_t>((inside + kInteger) - kInteger));
}

// Whether codes lie closer to each other than to m, as those of a trained quantiser do. Then rows
// do so, too. A sample decides; any answer is correct.
inline bool codes_lie_close(const PackedCodebook& codebook) {
  constexpr int64_t kSampled = 8, kCompared = 128;
  const int64_t num_codes = codebook.num_codes, dim = codebook.dim;
  const int64_t step = num_codes > kCompared ? num_codes / kCompared : 1;
  int close = 0;
  for (int64_t i = 0; i < kSampled; ++i) {
    const int64_t sampled = num_codes * (2 * i + 1) / (2 * kSampled);
    const float* const code = codebook.codes + sampled * dim;
    float least = INFINITY;
    for (int64_t k = 0; k < num_codes; k += 4 * step) {
      const float* others[4];
      float distances[4];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t other = k + j * step;
        others[j] = codebook.codes + (other < num_codes ? other : k) * dim;
      }
      quick_sqdists(code, others, dim, distances);
      for (int j = 0; j < 4; ++j) {
        if (others[j] != code && distances[j] < least) least = distances[j];
      }
    }
    close += least < 0.64f * quick_sqdist(code, codebook.center, dim);
  }
  return 2 * close > kSampled;
}

// Dimensions that are packed at a time; loops over them become vectors.
constexpr int64_t kPart = 64;

// Eight numbers as the compiler has them at every level. Of a sum in an array it makes no vector.
typedef double Double8 __attribute__((vector_size(64)));

// Of kPart numbers.
inline double sum_of_squares(const double* values) {
  Double8 sums = {};
  for (int64_t i = 0; i < kPart; i += 8) {
    Double8 part;
    memcpy(&part, values + i, sizeof(part));
    sums += part * part;
  }
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += sums[i];
  return sum;
}

// The largest size of some numbers that are not NaN: sizes are ordered as their bits.
inline float largest_size(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t size = bits_of(values[i]) & 0x7FFFFFFFu;
    largest = size > largest ? size : largest;
  }
  return float_from_bits(largest);
}

// Up to kPart dimensions of e - m, then zeros.
inline void load_centered(const float* code, const float* center, int64_t count, double* exact) {
  for (int64_t i = 0; i < count; ++i) {
    exact[i] = static_cast<double>(code[i]) - static_cast<double>(center[i]);
  }
  for (int64_t i = count; i < kPart; ++i) exact[i] = 0;
}

// Sums of squares: of what is stored of a code, and of what rounding took away, the rounding of e'
// included.
struct StoredSquares {
  double kept = 0, lost = 0;
};

// Writes `count` dimensions of a code, from `start` on, as bfloat16 where tiles have them, and adds
// their squares.
inline void store_in_tiles(const PackedCodebook& codebook, int64_t k, int64_t start, int64_t count,
                           const float* centered, uint16_t* panels, StoredSquares& squares) {
  constexpr int64_t kTile = kTileDims * kTileWidth;
  uint16_t* const column =
      panels + (k / kTilePanel * tile_chunks(codebook.dim) * 2 + k / kTileWidth % 2) * kTile +
      k % kTileWidth * 2;
  const float* const code = codebook.codes + k * codebook.dim;
  double kept[8] = {}, lost[8] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t d = start + i;
    const uint16_t rounded = bfloat16_from_float(centered[i]);
    column[d / kTileDims * 2 * kTile + d % kTileDims / 2 * 2 * kTileWidth + d % 2] = rounded;
    const auto stored = static_cast<double>(float_from_bits(static_cast<uint32_t>(rounded) << 16));
    const double error =
        static_cast<double>(code[d]) - static_cast<double>(codebook.center[d]) - stored;
    kept[i % 8] += stored * stored;
    lost[i % 8] += error * error;
  }
  for (int i = 0; i < 8; ++i) {
    squares.kept += kept[i];
    squares.lost += lost[i];
  }
}

// Fills panels first..last of a codebook whose codes and center are set. Tiles are zero before.
inline PanelNorms fill_panels(const PackedCodebook& codebook, int64_t first, int64_t last,
                              const PanelBuffers& out) {
  const int64_t dim = codebook.dim, words = (dim + 1) / 2;
  // The part of a whole code below the smallest unit.
  const double underflow = sqrt(static_cast<double>(dim)) * 0x1p-120;
  PanelNorms norms = {0, 0, 0, 0, 0};
  for (int64_t k = first * kPanelWidth; k < last * kPanelWidth; ++k) {
    float* const column = out.panels + k / kPanelWidth * dim * kPanelWidth + k % kPanelWidth;
    uint32_t* const pair_column =
        out.pair_panels ? out.pair_panels + k / kPanelWidth * words * kPanelWidth + k % kPanelWidth
                        : nullptr;
    const float* const code = codebook.codes + k * dim;
    double square = 0, exact[kPart];
    for (int64_t start = 0; start < dim && k < codebook.num_codes; start += kPart) {
      const int64_t count = dim - start < kPart ? dim - start : kPart;
      load_centered(code + start, codebook.center + start, count, exact);
      square += sum_of_squares(exact);
    }
    const double norm = sqrt(square);
    const float unit = pair_unit(static_cast<float>(norm));
    // Exact, since the unit is a power of two.
    const float inverse_unit = 1 / unit;
    const double wide_unit = static_cast<double>(unit);
    if (out.pair_units) out.pair_units[k] = unit;
    if (k >= codebook.num_codes || !(norm < kMaxScreenedNorm)) {
      // There is no code, or it cannot be screened: its column never wins.
      out.half_norms[k] = kEmptyScore;
      if (k < codebook.num_codes) norms.largest_component = INFINITY;
      for (int64_t d = 0; d < dim; ++d) column[d * kPanelWidth] = 0;
      for (int64_t i = 0; pair_column && i < words; ++i) pair_column[i * kPanelWidth] = 0;
      continue;
    }
    out.half_norms[k] = static_cast<float>(0.5 * square);
    if (norm > norms.max_norm) norms.max_norm = norm;
    double residual = 0;
    StoredSquares in_tiles;
    for (int64_t start = 0; start < dim; start += kPart) {
      const int64_t count = dim - start < kPart ? dim - start : kPart;
      float centered[kPart] = {}, sums[kPart / 2];
      for (int64_t i = 0; i < count; ++i) {
        centered[i] = code[start + i] - codebook.center[start + i];
      }
      for (int64_t i = 0; i < count; ++i) column[(start + i) * kPanelWidth] = centered[i];
      for (int64_t i = 0; i < kPart / 2; ++i) sums[i] = centered[2 * i] + centered[2 * i + 1];
      const float component = largest_size(centered, kPart), pair = largest_size(sums, kPart / 2);
      if (component > norms.largest_component) norms.largest_component = component;
      if (pair > norms.largest_pair) norms.largest_pair = pair;
      if (out.tile_panels) {
        store_in_tiles(codebook, k, start, count, centered, out.tile_panels, in_tiles);
      }
      if (!pair_column) continue;
      int16_t rounded[kPart];
      for (int64_t i = 0; i < kPart; ++i) rounded[i] = rounded_to_int16(centered[i] * inverse_unit);
      load_centered(code + start, codebook.center + start, count, exact);
      for (int64_t i = 0; i < kPart; ++i) exact[i] -= static_cast<double>(rounded[i]) * wide_unit;
      residual += sum_of_squares(exact);
      for (int64_t i = 0; i < count; i += 2) {
        uint32_t word;
        memcpy(&word, rounded + i, sizeof(word));
        pair_column[(start + i) / 2 * kPanelWidth] = word;
      }
    }
    const double relative = norm > 0 ? (sqrt(residual) - underflow) / norm : 0;
    if (relative > norms.pair_residual) norms.pair_residual = relative;
    if (out.tile_half_norms) {
      const double kept = codebook.halves_of_stored ? in_tiles.kept : square;
      out.tile_half_norms[k] = static_cast<float>(0.5 * kept);
    }
    const double tile_relative = norm > 0 ? (sqrt(in_tiles.lost) - underflow) / norm : 0;
    if (tile_relative > norms.tile_residual) norms.tile_residual = tile_relative;
  }
  return norms;
}

#if defined(VQ_HAS_BYTE_PRODUCTS)
// Writes the bytes of a code as words of its column, those of each section behind a word of two
// int16: what kByteBias adds to the two sums, with the other sign. Returns the largest sum of
// squares of the components that one sum of a section adds up.
template <class Sum>
inline int store_byte_words(const int8_t* bytes, int64_t words, int8_t* column) {
  constexpr int64_t kDims = Sum::kDims, kStep = 2 * Sum::kLanes * kDims;
  int most_square = 0;
  for (int64_t word = 0; word < words; ++word, column += kStep) {
    if constexpr (Sum::kSectionWords > 0) {
      static_assert(kDims == 4);
      if (word % Sum::kSectionWords == 0) {
        const int64_t end = word + Sum::kSectionWords;
        int sums[2] = {}, squares[2] = {};
        for (int64_t i = 4 * word; i < 4 * (end < words ? end : words); ++i) {
          sums[i / 2 % 2] += bytes[i];
          squares[i / 2 % 2] += bytes[i] * bytes[i];
        }
        for (int half = 0; half < 2; ++half) {
          const auto start = static_cast<uint16_t>(-kByteBias * sums[half]);
          memcpy(column + 2 * half, &start, sizeof(start));
          if (squares[half] > most_square) most_square = squares[half];
        }
        column += kStep;
      }
    }
    memcpy(column, bytes + word * kDims, kDims);
  }
  return most_square;
}

// Fills blocks first..last of the bytes of a codebook whose panels and units of bytes are set.
template <class Sum>
inline ByteNorms fill_bytes(const PackedCodebook& codebook, int64_t first, int64_t last,
                            const ByteBuffers& out) {
  constexpr int64_t kWidth = 2 * Sum::kLanes, kDims = Sum::kDims;
  const int64_t dim = codebook.dim, words = byte_words<Sum>(dim);
  const int64_t stored_words = stored_byte_words<Sum>(dim);
  const double unit = static_cast<double>(codebook.bytes.unit), inverse = 1 / unit;
  auto* const halves = static_cast<typename Sum::Half*>(out.half_norms);
  auto* const offsets = static_cast<typename Sum::Offset*>(out.offsets);
  double most_square = 0, most_residual = 0;
  int most_in_section = 0;
  for (int64_t k = first * kByteBlock<Sum>; k < last * kByteBlock<Sum>; ++k) {
    int8_t bytes[Sum::kMostDims + kPart];
    static_assert(Sum::kMostDims % kPart == 0 && kPart % kDims == 0);
    // Padding repeats the last code, so that the least score is always that of a code.
    const int64_t source = k < codebook.num_codes ? k : codebook.num_codes - 1;
    const float* const code = codebook.codes + source * dim;
    double square = 0, residual = 0;
    for (int64_t start = 0; start < dim; start += kPart) {
      // The last bit of 1.5 * 2^52 stands for one.
      constexpr double kInteger = 0x1.8p52;
      double exact[kPart], integers[kPart];
      load_centered(code + start, codebook.center + start,
                    dim - start < kPart ? dim - start : kPart, exact);
      for (int64_t i = 0; i < kPart; ++i) {
        integers[i] = (exact[i] * inverse + kInteger) - kInteger;
        exact[i] -= integers[i] * unit;
      }
      square += sum_of_squares(integers);
      residual += sum_of_squares(exact);
      for (int64_t i = 0; i < kPart; ++i) {
        bytes[start + i] = static_cast<int8_t>(static_cast<int>(integers[i]));
      }
    }
    int sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += bytes[d];
    // Sections have starts of their own.
    offsets[k] = static_cast<typename Sum::Offset>(Sum::kSectionWords > 0 ? 0 : kByteBias * sum);
    const float stored_half = static_cast<float>(0.5 * square * unit * unit);
    const float half = codebook.halves_of_stored ? stored_half : codebook.half_norms[source];
    halves[k] = Sum::half(half / codebook.bytes.half_unit);
    if (square > most_square) most_square = square;
    if (residual > most_residual) most_residual = residual;
    int8_t* const column = out.panels + (k / kWidth * stored_words * kWidth + k % kWidth) * kDims;
    const int in_section = store_byte_words<Sum>(bytes, words, column);
    if (in_section > most_in_section) most_in_section = in_section;
  }
  return {static_cast<float>(sqrt(most_square) * 1.0001),
          static_cast<float>(sqrt(static_cast<double>(most_in_section)) * 1.0001),
          static_cast<float>(sqrt(most_residual) * 1.0001)};
}

template <class Sum>
inline ByteLayout byte_layout_of(int64_t dim) {
  return {.block = kByteBlock<Sum>,
          .word_bytes = Sum::kDims,
          .score_bytes = sizeof(typename Sum::Score),
          .words = stored_byte_words<Sum>(dim),
          .most_component = Sum::kMostCode,
          .most_half = Sum::kMostHalf,
          .most_pair = Sum::kMostPair,
          .fill = fill_bytes<Sum>};
}

inline bool byte_layout(int64_t num_codes, int64_t dim, ByteLayout& layout) {
  return with_byte_sums(dim, [&](auto sum) {
    using Sum = decltype(sum);
    if (!suit_bytes<Sum>(num_codes, dim)) return false;
    layout = byte_layout_of<Sum>(dim);
    return true;
  });
}
#else
inline bool byte_layout(int64_t, int64_t, ByteLayout&) { return false; }
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
