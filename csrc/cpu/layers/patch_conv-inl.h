// The kernels of patch_conv.h: include inside a level file after its simd header.
#pragma once

#include "patch_conv.h"
#include "product-inl.h"

namespace vqvae2_fast::cpu::patch_conv {
namespace {

using products::kPanel;
using products::panels_of;

constexpr int kLanes = Vec::kLanes;
// Positions of a block, if a row has fewer: 96 and 256 took the same time within the noise.
constexpr int64_t kBlock = 96;

inline int64_t block_rows(const Shape& shape) {
  const int64_t rows = shape.width < kBlock ? kBlock / shape.width : 1;
  return rows < shape.height ? rows : shape.height;
}

// A few rows of the large map with zeros around them: what some small rows see.
struct Padded {
  int64_t rows, columns;

  Padded(const Shape& shape, int64_t small_rows)
      : rows(shape.stride * (small_rows - 1) + shape.kernel),
        columns(shape.stride * (shape.width - 1) + shape.kernel) {}
  int64_t line(const Shape& shape) const { return columns * shape.channels; }
};

inline int64_t packed_floats(const Shape& shape, bool to_large) {
  if (to_large) return panels_of(shape.patch()) * kPanel * shape.outputs;
  return panels_of(shape.outputs) * kPanel * shape.patch();
}

inline int64_t workspace(const Shape& shape) {
  const int64_t rows = block_rows(shape), outputs = panels_of(shape.outputs) * kPanel;
  const Padded padded(shape, rows);
  const int64_t for_small = padded.rows * padded.line(shape) + (rows * shape.width + 1) * outputs;
  const int64_t for_large = rows * shape.width * shape.patch();
  return for_small > for_large ? for_small : for_large;
}

inline int64_t part_floats(const Shape& shape) {
  return shape.patch() * panels_of(shape.outputs) * kPanel;
}

inline void clear(int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

// Calls call(tap, channel, place) for places first..last of a patch.
template <class Call>
inline void for_places(const Shape& shape, int64_t first, int64_t last, const Call& call) {
  int64_t tap = first / shape.channels, c = first % shape.channels;
  for (int64_t place = first; place < last; ++place) {
    call(tap, c, place);
    if (++c == shape.channels) ++tap, c = 0;
  }
}

inline int64_t num_panels(const Shape& shape, bool to_large) {
  return panels_of(to_large ? shape.patch() : shape.outputs);
}

inline void pack(const Shape& shape, bool to_large, const float* weight, int64_t first,
                 int64_t last, float* packed) {
  const int64_t outputs = shape.outputs, taps = shape.kernel * shape.kernel;
  const int64_t output_stride = shape.channels * taps, patch = shape.patch();
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t begin = panel * kPanel, end = begin + kPanel;
    if (to_large) {
      float* const to = packed + panel * outputs * kPanel;
      if (end > patch) clear(outputs * kPanel, to);
      for_places(shape, begin, end < patch ? end : patch, [&](int64_t tap, int64_t c, int64_t at) {
        const float* const from = weight + c * taps + tap;
        for (int64_t o = 0; o < outputs; ++o) to[o * kPanel + at - begin] = from[o * output_stride];
      });
      continue;
    }
    float* const to = packed + panel * patch * kPanel - begin;
    for_places(shape, 0, patch, [&](int64_t tap, int64_t c, int64_t place) {
      const float* const from = weight + c * taps + tap;
      for (int64_t o = begin; o < end; ++o) {
        to[place * kPanel + o] = o < outputs ? from[o * output_stride] : 0.0f;
      }
    });
  }
}

// The last vector overlaps the one before it: a store of some lanes is slow without AVX-512.
inline void copy(const float* from, int64_t count, float* to) {
  if (count < kLanes) {
    if (count > 0) Vec::load_first(from, count).store_first(to, count);
    return;
  }
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) Vec::load(from + i).store(to + i);
  Vec::load(from + count - kLanes).store(to + count - kLanes);
}

inline void add(const float* from, int64_t count, float* to) {
  if (count < kLanes) {
    if (count <= 0) return;
    (Vec::load_first(to, count) + Vec::load_first(from, count)).store_first(to, count);
    return;
  }
  const int64_t rest = count - kLanes;
  const Vec last = Vec::load(to + rest) + Vec::load(from + rest);
  for (int64_t i = 0; i < rest; i += kLanes) {
    (Vec::load(to + i) + Vec::load(from + i)).store(to + i);
  }
  last.store(to + rest);
}

inline int64_t taps_of(const Shape& shape, int64_t row) {
  return row + 1 < shape.kernel ? shape.kernel : shape.live;
}

// Which taps of a row of the kernel, that begins at `column`, lie inside the map.
struct Strip {
  int64_t taps, begin, end;

