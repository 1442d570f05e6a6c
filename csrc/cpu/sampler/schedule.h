// Which positions of the map are drawn at the same time: a few of the columns of one row, or one in
// each of several rows.
//
// Without attention, a position depends only on what its convolutions reach. So a row need not wait
// for the end of the row above: at time t, each row i whose column t - lag * i is in the map draws
// that column. Whenever the time is a multiple of `segment`, the taps in the rows above are added
// for the next `segment` columns of each row. They reach some columns to the right, so the row
// above has to be ahead by these and by the segment. One row at a time is the case lag = segment =
// width.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "plan.h"

namespace vqvae2_fast::cpu::sampler {

struct Schedule {
  int64_t height, width;
  int64_t segment;  // columns
  int64_t lag;      // times that a row is behind the one above

  static Schedule of_one_row(const Plan& plan);
  // Of as many rows at once as are fast with so many network rows.
  static Schedule of(const Plan& plan, int64_t rows);

  // Rows [first_row, end_row) draw a column at this time.
  int64_t first_row(int64_t time) const { return time < width ? 0 : (time - width) / lag + 1; }
  int64_t end_row(int64_t time) const { return std::min(height, time / lag + 1); }
  int64_t column(int64_t row, int64_t time) const { return time - lag * row; }

  // Row i is the next to be complete at the times [begin, end).
  int64_t begin(int64_t row) const { return row == 0 ? 0 : end(row - 1); }
  int64_t end(int64_t row) const { return width + lag * row; }

  int64_t segment_begin(int64_t time) const { return time / segment * segment; }
  // Rows [first_row, end_row_of_segment) draw in the segment that begins at this time.
  int64_t end_row_of_segment(int64_t begin) const { return end_row(begin + segment - 1); }
  // The most rows that draw at a time, or in a segment.
  int64_t rows_at_once() const { return std::min(height, (width - 1) / lag + 1); }
  int64_t rows_of_segment() const {
    if (lag % segment == 0) return rows_at_once();  // rows begin with segments
    return std::min(height, (width + segment - 2) / lag + 1);
  }
};

}  // namespace vqvae2_fast::cpu::sampler
