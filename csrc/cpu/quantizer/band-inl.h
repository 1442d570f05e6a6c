// The rounding band of the screen: which scores may belong to the nearest code. Proof:
// vqvae2_fast/ops/nearest_code/README.md. Include after a simd/ header.
#pragma once

#include "screen-inl.h"

// csrc/tests/band_test.cpp narrows the band, to see that it is needed.
#if !defined(VQ_BAND_SCALE)
#define VQ_BAND_SCALE 1.0
#endif

namespace vqvae2_fast::cpu {
namespace {

// The band of kLanes rows with these norms that were staged with these errors.
template <class Screen>
class Band {
 public:
  Band(const PackedCodebook& codebook, const Tags& tags, Vec norms, Vec errors)
      : halves_of_stored_(Screen::halves_of_stored(codebook)),
        norms_(norms),
        errors_(errors),
        residual_(Vec::broadcast(static_cast<float>(Screen::code_residual(codebook)))) {
    const double dim = static_cast<double>(codebook.dim);
    const double relative = Screen::roundings(codebook.dim) * kFloatUnit + tags.rounding;
    // The rounding of the definition's own sums: a vector far from all codes may be equally near to
    // several of them.
    const double definition = (dim + 2) * 0x1p-52;
    const double underflow = dim * 0x1p-119;
    // Factors of 1.05 and more allow for the second-order terms.
    quadratic_ = all(1.06 * 0.5 * (relative + 2 * kFloatUnit) + definition);
    linear_ = all(1.06 * relative) * norms;
    constant_ = all(underflow * (1 + codebook.max_norm)) + all(underflow) * norms +
                all(definition) * norms * norms;
  }

  // What the least score of each row says of its code and of the winner: at most this norm, and
  // this distance from the row.
  struct Reach {
    Vec norm, distance;
  };

  // `norm` is an earlier bound.
  Reach reach(Vec scores, Vec norm) const {
    const Vec moved = residual_ * norm;
    Vec above = scores + rounding(norm), length = norms_, offset = Vec::broadcast(0.0f);
    if (halves_of_stored_) {
      // The distance of what was multiplied, and how far that is from the row and its code.
      length = norms_ + errors_;
      offset = errors_ + moved;
    } else {
      above = above + all(1.06) * (errors_ * norm + norms_ * moved);
    }
    // |scores| <= length^2 / 2 + errors where they are negative, because what cancels is a part of
    // that.
    const Vec squares = length * length * Vec::broadcast(1 + 0x1p-20f) + above + above;
    const Vec factor = Vec::broadcast(1.0001f);
    const Vec distance = (squares.at_least(Vec::broadcast(0.0f)).square_root() + offset) * factor;
    return {(norms_ + distance) * factor, distance};
  }

  // Half of how far the winner's score may lie above the least.
  Vec width(const Reach& reach) const {
    const Vec moved = residual_ * reach.norm;
    const Vec farther = halves_of_stored_ ? reach.distance + moved : norms_;
    const Vec nearer = reach.distance.at_most(reach.norm) + moved;
    return rounding(reach.norm) + all(1) * (moved * farther + errors_ * nearer);
  }

 private:
  // With an allowance for the evaluation in float32.
  static Vec all(double x) {
    return Vec::broadcast(static_cast<float>(VQ_BAND_SCALE * 1.00001 * x));
  }

  // How far the score of a code of this norm is from the exact score of what was multiplied.
  Vec rounding(Vec code_norms) const {
    return (quadratic_ * code_norms + linear_) * code_norms + constant_;
  }

  bool halves_of_stored_;
  Vec norms_, errors_, residual_, quadratic_, linear_, constant_;
};

// bounds[i]: scores of row i up to this may belong to its nearest code, none above; infinity if
// nothing is certain. least[i] is the least score. Arrays hold whole vectors.
template <class Screen>
inline void candidate_bounds(const PackedCodebook& codebook, const Tags& tags, StagedRows staged,
                             const float* least, int64_t count, float* bounds) {
  // From a norm that is 10^5 times that of the others, three steps lead to theirs.
  constexpr int kSteps = 3;
  const Vec largest = Vec::broadcast(static_cast<float>(codebook.max_norm * 1.000001));
  const Vec limit = Vec::broadcast(static_cast<float>(kMaxScreenedNorm));
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    const Vec best = Vec::load(least + i);
    const Band<Screen> band(codebook, tags, Vec::load(staged.norms + i),
                            Vec::load(staged.errors + i));
    // Neither the best code found nor the winner is farther from z than the best code's band
    // allows, so codes that are far away do not widen it. Each step starts from a better bound than
    // the last.
    auto reach = band.reach(best, largest);
    const Vec first = reach.norm;
    reach.norm = first.at_most(largest);
    for (int step = 1; step < kSteps; ++step) {
      const Vec before = reach.norm;
      reach = band.reach(best, before);
      reach.norm = reach.norm.at_most(before);
    }
    const Vec width = band.width(reach), bound = best + width + width;
    // Rounded up, so that no candidate is cut off.
    const Vec size = bound.at_least(Vec::broadcast(0.0f) - bound);
    const Vec above = bound + size * Vec::broadcast(0x1p-21f) + Vec::broadcast(0x1p-126f);
    // At the limit and above, and for NaN, codes that are not screened may win.
    (limit - first).where_positive(above, Vec::broadcast(INFINITY)).store(bounds + i);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
