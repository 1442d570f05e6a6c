// The nearest-code kernel of one SIMD level: include after a simd/ header, inside a level file.
//
// A tile of rows meets the packed panels of the codebook; the epilogue keeps, per lane, the least
// score, its index and the second least. No N x K memory. Rows whose runner-up lies inside the
// rounding band are searched again and settled by float64 distances.
#pragma once

#include <math.h>

#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kPanelWidth = 2 * Vec::kLanes;
constexpr double kFloatUnit = 0x1p-24;
// Beyond this many terms the band's constant (1.03) no longer covers the second-order terms.
constexpr int64_t kMaxScreenedDim = 65536;
// Norms below this keep every product and sum of the screen far from overflow.
constexpr double kMaxScreenedNorm = 1e18;

// |computed score - exact score| for a row of norm z and a code of norm e (README, "The band").
inline double score_band(double z_norm, double e_norm, int64_t dim) {
  const double underflow = static_cast<double>(dim) * 0x1p-125 * (1.0 + z_norm + e_norm);
  return 1.03 * kFloatUnit *
             (2.0 * e_norm * e_norm + static_cast<double>(dim + 3) * z_norm * e_norm) +
         underflow;
}

// The definition: float64, in the order of d.
inline double exact_sqdist(const float* z, const float* e, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double difference = static_cast<double>(z[d]) - static_cast<double>(e[d]);
    sum += difference * difference;
  }
  return sum;
}

// The same for COUNT rows at once: a sum is a chain of dependent additions, so one row alone would
// wait for each of them.
template <int COUNT>
inline void exact_sqdists(const float* const* z, const float* const* e, int64_t dim, double* sums) {
  double sum[COUNT] = {};
  for (int64_t d = 0; d < dim; ++d) {
    for (int i = 0; i < COUNT; ++i) {
      const double difference = static_cast<double>(z[i][d]) - static_cast<double>(e[i][d]);
      sum[i] += difference * difference;
    }
  }
  for (int i = 0; i < COUNT; ++i) sums[i] = sum[i];
}

// |v|^2 in float64 with eight interleaved sums; the band has room for any order.
inline double square_norm(const float* v, int64_t dim) {
  double sums[8] = {};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    for (int l = 0; l < 8; ++l) {
      sums[l] += static_cast<double>(v[d + l]) * static_cast<double>(v[d + l]);
    }
  }
  for (; d < dim; ++d) sums[0] += static_cast<double>(v[d]) * static_cast<double>(v[d]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Scores of ROWS centred rows (row r at z + r * dim) against one panel.
template <int ROWS>
inline void panel_scores(const float* z, int64_t dim, const float* panel, const float* half_norms,
                         Vec* low, Vec* high) {
  Vec dot_low[ROWS], dot_high[ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) dot_low[r] = dot_high[r] = Vec::broadcast(0.0f);
  for (int64_t d = 0; d < dim; ++d) {
    const Vec e_low = Vec::load(panel + d * kPanelWidth);
    const Vec e_high = Vec::load(panel + d * kPanelWidth + Vec::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Vec z_value = Vec::broadcast(z[r * dim + d]);
      dot_low[r] = dot_low[r].add_product(z_value, e_low);
      dot_high[r] = dot_high[r].add_product(z_value, e_high);
    }
  }
  const Vec norm_low = Vec::load(half_norms), norm_high = Vec::load(half_norms + Vec::kLanes);
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    low[r] = norm_low - dot_low[r];
    high[r] = norm_high - dot_high[r];
  }
}

struct ScreenedRow {
  float best, second;
  int32_t index;
};

