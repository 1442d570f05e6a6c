// Distances without a screen: the definition in float64, and a float32 form whose error is relative
// to the distance itself, so that it decides everything except near-ties. Include after a simd/
// header.
#pragma once

#include <math.h>
#include <string.h>

#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr double kFloatUnit = 0x1p-24;
// Up to this dimension the factors that allow for second-order terms hold (README, "The band").
constexpr int64_t kMaxScreenedDim = 65536;

// The definition: float64, in the order of d.
inline double exact_sqdist(const float* z, const float* e, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double difference = static_cast<double>(z[d]) - static_cast<double>(e[d]);
    sum += difference * difference;
  }
  return sum;
}

// The same for COUNT pairs at once. A sum is a chain of dependent additions, so the chains of
// several pairs run side by side; the squares are computed before, in vectors along d.
template <int COUNT>
inline void exact_sqdists(const float* const* z, const float* const* e, int64_t dim, double* sums) {
  constexpr int kChunk = 16;
  double squares[COUNT][kChunk];
  double sum[COUNT] = {};
  int64_t start = 0;
  for (; start + kChunk <= dim; start += kChunk) {
    for (int i = 0; i < COUNT; ++i) {
      const float *z_part = z[i] + start, *e_part = e[i] + start;
      for (int d = 0; d < kChunk; ++d) {
        const double difference = static_cast<double>(z_part[d]) - static_cast<double>(e_part[d]);
        squares[i][d] = difference * difference;
      }
    }
    for (int d = 0; d < kChunk; ++d) {
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; ++i) sum[i] += squares[i][d];
    }
  }
  for (; start < dim; ++start) {
    for (int i = 0; i < COUNT; ++i) {
      const double difference = static_cast<double>(z[i][start]) - static_cast<double>(e[i][start]);
      sum[i] += difference * difference;
    }
  }
  for (int i = 0; i < COUNT; ++i) sums[i] = sum[i];
}

// sum (z - e)^2 in float32, in another order.
inline float quick_sqdist(const float* z, const float* e, int64_t dim) {
  Vec sums[2] = {Vec::broadcast(0.0f), Vec::broadcast(0.0f)};
  int64_t d = 0;
  for (; d + 2 * Vec::kLanes <= dim; d += 2 * Vec::kLanes) {
    const Vec first = Vec::load(z + d) - Vec::load(e + d);
    const Vec other = Vec::load(z + d + Vec::kLanes) - Vec::load(e + d + Vec::kLanes);
    sums[0] = sums[0].add_product(first, first);
    sums[1] = sums[1].add_product(other, other);
  }
  if (d + Vec::kLanes <= dim) {
    const Vec last = Vec::load(z + d) - Vec::load(e + d);
    sums[0] = sums[0].add_product(last, last);
    d += Vec::kLanes;
  }
  if (d < dim) {
    const Vec rest = Vec::load_first(z + d, dim - d) - Vec::load_first(e + d, dim - d);
    sums[1] = sums[1].add_product(rest, rest);
  }
  return lane_sum(sums[0] + sums[1]);
}

// The same for four codes, whose lanes are summed together.
inline void quick_sqdists(const float* z, const float* const* e, int64_t dim, float* distances) {
  Vec sums[4];
  for (Vec& sum : sums) sum = Vec::broadcast(0.0f);
  int64_t d = 0;
  for (; d + Vec::kLanes <= dim; d += Vec::kLanes) {
    const Vec part = Vec::load(z + d);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec difference = part - Vec::load(e[i] + d);
      sums[i] = sums[i].add_product(difference, difference);
    }
  }
  if (d < dim) {
    const Vec part = Vec::load_first(z + d, dim - d);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec difference = part - Vec::load_first(e[i] + d, dim - d);
      sums[i] = sums[i].add_product(difference, difference);
    }
  }
  lane_sums(sums, distances);
}

// The nearest of the codes that are added, in any order. Quick distances exclude all codes except
// those that rounding cannot separate, which are settled by the definition.
class Shortlist {
 public:
  static constexpr int kCapacity = 128;