  Strip(const Shape& shape, int64_t row, int64_t column)
      : taps(taps_of(shape, row)),
        begin(column < 0 ? -column : 0),
        end(shape.large_width() - column < taps ? shape.large_width() - column : taps) {
    if (begin > taps) begin = taps;
    if (end < begin) end = begin;
  }
};

// Copies the large rows that small rows first..last see.
inline Padded fill_padded(const Shape& shape, const float* large, int64_t first, int64_t last,
                          float* memory) {
  const Padded padded(shape, last - first);
  const int64_t channels = shape.channels, width = shape.large_width();
  const int64_t before = shape.left < padded.columns ? shape.left : padded.columns;
  const int64_t reached = padded.columns - before;
  const int64_t inside = width < reached ? width : reached;
  for (int64_t r = 0; r < padded.rows; ++r, memory += padded.line(shape)) {
    const int64_t row = shape.stride * first - shape.top + r;
    if (row < 0 || row >= shape.large_height()) {
      clear(padded.line(shape), memory);
      continue;
    }
    clear(before * channels, memory);
    copy(large + row * width * channels, inside * channels, memory + before * channels);
    clear((reached - inside) * channels, memory + (before + inside) * channels);
  }
  return padded;
}

inline void to_small(const Shape& shape, const float* packed, const float* bias, const float* large,
                     int64_t first, int64_t last, float* memory, float* small) {
  const int64_t outputs = shape.outputs, channels = shape.channels;
  float* const initial = memory;
  float* const rows = memory + panels_of(outputs) * kPanel;
  for (int64_t o = 0; o < panels_of(outputs) * kPanel; ++o) {
    initial[o] = bias && o < outputs ? bias[o] : 0.0f;
  }
  const Padded padded = fill_padded(shape, large, first, last, rows);
  // The kernel's last row may have fewer taps.
  const bool is_whole = shape.live == shape.kernel;
  const int64_t whole_rows = is_whole ? shape.kernel : shape.kernel - 1;
  for (int64_t i = first; i < last; ++i) {
    Product product = {.rows = shape.width,
                       .columns = outputs,
                       .depth = shape.kernel * channels,
                       .a = rows + shape.stride * (i - first) * padded.line(shape),
                       .a_stride = shape.stride * channels,
                       .segments = whole_rows,
                       .segment_stride = padded.line(shape),
                       .panels = packed,
                       .panel_stride = shape.patch() * kPanel,
                       .initial = initial,
                       .c = small + i * shape.width * outputs,
                       .c_stride = outputs};
    products::multiply<false>(product);
    if (is_whole) continue;
    product.panels += whole_rows * product.depth * kPanel;
    product.a += whole_rows * padded.line(shape);
    product.depth = shape.live * channels;
    product.segments = 1;
    product.initial = product.c;
    product.initial_stride = product.c_stride;
    products::multiply<false>(product);
  }
}

// Adds one small row's patches to rows first..last of the large map. Patches of neighbours overlap,
// so those that do not are added first, then the next ones: a sum is not read again just after it
// was written.
inline void scatter(const Shape& shape, int64_t i, const float* patches, int64_t first,
                    int64_t last, float* large) {
  const int64_t channels = shape.channels, line = shape.large_width() * channels;
  const int64_t apart = (shape.kernel + shape.stride - 1) / shape.stride;
  for (int64_t r = 0; r < shape.kernel; ++r) {
    const int64_t row = shape.stride * i - shape.top + r;
    if (row < first || row >= last) continue;
    for (int64_t group = 0; group < apart; ++group) {
      for (int64_t j = group; j < shape.width; j += apart) {
        const int64_t column = shape.stride * j - shape.left;
        const Strip strip(shape, r, column);
        add(patches + j * shape.patch() + (r * shape.kernel + strip.begin) * channels,
            (strip.end - strip.begin) * channels,
            large + row * line + (column + strip.begin) * channels);
      }
    }
  }
}

inline void to_large(const Shape& shape, const float* packed, const float* bias, const float* small,
                     int64_t first, int64_t last, float* memory, float* large) {
  const int64_t channels = shape.channels, outputs = shape.outputs, patch = shape.patch();
  float* const rows_begin = large + first * shape.large_width() * channels;
  for (int64_t place = 0; place < (last - first) * shape.large_width(); ++place) {
    for (int64_t c = 0; c < channels; ++c) {
      rows_begin[place * channels + c] = bias ? bias[c] : 0.0f;
    }
  }
  // The small rows whose patches reach into first..last.
  const int64_t lowest = first + shape.top - shape.kernel + 1;
  int64_t begin = lowest <= 0 ? 0 : (lowest + shape.stride - 1) / shape.stride;
  const int64_t highest = last - 1 + shape.top;
  const int64_t end = highest < 0 ? 0 : highest / shape.stride + 1;
  const int64_t stop = end < shape.height ? end : shape.height, step = block_rows(shape);
  for (; begin < stop; begin += step) {
    const int64_t count = stop - begin < step ? stop - begin : step;
    products::multiply<false>({.rows = count * shape.width,
                               .columns = patch,
                               .depth = outputs,
                               .a = small + begin * shape.width * outputs,
                               .a_stride = outputs,
                               .panels = packed,
                               .panel_stride = outputs * kPanel,
                               .c = memory,
                               .c_stride = patch});
    for (int64_t i = 0; i < count; ++i) {
      scatter(shape, begin + i, memory + i * shape.width * patch, first, last, large);
    }
  }
}

inline void weight_part(const Shape& shape, const float* large, const float* small, int64_t first,
                        int64_t last, float* memory, float* part) {
  const int64_t outputs = shape.outputs, channels = shape.channels;
  const int64_t positions = (last - first) * shape.width, width = panels_of(outputs) * kPanel;
  float* const panels = memory;
  float* const rows = memory + positions * width;
  products::pack_panels(small + first * shape.width * outputs, positions, outputs, panels);
  const Padded padded = fill_padded(shape, large, first, last, rows);
  for (int64_t r = 0; r < shape.kernel; ++r) {
    float* const sums = part + r * shape.kernel * channels * width;
    products::multiply<true>({.rows = taps_of(shape, r) * channels,
                              .columns = (outputs + kLanes - 1) / kLanes * kLanes,
                              .depth = shape.width,
                              .a = rows + r * padded.line(shape),
                              .a_stride = shape.stride * channels,
                              .segments = last - first,
                              .segment_stride = shape.stride * padded.line(shape),
                              .panels = panels,
                              .panel_stride = positions * kPanel,
                              .initial = sums,
                              .initial_stride = width,
                              .c = sums,
                              .c_stride = width});
  }
}

inline void sum_parts(const Shape& shape, const float* parts, int64_t num_parts, int64_t first,
                      int64_t last, float* dweight) {
  const int64_t width = panels_of(shape.outputs) * kPanel, size = part_floats(shape);
  const int64_t taps = shape.kernel * shape.kernel;
  clear((last - first) * shape.channels * taps, dweight + first * shape.channels * taps);
  for_places(shape, 0, shape.patch(), [&](int64_t tap, int64_t c, int64_t place) {
    const float* const row = parts + place * width;
    float* const to = dweight + c * taps + tap;
    for (int64_t o = first; o < last; ++o) {
      float sum = row[o];
      for (int64_t p = 1; p < num_parts; ++p) sum += row[p * size + o];
      to[o * shape.channels * taps] = sum;
    }
  });
}

constexpr Kernels kKernels = {.packed_floats = packed_floats,
                              .workspace = workspace,
                              .part_floats = part_floats,
                              .block_rows = block_rows,
                              .num_panels = num_panels,
                              .pack = pack,
                              .to_small = to_small,
                              .to_large = to_large,
                              .weight_part = weight_part,
                              .sum_parts = sum_parts};

}  // namespace
}  // namespace vqvae2_fast::cpu::patch_conv