template <int ROWS>
inline void screen_tile(const PackedCodebook& codebook, const float* z, ScreenedRow* rows) {
  Vec best[ROWS], second[ROWS];
  IndexVec index[ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    best[r] = second[r] = Vec::broadcast(INFINITY);
    index[r] = IndexVec::broadcast(0);
  }
  for (int64_t panel = 0; panel < codebook.num_panels; ++panel) {
    Vec low[ROWS], high[ROWS];
    panel_scores<ROWS>(z, codebook.dim, codebook.panels + panel * codebook.dim * kPanelWidth,
                       codebook.half_norms + panel * kPanelWidth, low, high);
    const int32_t first_code = static_cast<int32_t>(panel * kPanelWidth);
    const IndexVec index_low = IndexVec::broadcast(first_code);
    const IndexVec index_high = IndexVec::broadcast(first_code + Vec::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      keep_two_least(low[r], index_low, best[r], index[r], second[r]);
      keep_two_least(high[r], index_high, best[r], index[r], second[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float lane_best[Vec::kLanes], lane_second[Vec::kLanes];
    int32_t lane_index[Vec::kLanes];
    best[r].store(lane_best);
    second[r].store(lane_second);
    index[r].store(lane_index);
    ScreenedRow row = {INFINITY, INFINITY, 0};
    for (int l = 0; l < Vec::kLanes; ++l) {
      if (lane_best[l] < row.best) {
        row.second = row.best < lane_second[l] ? row.best : lane_second[l];
        row.best = lane_best[l];
        row.index = lane_index[l] + l;
      } else {
        row.second = lane_best[l] < row.second ? lane_best[l] : row.second;
      }
    }
    rows[r] = row;
  }
}

// The nearest of all codes by the definition. NaN never wins; ties keep the lowest index.
inline void search_exactly(const PackedCodebook& codebook, const float* z, int64_t* index,
                           float* sqdist) {
  double best = INFINITY;
  int64_t best_index = 0;
  for (int64_t k = 0; k < codebook.num_codes; ++k) {
    const double distance = exact_sqdist(z, codebook.codes + k * codebook.dim, codebook.dim);
    if (distance < best) {
      best = distance;
      best_index = k;
    }
  }
  *index = best_index;
  *sqdist =
      static_cast<float>(exact_sqdist(z, codebook.codes + best_index * codebook.dim, codebook.dim));
}

// The nearest of the codes whose score is at most `bound`.
inline void search_candidates(const PackedCodebook& codebook, const float* z, const float* centered,
                              float bound, int64_t* index, float* sqdist) {
  double best = INFINITY;
  int64_t best_index = 0;
  for (int64_t panel = 0; panel < codebook.num_panels; ++panel) {
    Vec scores[2];
    panel_scores<1>(centered, codebook.dim, codebook.panels + panel * codebook.dim * kPanelWidth,
                    codebook.half_norms + panel * kPanelWidth, &scores[0], &scores[1]);
    for (int half = 0; half < 2; ++half) {
      uint32_t candidates = lanes_at_most(scores[half], bound);
      for (; candidates; candidates &= candidates - 1) {
        const int64_t k = panel * kPanelWidth + half * Vec::kLanes + __builtin_ctz(candidates);
        const double distance = exact_sqdist(z, codebook.codes + k * codebook.dim, codebook.dim);
        if (distance < best) {
          best = distance;
          best_index = k;
        }
      }
    }
  }
  *index = best_index;
  *sqdist = static_cast<float>(best);
}

// Whether the screen's winner is certain. If not, searches among the candidates, or exactly.
inline bool settle_row(const PackedCodebook& codebook, const ScreenedRow& row, const float* z,
                       const float* centered, int64_t* index, float* sqdist) {
  const int64_t dim = codebook.dim;
  const double z_square = square_norm(centered, dim);
  const double z_norm = sqrt(z_square);
  const double best_band = score_band(z_norm, codebook.norms[row.index], dim);
  const double distance_square = z_square + 2.0 * (static_cast<double>(row.best) + best_band);
  // A winner is no farther than the best code found, so its norm is at most this radius: codes
  // flung far away do not widen the band.
  const double radius = (z_norm + sqrt(distance_square > 0 ? distance_square : 0)) * 1.0001;
  if (!(radius < kMaxScreenedNorm) || dim > kMaxScreenedDim) {
    search_exactly(codebook, z, index, sqdist);
    return false;
  }
  const double winner_norm = radius < codebook.max_norm ? radius : codebook.max_norm;
  const double bound = row.best + best_band + score_band(z_norm, winner_norm, dim);
  if (row.second > bound) return true;
  // Rounded up to the next float, so that no candidate is cut off by the conversion.
  const float float_bound = nextafterf(static_cast<float>(bound), INFINITY);
  search_candidates(codebook, z, centered, float_bound, index, sqdist);
  return false;
}

// Scratch: ROWS rows as given and ROWS centred rows.
inline int64_t scratch_floats(int64_t dim) { return 2 * Vec::kTileRows * dim; }

template <int ROWS>
inline void search_tile(const NearestCodeProblem& problem, int64_t first, float* scratch) {
  const PackedCodebook& codebook = *problem.codebook;
  const int64_t dim = codebook.dim;
  float* centered = scratch + ROWS * dim;
  const float* z[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    z[r] = row_as_float(problem.z, first + r, dim, scratch + r * dim);
    for (int64_t d = 0; d < dim; ++d) centered[r * dim + d] = z[r][d] - codebook.center[d];
  }
  ScreenedRow rows[ROWS];
  screen_tile<ROWS>(codebook, centered, rows);

  int certain[ROWS], num_certain = 0;
  for (int r = 0; r < ROWS; ++r) {
    if (settle_row(codebook, rows[r], z[r], centered + r * dim, problem.indices + first + r,
                   problem.sqdist + first + r)) {
      certain[num_certain++] = r;
    }
  }
  constexpr int kGroup = 4;
  for (int start = 0; start < num_certain; start += kGroup) {
    // The last group repeats its last row, which costs nothing that one row alone would not.
    const float *group_z[kGroup], *group_e[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const int r = certain[start + i < num_certain ? start + i : num_certain - 1];
      group_z[i] = z[r];
      group_e[i] = codebook.codes + rows[r].index * dim;
    }
    double sums[kGroup];
    exact_sqdists<kGroup>(group_z, group_e, dim, sums);
    for (int i = 0; i < kGroup && start + i < num_certain; ++i) {
      const int r = certain[start + i];
      problem.indices[first + r] = rows[r].index;
      problem.sqdist[first + r] = static_cast<float>(sums[i]);
    }
  }
}

inline void search_rows(const NearestCodeProblem& problem, int64_t begin, int64_t end,
                        float* scratch) {
  int64_t row = begin;
  for (; row + Vec::kTileRows <= end; row += Vec::kTileRows) {
    search_tile<Vec::kTileRows>(problem, row, scratch);
  }
  for (; row < end; ++row) search_tile<1>(problem, row, scratch);
}

}  // namespace
}  // namespace vqvae2_fast::cpu