  Shortlist(const PackedCodebook& codebook, const float* z)
      : codebook_(codebook),
        z_(z),
        // |quick - exact| <= (D + 4) u exact, plus D 2^-125 where squares underflow; both distances
        // of a comparison have this error.
        factor_(static_cast<float>(1 + 2.1 * static_cast<double>(codebook.dim + 8) * kFloatUnit)),
        slack_(static_cast<float>(codebook.dim) * 0x1p-120f) {
    if (codebook.dim > kMaxScreenedDim) slack_ = INFINITY;
  }

  void add(int64_t code) {
    add(code, quick_sqdist(z_, codebook_.codes + code * codebook_.dim, codebook_.dim));
  }

  // Adds every step-th code from `first` on.
  void add_every(int64_t first, int64_t step) {
    const int64_t last = codebook_.num_codes - 1;
    for (int64_t code = first; code <= last; code += 4 * step) {
      const float* e[4];
      float distances[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t other = code + i * step;
        e[i] = codebook_.codes + (other <= last ? other : code) * codebook_.dim;
      }
      quick_sqdists(z_, e, codebook_.dim, distances);
      for (int i = 0; i < 4; ++i) {
        if (code + i * step <= last) add(code + i * step, distances[i]);
      }
    }
  }

  // Adds up to kCapacity codes to an empty list. No branch depends on a distance before all of them
  // are known, so that their sums overlap.
  void add_all(const int32_t* codes, int count) {
    float distances[kCapacity];
    for (int i = 0; i < count; ++i) {
      distances[i] = quick_sqdist(z_, codebook_.codes + codes[i] * codebook_.dim, codebook_.dim);
      least_ = distances[i] < least_ ? distances[i] : least_;
    }
    const float bound = least_ * factor_ + slack_;
    for (int i = 0; i < count; ++i) {
      codes_[count_] = codes[i];
      distances_[count_] = distances[i];
      count_ += distances[i] <= bound;  // false for NaN, which never wins
    }
  }

  // 0 if no code has a finite distance.
  int64_t nearest() {
    if (count_ > 0) {
      drop_beaten();
      if (count_ == 1 && !settled_ && least_ < INFINITY) return codes_[0];
      settle();
    }
    return best_code_;
  }

 private:
  void add(int64_t code, float distance) {
    // False for NaN, which never wins.
    if (!(distance <= least_ * factor_ + slack_)) return;
    least_ = distance < least_ ? distance : least_;
    if (count_ == kCapacity) settle();
    codes_[count_] = code;
    distances_[count_++] = distance;
  }

  void drop_beaten() {
    const float bound = least_ * factor_ + slack_;
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      codes_[kept] = codes_[i];
      distances_[kept] = distances_[i];
      kept += distances_[i] <= bound;
    }
    count_ = kept;
  }

  // Float64 distances of what is on the list; ties keep the lowest index.
  void settle() {
    drop_beaten();
    const float* previous = nullptr;
    double distance = 0;
    for (int i = 0; i < count_; ++i) {
      const float* const code = codebook_.codes + codes_[i] * codebook_.dim;
      // Codes that have collapsed to one value need no sum each.
      const bool is_same =
          previous &&
          memcmp(code, previous, static_cast<size_t>(codebook_.dim) * sizeof(float)) == 0;
      if (!is_same) distance = exact_sqdist(z_, code, codebook_.dim);
      previous = code;
      if (distance < best_ ||
          (distance == best_ && codes_[i] < best_code_ && distance < INFINITY)) {
        best_ = distance;
        best_code_ = codes_[i];
      }
    }
    count_ = 0;
    settled_ = true;
  }

  const PackedCodebook& codebook_;
  const float* z_;
  float factor_, slack_, least_ = INFINITY;
  bool settled_ = false;
  int count_ = 0;
  // One entry more, which is written before it is known whether the code stays.
  int64_t codes_[kCapacity + 1];
  float distances_[kCapacity + 1];
  double best_ = INFINITY;
  int64_t best_code_ = 0;
};

inline int64_t search_directly(const PackedCodebook& codebook, const float* z) {
  Shortlist shortlist(codebook, z);
  for (int64_t k = 0; k < codebook.num_codes; ++k) shortlist.add(k);
  return shortlist.nearest();
}

}  // namespace
}  // namespace vqvae2_fast::cpu
