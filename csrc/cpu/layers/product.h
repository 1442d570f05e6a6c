// Products of float32 matrices whose right side is packed in panels, for one thread.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

// c [rows, columns] = initial + a b.
struct Product {
  int64_t rows, columns, depth;
  const float* a;
  int64_t a_stride;  // between the rows of a in memory
  // The depth goes on in the next segment, which begins `segment_stride` after the last one's
  // start.
  int64_t segments = 1, segment_stride = 0;
  // [columns / panel, segments * depth, panel], `panel_stride` between panels. Whole vectors of the
  // last panel are read; what lies past the columns is not used.
  const float* panels;
  int64_t panel_stride;
  const float* initial = nullptr;  // [rows, columns]; null: zero; may be c
  int64_t initial_stride = 0;
  float* c;
  int64_t c_stride;
};

struct Products {
  int64_t panel;                           // columns of a panel
  void (*along)(const Product& product);   // a is [rows, depth]
  void (*across)(const Product& product);  // a is [depth, rows]
};

}  // namespace vqvae2_fast::cpu
