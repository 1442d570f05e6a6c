// Portable vectors: four lanes in plain C++, which any compiler turns into its baseline vectors.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
  float v[kLanes];

  static Vec load(const float* p) {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = p[l];
    return r;
  }
  static Vec broadcast(float x) {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = x;
    return r;
  }
  void store(float* p) const {
    for (int l = 0; l < kLanes; ++l) p[l] = v[l];
  }
  // this + a * b, here rounded twice.
  Vec add_product(Vec a, Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] + a.v[l] * b.v[l];
    return r;
  }
  Vec operator-(Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] - b.v[l];
    return r;
  }
};

struct IndexVec {
  int32_t v[Vec::kLanes];

  static IndexVec broadcast(int32_t x) {
    IndexVec r;
    for (int l = 0; l < Vec::kLanes; ++l) r.v[l] = x;
    return r;
  }
  void store(int32_t* p) const {
    for (int l = 0; l < Vec::kLanes; ++l) p[l] = v[l];
  }
};

// Per lane: keeps the least score, the index it came with, and the second least.
inline void keep_two_least(Vec score, IndexVec index, Vec& best, IndexVec& best_index,
                           Vec& second) {
  for (int l = 0; l < Vec::kLanes; ++l) {
    const bool less = score.v[l] < best.v[l];
    const float larger = less ? best.v[l] : score.v[l];
    second.v[l] = larger < second.v[l] ? larger : second.v[l];
    best_index.v[l] = less ? index.v[l] : best_index.v[l];
    best.v[l] = less ? score.v[l] : best.v[l];
  }
}

// Bit l is set where score[l] <= bound.
inline uint32_t lanes_at_most(Vec score, float bound) {
  uint32_t mask = 0;
  for (int l = 0; l < Vec::kLanes; ++l) mask |= static_cast<uint32_t>(score.v[l] <= bound) << l;
  return mask;
}

}  // namespace
}  // namespace vqvae2_fast::cpu
