// Layers of Winograd's tiles (winograd.h) for all threads: the products over channels between the
// transforms, and how tiles and maps are shared out.
#pragma once

#include <algorithm>
#include <functional>

#include "../aligned.h"
#include "../kernels.h"
#include "../threads/run_parts.h"

namespace vqvae2_fast::cpu::winograd {

// Tiles that a thread takes at a time.
constexpr int64_t kTileGrain = 8;

// The caller's threads.
struct Threads {
  int64_t count;
  RunParts run_parts;

  // Runs part(first, last) on parts of 0..items, in multiples of `grain` items.
  template <class Part>
  void share(int64_t items, int64_t grain, const Part& part) const {
    run_parts((items + grain - 1) / grain, [&](int64_t first, int64_t last) {
      part(first * grain, std::min(last * grain, items));
    });
  }
};

inline void cut_into_tiles(Map& map) {
  map.tile_rows = (map.height + kTile - 1) / kTile;
  map.tile_columns = (map.width + kTile - 1) / kTile;
}

inline int64_t tiles_of(const Map& map) { return map.batch * map.tile_rows * map.tile_columns; }

// Points of a tile.
inline int64_t points_of(int64_t kernel) { return (kernel + 3) * (kernel + 3); }

// [P, rows, columns], in rows, or in panels as the right side of a product.
struct PointMatrices {
  Aligned<float> memory;
  Points layout;
  int64_t count, rows, columns;

  static PointMatrices in_rows(int64_t count, int64_t rows, int64_t columns);
  static PointMatrices in_panels(int64_t count, int64_t rows, int64_t columns);
  float* data() const { return memory.get(); }
};

// Panels [P, inputs, outputs] of a weight, or [P, outputs, inputs].
PointMatrices weight_panels(const Transforms& transforms, const Weight& weight, int64_t count,
                            bool inputs_first, const Threads& threads);

// The gradients of v and (if normalised) g from that of the weight's points: see
// Transforms::weight_adjoint.
void weight_gradient(const Transforms& transforms, const Weight& weight, bool inputs_first,
                     const PointMatrices& du, const Threads& threads, float* dv, float* dg);

// Where the points of some tiles are.
struct TilePoints {
  const float* points;
  Points layout;
};

// Points of tiles first..last, which may be written to `block`.
using TileSource =
    std::function<TilePoints(int64_t first, int64_t last, const PointMatrices& block)>;

// Computes the map of the weight's outputs, in blocks of tiles. bias may be null.
void output_tiles(const Transforms& transforms, const PointMatrices& weight,
                  const TileSource& source, const float* bias, const Map& map,
                  const Threads& threads, float* y);

// Computes a part of one image of the map of the weight's inputs, from points [P, T, outputs]. Its
// first channel is column `column` of the weight. bias may be null.
void input_tiles(const Transforms& transforms, const PointMatrices& points,
                 const PointMatrices& weight, int64_t column, const float* bias, const Map& map,
                 int64_t top, int64_t left, int64_t image, const MapPart& part, float* x);

// Calls call(image, phase, part) for the parts of a map and its phases, shared by the threads. If
// there are too few parts, rows are cut, and tiles at the cuts are multiplied twice.
void for_parts(int64_t batch, int64_t phases, int64_t height, int64_t channels,
               const Threads& threads,
               const std::function<void(int64_t image, int64_t phase, const MapPart& part)>& call);

// The transpose of [P, T, rows] times panels [P, T, columns] -> [P, rows, columns].
PointMatrices multiply_across(const PointMatrices& a, const PointMatrices& b,
                              const Threads& threads);

}  // namespace vqvae2_fast::cpu::winograd
