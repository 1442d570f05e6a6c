// AMX: eight tiles of up to 16 rows of 64 bytes, and products of whole tiles. `tiles_emulated.h`
// has the same in plain C++.
#pragma once

#include <stdint.h>

#define VQ_HAS_TILES

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kTileHeight = 16;  // rows of a tile
constexpr int64_t kTileBytes = 64;   // of a row

// The tiles of this thread while the object lives. Another library may rely on the configuration
// that it has left, so that one is put back.
class Tiles {
 public:
  // Tiles of full size; or sums (tiles 0 to 3) of `rows` rows and the factors of their products:
  // rows (tiles 4 and 5) of `bytes` bytes, a multiple of 4, and as many inputs of columns (6 and
  // 7).
  explicit Tiles(int64_t rows = kTileHeight, int64_t bytes = kTileBytes) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    resize(rows, bytes);
  }
  ~Tiles() {
    if (before_.palette == 0) {
      asm volatile("tilerelease" ::: "memory");
    } else {
      configure(before_);
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // The tiles lose what they hold.
  void resize(int64_t rows, int64_t bytes) {
    Configuration wanted = {};
    wanted.palette = 1;
    for (int tile = 0; tile < kCount; ++tile) {
      wanted.row_bytes[tile] = static_cast<uint16_t>(tile / 2 == 2 ? bytes : kTileBytes);
      wanted.rows[tile] = static_cast<uint8_t>(tile / 2 == 3 ? bytes / 4 : rows);
    }
    configure(wanted);
  }

  template <int TILE>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
  }
  // Row r from rows + r * stride bytes; a stride of 0 repeats one row.
  template <int TILE>
  static void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
  }
  template <int TILE>
  static void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
  }
  // SUM[m, n] += sum over 32 inputs of ROWS[m, input] * COLUMNS[input / 2, n, input % 2], in
  // bfloat16; the sums are float32, in an order of the processor's own.
  template <int SUM, int ROWS, int COLUMNS>
  static void add_bfloat16_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(ROWS), "i"(COLUMNS));
  }
  // The same for 64 inputs of unsigned bytes and COLUMNS[input / 4, n, input % 4] of signed ones,
  // in int32.
  template <int SUM, int ROWS, int COLUMNS>
  static void add_byte_products() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(ROWS), "i"(COLUMNS));
  }

 private:
  static constexpr int kCount = 8;
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static void configure(const Configuration& configuration) {
    asm volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
  }
  Configuration before_;
};

}  // namespace
}  // namespace vqvae2_fast::cpu
