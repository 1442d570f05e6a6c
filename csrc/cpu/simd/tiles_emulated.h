// The tiles of `tiles.h` in plain C++, for tests on processors without AMX.
#pragma once

#include <stdint.h>

#include "../rows.h"

#define VQ_HAS_TILES

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kTileHeight = 16;
constexpr int64_t kTileBytes = 64;

class Tiles {
 public:
  explicit Tiles(int64_t rows = kTileHeight, int64_t bytes = kTileBytes) { resize(rows, bytes); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void resize(int64_t rows, int64_t bytes) {
    for (int tile = 0; tile < kCount; ++tile) {
      sizes[tile] = {tile / 2 == 3 ? bytes / 4 : rows, tile / 2 == 2 ? bytes : kTileBytes};
    }
  }

  template <int TILE>
  static void zero() {
    __builtin_memset(tiles[TILE], 0, sizeof(tiles[TILE]));
  }
  template <int TILE>
  static void load(const void* rows, int64_t stride) {
    zero<TILE>();
    for (int64_t m = 0; m < sizes[TILE].rows; ++m) {
      const char* row = static_cast<const char*>(rows) + m * stride;
      __builtin_memcpy(tiles[TILE][m], row, sizes[TILE].bytes);
    }
  }
  template <int TILE>
  static void store(void* rows, int64_t stride) {
    for (int64_t m = 0; m < sizes[TILE].rows; ++m) {
      char* row = static_cast<char*>(rows) + m * stride;
      __builtin_memcpy(row, tiles[TILE][m], sizes[TILE].bytes);
    }
  }
  template <int SUM, int ROWS, int COLUMNS>
  static void add_bfloat16_products() {
    add_products<float, uint16_t, uint16_t>(SUM, ROWS, COLUMNS, [](uint16_t value) {
      return float_from_bits(static_cast<uint32_t>(value) << 16);
    });
  }
  template <int SUM, int ROWS, int COLUMNS>
  static void add_byte_products() {
    add_products<int32_t, uint8_t, int8_t>(SUM, ROWS, COLUMNS,
                                           [](int value) { return static_cast<int32_t>(value); });
  }

 private:
  static constexpr int kCount = 8;
  struct Size {
    int64_t rows, bytes;
  };
  static inline thread_local Size sizes[kCount];
  static inline thread_local unsigned char tiles[kCount][kTileHeight][kTileBytes];

  // Values of a type: how many lie in a word of 4 bytes, and the one at a place.
  template <class T>
  static T value(int tile, int64_t row, int64_t place) {
    T found;
    __builtin_memcpy(&found, tiles[tile][row] + place * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return found;
  }

  template <class Sum, class Left, class Right, class Convert>
  static void add_products(int sum, int rows, int columns, const Convert& convert) {
    constexpr int64_t kColumns = kTileBytes / 4, kTogether = 4 / sizeof(Left);
    for (int64_t m = 0; m < kTileHeight; ++m) {
      for (int64_t n = 0; n < kColumns; ++n) {
        Sum total = value<Sum>(sum, m, n);
        for (int64_t k = 0; k < kTileHeight * kTogether; ++k) {
          total += convert(value<Left>(rows, m, k)) *
                   convert(value<Right>(columns, k / kTogether, n * kTogether + k % kTogether));
        }
        __builtin_memcpy(tiles[sum][m] + 4 * n, &total, sizeof(total));
      }
    }
  }
};

}  // namespace
}  // namespace vqvae2_fast::cpu
