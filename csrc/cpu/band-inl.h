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

// |score of the screen - exact score| <= quadratic e^2 + linear e + constant for a code of norm e,
// of kLanes rows. `kRounded` allows for its evaluation in float32.
template <class Screen>
struct Band {
  Vec quadratic, linear, constant;

  // The band of rows with these norms that were staged with these errors.
  Band(const PackedCodebook& codebook, const Tags& tags, Vec norms, Vec errors) {
    constexpr double kRounded = 1.00001;
    const double scale = VQ_BAND_SCALE * kRounded, dim = static_cast<double>(codebook.dim);
    const double relative = Screen::roundings(codebook.dim) * kFloatUnit + tags.rounding;
    const double products = Screen::code_residual(codebook) + relative;
    // The rounding of the definition's own sums: a vector far from all codes may be equally near to
    // several of them.
    const double definition = (dim + 2) * 0x1p-52;
    const double underflow = dim * 0x1p-119;
    const auto all = [scale](double x) { return Vec::broadcast(static_cast<float>(scale * x)); };
    // Factors of 1.05 and more allow for the second-order terms.
    quadratic = all(1.06 * 0.5 * (relative + 2 * kFloatUnit) + definition);
    linear = all(1.06) * errors + all(1.06 * products) * norms;
    constant = all(underflow * (1 + codebook.max_norm)) + all(underflow) * norms +
               all(definition) * norms * norms;
  }

  Vec operator()(Vec code_norms) const {
    return (quadratic * code_norms + linear) * code_norms + constant;
  }
};

// The codes that are as near to rows of these norms as one of these scores, give or take `width`,
// have at most this norm.
inline Vec radius(Vec norms, Vec scores, Vec width) {
  // |scores| <= norms^2 / 2 + width where they are negative, because what cancels is a part of
  // that.
  const Vec squares =
      norms * norms * Vec::broadcast(1 + 0x1p-20f) + (scores + width) + (scores + width);
  return (norms + squares.at_least(Vec::broadcast(0.0f)).square_root()) * Vec::broadcast(1.0001f);
}

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
    const Vec norms = Vec::load(staged.norms + i), best = Vec::load(least + i);
    const Band<Screen> band(codebook, tags, norms, Vec::load(staged.errors + i));
    // The norms of the best code found and of the winner are at most `reach`. Neither is farther
    // from z than the best code's band allows, so codes that are far away do not widen it. Each
    // step starts from a better bound than the last.
    const Vec first = radius(norms, best, band(largest));
    Vec reach = first.at_most(largest);
    for (int step = 1; step < kSteps; ++step) {
      reach = radius(norms, best, band(reach)).at_most(reach);
    }
    const Vec width = band(reach), bound = best + width + width;
    // Rounded up, so that no candidate is cut off.
    const Vec size = bound.at_least(Vec::broadcast(0.0f) - bound);
    const Vec above = bound + size * Vec::broadcast(0x1p-21f) + Vec::broadcast(0x1p-126f);
    // At the limit and above, and for NaN, codes that are not screened may win.
    (limit - first).where_positive(above, Vec::broadcast(INFINITY)).store(bounds + i);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
