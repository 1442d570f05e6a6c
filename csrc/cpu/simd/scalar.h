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
  // The first `count` lanes, at most all; the others are 0.
  static Vec load_first(const float* p, int64_t count) {
    if (count == kLanes) return load(p);
    float lanes[kLanes] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = p[l];
    return load(lanes);
  }
  static Vec broadcast(float x) {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = x;
    return r;
  }
  void store(float* p) const {
    for (int l = 0; l < kLanes; ++l) p[l] = v[l];
  }
  // Other levels store past the caches here.
  void stream(float* p) const { store(p); }
  static void finish_streaming() {}
  void store_first(float* p, int64_t count) const {
    if (count == kLanes) return store(p);
    float lanes[kLanes];
    store(lanes);
    for (int64_t l = 0; l < count; ++l) p[l] = lanes[l];
  }
  // The low byte of each lane's bits.
  void store_low_bytes(uint8_t* p) const {
    for (int l = 0; l < kLanes; ++l) {
      uint32_t bits;
      __builtin_memcpy(&bits, &v[l], sizeof(bits));
      p[l] = static_cast<uint8_t>(bits);
    }
  }
  // this + a * b, here rounded twice.
  Vec add_product(Vec a, Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] + a.v[l] * b.v[l];
    return r;
  }
  // this + a * b, rounded once, as the levels with fused multiply-adds have it. Without the
  // instruction this is a library call, which is correct but slow.
  Vec add_product_fused(Vec a, Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = __builtin_fmaf(a.v[l], b.v[l], v[l]);
    return r;
  }
  Vec operator-(Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] - b.v[l];
    return r;
  }
  Vec operator+(Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] + b.v[l];
    return r;
  }
  Vec operator*(Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] * b.v[l];
    return r;
  }
  Vec operator/(Vec b) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] / b.v[l];
    return r;
  }
  Vec square_root() const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = __builtin_sqrtf(v[l]);
    return r;
  }
  // this where less than bound, else bound; NaN stays.
  Vec at_most(Vec bound) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = bound.v[l] < v[l] ? bound.v[l] : v[l];
    return r;
  }
  Vec at_least(Vec bound) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = bound.v[l] > v[l] ? bound.v[l] : v[l];
    return r;
  }
  // positive where this > 0, else otherwise.
  Vec where_positive(Vec positive, Vec otherwise) const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) r.v[l] = v[l] > 0.0f ? positive.v[l] : otherwise.v[l];
    return r;
  }
  // 2^n of 1.5 * 2^23 + n, whose low bits hold n; n in -126..127.
  Vec power_of_two() const {
    Vec r;
    for (int l = 0; l < kLanes; ++l) {
      uint32_t bits;
      __builtin_memcpy(&bits, &v[l], sizeof(bits));
      bits = (bits << 23) + 0x3F800000u;
      __builtin_memcpy(&r.v[l], &bits, sizeof(bits));
    }
    return r;
  }
};

// Sums of products of int8, four inputs at a time: weights as they are, inputs with 128 added.
struct QuadSum {
  static constexpr int kTileRows = 4;
  // Whether the sums are of the inputs with 128 added, which the caller makes up for.
  static constexpr bool kBiased = false;
  struct Weights {
    int8_t v[4 * Vec::kLanes];
  };
  struct Inputs {
    int32_t v[4];
  };
  int32_t v[Vec::kLanes];

  static QuadSum zero() { return {}; }
  static QuadSum load(const int32_t* p) {
    QuadSum r;
    for (int l = 0; l < Vec::kLanes; ++l) r.v[l] = p[l];
    return r;
  }
  void store(int32_t* p) const {
    for (int l = 0; l < Vec::kLanes; ++l) p[l] = v[l];
  }
  static Weights load_weights(const int8_t* bytes) {
    Weights r;
    __builtin_memcpy(r.v, bytes, sizeof(r.v));
    return r;
  }
  static Inputs broadcast(const uint8_t* inputs) {
    Inputs r;
    for (int k = 0; k < 4; ++k) r.v[k] = inputs[k] - 128;
    return r;
  }
  // this[l] + sum over k of inputs[k] * weights[4 l + k].
  QuadSum add_products(Inputs inputs, Weights weights) const {
    QuadSum r = *this;
    for (int l = 0; l < Vec::kLanes; ++l) {
      for (int k = 0; k < 4; ++k) r.v[l] += inputs.v[k] * weights.v[4 * l + k];
    }
    return r;
  }
  QuadSum operator+(QuadSum b) const {
    QuadSum r;
    for (int l = 0; l < Vec::kLanes; ++l) r.v[l] = v[l] + b.v[l];
    return r;
  }
  Vec to_float() const {
    Vec r;
    for (int l = 0; l < Vec::kLanes; ++l) r.v[l] = static_cast<float>(v[l]);
    return r;
  }
};

// Per lane: keeps the least score and the second least. The low bits of a score are replaced by a
// tag, which says where it came from; a NaN score is dropped.
inline void keep_two_least(Vec score, uint32_t clear, uint32_t tag, Vec& best, Vec& second) {
  for (int l = 0; l < Vec::kLanes; ++l) {
    uint32_t bits;
    __builtin_memcpy(&bits, &score.v[l], sizeof(bits));
    bits = (bits & clear) | tag;
    float tagged;
    __builtin_memcpy(&tagged, &bits, sizeof(tagged));
    const bool less = tagged < best.v[l];
    const float larger = less ? best.v[l] : tagged;
    second.v[l] = larger < second.v[l] ? larger : second.v[l];
    best.v[l] = less ? tagged : best.v[l];
  }
}

inline float lane_sum(Vec a) {
  float sum = 0;
  for (int l = 0; l < Vec::kLanes; ++l) sum += a.v[l];
  return sum;
}

// sums[i] = lane_sum(a[i]) of four.
inline void lane_sums(const Vec* a, float* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = lane_sum(a[i]);
}

inline float least_lane(Vec a) {
  float least = a.v[0];
  for (int l = 1; l < Vec::kLanes; ++l) least = a.v[l] < least ? a.v[l] : least;
  return least;
}

// Bit l is set where score[l] <= bound.
inline uint32_t lanes_at_most(Vec score, float bound) {
  uint32_t mask = 0;
  for (int l = 0; l < Vec::kLanes; ++l) mask |= static_cast<uint32_t>(score.v[l] <= bound) << l;
  return mask;
}

}  // namespace
}  // namespace vqvae2_fast::cpu
