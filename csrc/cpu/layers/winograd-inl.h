// Winograd's transforms, vectors across channels: include inside a level file after its simd
// header. Each reads its input once and writes its output once; the points take P/16 times the
// map's bytes.
#pragma once

#include <math.h>
#include <stdint.h>

#include "winograd.h"
#include "winograd_matrices-inl.h"

namespace vqvae2_fast::cpu::winograd {
namespace {

// Row kRow of the transform's matrix times in[0], in[stride], ...; no product for a zero.
template <class Transform, int kRow, int kFirst = 0, bool kEmpty = true>
inline Vec row_product(const Vec* in, int stride, Vec sum) {
  if constexpr (kFirst == Transform::kIn) {
    return sum;
  } else {
    constexpr float factor = static_cast<float>(Transform::kMatrix.at[kRow][kFirst]);
    if constexpr (factor == 0) {
      return row_product<Transform, kRow, kFirst + 1, kEmpty>(in, stride, sum);
    } else {
      const Vec value = in[kFirst * stride];
      if constexpr (kEmpty) {
        sum = factor == 1 ? value : value * Vec::broadcast(factor);
      } else {
        sum = sum.add_product(value, Vec::broadcast(factor));
      }
      return row_product<Transform, kRow, kFirst + 1, false>(in, stride, sum);
    }
  }
}

template <class Transform, int kRow = 0>
inline void column_transform(const Vec* in, int in_stride, Vec* out, int out_stride) {
  if constexpr (kRow < Transform::kOut) {
    out[kRow * out_stride] = row_product<Transform, kRow>(in, in_stride, Vec::broadcast(0));
    column_transform<Transform, kRow + 1>(in, in_stride, out, out_stride);
  }
}

// out = M in M^T; in is [kIn][kIn], out [kOut][kOut].
template <class Transform>
inline void transform(const Vec* in, Vec* out) {
  constexpr int kIn = Transform::kIn, kOut = Transform::kOut;
  Vec half[kOut * kIn];
  for (int j = 0; j < kIn; ++j) column_transform<Transform>(in + j, kIn, half + j, kIn);
  for (int i = 0; i < kOut; ++i) {
    column_transform<Transform>(half + i * kIn, 1, out + i * kOut, 1);
  }
}

struct TilePlace {
  int64_t image, row, column;  // row and column of the tile's first position
};

inline TilePlace place_of(const Map& map, int64_t tile) {
  const int64_t in_image = tile % (map.tile_rows * map.tile_columns);
  return {tile / (map.tile_rows * map.tile_columns), in_image / map.tile_columns * kTile,
          in_image % map.tile_columns * kTile};
}

// Channels of a map's vector: the last one may have fewer than it has lanes.
inline int64_t channels_at(int64_t channel, int64_t channels) {
  return channels - channel < Vec::kLanes ? channels - channel : Vec::kLanes;
}

// Patches of kIn x kIn positions, zeros outside the map, to kOut x kOut points.
template <class Transform>
void map_to_points(const Map& map, const float* x, int64_t top, int64_t left, int64_t first,
                   int64_t last, const Points& points, float* out) {
  constexpr int kIn = Transform::kIn, kOut = Transform::kOut;
  for (int64_t tile = first; tile < last; ++tile) {
    const TilePlace place = place_of(map, tile);
    const float* image = x + place.image * map.stride_batch;
    for (int64_t c = 0; c < map.channels; c += Vec::kLanes) {
      const int64_t count = channels_at(c, map.channels);
      Vec patch[kIn * kIn], result[kOut * kOut];
      for (int i = 0; i < kIn; ++i) {
        const int64_t row = place.row - top + i;
        for (int j = 0; j < kIn; ++j) {
          const int64_t column = place.column - left + j;
          const bool inside = row >= 0 && row < map.height && column >= 0 && column < map.width;
          patch[i * kIn + j] =
              inside ? Vec::load_first(
                           image + row * map.stride_row + column * map.stride_column + c, count)
                     : Vec::broadcast(0);
        }
      }
      transform<Transform>(patch, result);
      float* target = out + points.at(tile, c);
      for (int p = 0; p < kOut * kOut; ++p) {
        result[p].store_first(target + p * points.stride_point, count);
      }
    }
  }
}

template <class Transform>
inline void load_points(const float* source, const Points& points, int64_t count, Vec* patch) {
  for (int p = 0; p < Transform::kIn * Transform::kIn; ++p) {
    patch[p] = Vec::load_first(source + p * points.stride_point, count);
  }
}

template <int kTaps>
void output(const Map& map, const float* m, const Points& points, const float* bias, int64_t first,
            int64_t last, float* y) {
  using Transform = OutputTransform<kTaps>;
  for (int64_t tile = first; tile < last; ++tile) {
    const TilePlace place = place_of(map, tile);
    float* image = y + place.image * map.stride_batch;
    const int64_t rows = map.height - place.row < kTile ? map.height - place.row : kTile;
    const int64_t columns = map.width - place.column < kTile ? map.width - place.column : kTile;
    for (int64_t c = 0; c < map.channels; c += Vec::kLanes) {
      const int64_t count = channels_at(c, map.channels);
      Vec patch[Transform::kIn * Transform::kIn], result[kTile * kTile];
      load_points<Transform>(m + points.at(tile, c), points, count, patch);
      transform<Transform>(patch, result);
      const Vec added = bias ? Vec::load_first(bias + c, count) : Vec::broadcast(0);
      for (int64_t i = 0; i < rows; ++i) {
        float* target = image + (place.row + i) * map.stride_row + place.column * map.stride_column;
        for (int64_t j = 0; j < columns; ++j) {
          (result[i * kTile + j] + added).store_first(target + j * map.stride_column + c, count);
        }
      }
    }
  }
}

template <int kTaps>
void input_adjoint(const Map& map, const float* dv, const Points& points, int64_t top, int64_t left,
                   int64_t first, int64_t last, const MapPart& part, float* dx) {
  using Transform = InputAdjoint<kTaps>;
  constexpr int kIn = Transform::kIn;
  for (int64_t tile = first; tile < last; ++tile) {
    const TilePlace place = place_of(map, tile);
    float* target = dx + place.image * map.stride_batch;
    for (int64_t c = part.first_channel; c < part.last_channel; c += Vec::kLanes) {
      const int64_t count = channels_at(c, part.last_channel);
      Vec patch[kIn * kIn], result[kIn * kIn];
      load_points<Transform>(dv + points.at(tile, c), points, count, patch);
      transform<Transform>(patch, result);
      for (int i = 0; i < kIn; ++i) {
        const int64_t row = place.row - top + i;
        if (row < part.first_row || row >= part.last_row) continue;
        for (int j = 0; j < kIn; ++j) {
          const int64_t column = place.column - left + j;
          if (column < 0 || column >= map.width) continue;
          float* position = target + row * map.stride_row + column * map.stride_column + c;
          (Vec::load_first(position, count) + result[i * kIn + j]).store_first(position, count);
        }
      }
    }
  }
}

// 1 where a tap counts.
template <int kTaps>
inline bool is_live(const Weight& weight, int tap) {
  return tap < kTaps * (kTaps - 1) + weight.live;
}

template <int kTaps>
inline double norm_of(const Weight& weight, int64_t output) {
  const float* v = weight.v + output * weight.inputs * kTaps * kTaps;
  double total = 0;
  for (int64_t i = 0; i < weight.inputs; ++i) {
    // A partial sum in float32 has 25 terms at most.
    float squares = 0;
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      const float value = is_live<kTaps>(weight, tap) ? v[i * kTaps * kTaps + tap] : 0;
      squares += value * value;
    }
    total += static_cast<double>(squares);
  }
  return sqrt(total);
}

template <int kTaps>
inline float scale_of(const Weight& weight, int64_t output) {
  if (!weight.g) return 1;
  return static_cast<float>(static_cast<double>(weight.g[output]) / norm_of<kTaps>(weight, output));
}

// The lanes of a vector of points: neighbours of (output, input) across the outputs or the inputs.
struct Lanes {
  bool across_outputs;
  int64_t outputs() const { return across_outputs ? Vec::kLanes : 1; }
  int64_t inputs() const { return across_outputs ? 1 : Vec::kLanes; }
  // Those that stand for a channel.
  int64_t count(const Weight& weight, int64_t output, int64_t input) const {
    return across_outputs ? channels_at(output, weight.outputs) : channels_at(input, weight.inputs);
  }
  int64_t place(const Weight& weight, int64_t output, int64_t input, int lane) const {
    return across_outputs ? (output + lane) * weight.inputs + input
                          : output * weight.inputs + input + lane;
  }
};

template <int kTaps>
void weight_points(const Weight& weight, bool inputs_first, int64_t first, int64_t last,
                   const Points& points, float* u) {
  using Transform = WeightTransform<kTaps>;
  constexpr int kArea = kTaps * kTaps, kOut = Transform::kOut;
  const Lanes order = {inputs_first};
  for (int64_t o = first; o < last; o += order.outputs()) {
    float scales[Vec::kLanes];
    for (int l = 0; l < Vec::kLanes; ++l) {
      const bool is_own = l < order.outputs() && o + l < weight.outputs;
      scales[l] = is_own ? scale_of<kTaps>(weight, o + l) : scales[0];
    }
    for (int64_t i = 0; i < weight.inputs; i += order.inputs()) {
      float lanes[kArea][Vec::kLanes] = {};
      for (int l = 0; l < order.count(weight, o, i); ++l) {
        const float* v = weight.v + order.place(weight, o, i, l) * kArea;
        for (int tap = 0; tap < kArea; ++tap) {
          lanes[tap][l] = is_live<kTaps>(weight, tap) ? v[tap] * scales[l] : 0;
        }
      }
      Vec patch[kArea], result[kOut * kOut];
      for (int tap = 0; tap < kArea; ++tap) patch[tap] = Vec::load(lanes[tap]);
      transform<Transform>(patch, result);
      float* target = u + (inputs_first ? points.at(i, o) : points.at(o, i));
      for (int p = 0; p < kOut * kOut; ++p) result[p].store(target + p * points.stride_point);
    }
  }
}

// w = g v / |v|: dg = dw.v / |v|, dv = g / |v| (dw - v (dw.v) / |v|^2), on the live taps.
// `dw` of one output becomes dv.
template <int kTaps>
inline void normed_adjoint(const Weight& weight, int64_t output, float* dw, float* dg) {
  constexpr int kArea = kTaps * kTaps;
  const float* v = weight.v + output * weight.inputs * kArea;
  double product = 0;
  for (int64_t i = 0; i < weight.inputs; ++i) {
    float part = 0;
    for (int tap = 0; tap < kArea; ++tap) {
      const float value = is_live<kTaps>(weight, tap) ? v[i * kArea + tap] : 0;
      part += dw[i * kArea + tap] * value;
    }
    product += static_cast<double>(part);
  }
  const double norm = norm_of<kTaps>(weight, output);
  *dg = static_cast<float>(product / norm);
  const float scale = static_cast<float>(static_cast<double>(weight.g[output]) / norm);
  const float along = static_cast<float>(product / (norm * norm));
  for (int64_t i = 0; i < weight.inputs; ++i) {
    for (int tap = 0; tap < kArea; ++tap) {
      const float value = is_live<kTaps>(weight, tap) ? v[i * kArea + tap] : 0;
      dw[i * kArea + tap] = scale * (dw[i * kArea + tap] - along * value);
    }
  }
}

template <int kTaps>
void weight_adjoint(const Weight& weight, bool inputs_first, const float* du, const Points& points,
                    int64_t first, int64_t last, float* dv, float* dg) {
  using Transform = WeightAdjoint<kTaps>;
  constexpr int kArea = kTaps * kTaps;
  const Lanes order = {inputs_first};
  for (int64_t o = first; o < last; o += order.outputs()) {
    for (int64_t i = 0; i < weight.inputs; i += order.inputs()) {
      Vec patch[Transform::kIn * Transform::kIn], result[kArea];
      load_points<Transform>(du + (inputs_first ? points.at(i, o) : points.at(o, i)), points,
                             order.count(weight, o, i), patch);
      transform<Transform>(patch, result);
      float lanes[kArea][Vec::kLanes];
      for (int tap = 0; tap < kArea; ++tap) result[tap].store(lanes[tap]);
      for (int l = 0; l < order.count(weight, o, i); ++l) {
        float* target = dv + order.place(weight, o, i, l) * kArea;
        for (int tap = 0; tap < kArea; ++tap) {
          target[tap] = is_live<kTaps>(weight, tap) ? lanes[tap][l] : 0;
        }
      }
    }
  }
  if (!weight.g) return;
  for (int64_t o = first; o < last; ++o) {
    normed_adjoint<kTaps>(weight, o, dv + o * weight.inputs * kArea, dg + o);
  }
}

template <int kTaps>
void output_adjoint(const Map& map, const float* dy, int64_t first, int64_t last,
                    const Points& points, float* dm) {
  map_to_points<OutputAdjoint<kTaps>>(map, dy, 0, 0, first, last, points, dm);
}

template <int kTaps>
constexpr Transforms transforms() {
  return {.input = map_to_points<InputTransform<kTaps>>,
          .output = output<kTaps>,
          .output_adjoint = output_adjoint<kTaps>,
          .input_adjoint = input_adjoint<kTaps>,
          .weight = weight_points<kTaps>,
          .weight_adjoint = weight_adjoint<kTaps>};
}

}  // namespace
}  // namespace vqvae2_fast::cpu::winograd
