#include "schedule.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// A segment is a quarter of the row, within these limits, so that about three rows are drawn at
// once, and more in wide maps. In shorter segments the products of the taps above are slow, because
// they have few columns; longer ones leave fewer rows at once.
constexpr int64_t kSegmentsOfRow = 4, kShortest = 4, kLongest = 16;
// With more network rows than this, a step gains nothing from several positions, unless the current
// taps are larger than a last-level cache. Measured on Zen 4:
// vqvae2_fast/sampling/engines/README.md.
constexpr int64_t kMostRows = 2, kMostRowsFromMemory = 4, kCachedBytes = int64_t{32} << 20;

int64_t bytes_of_current_taps(const Plan& plan) {
  int64_t words = 0;
  for (const Convolutions* c : {&plan.conv1, &plan.conv2}) {
    words +=
        plan.num_layers * plan.taps.num_current * c->panels * panel_words(c->format, c->channels);
  }
  return words * static_cast<int64_t>(sizeof(float));
}

}  // namespace

Schedule Schedule::of_one_row(const Plan& plan) {
  return {plan.height, plan.width, /*segment=*/plan.width, /*lag=*/plan.width};
}

Schedule Schedule::of(const Plan& plan, int64_t rows) {
  const bool cached = bytes_of_current_taps(plan) <= kCachedBytes;
  if (rows > (cached ? kMostRows : kMostRowsFromMemory)) return of_one_row(plan);
  if (plan.attention.num_heads > 0 || plan.height == 1) return of_one_row(plan);
  // A tap that serves several columns does so in all rows at the same times.
  const int64_t served = plan.taps.most_served();
  const int64_t wanted = std::clamp(plan.width / kSegmentsOfRow, kShortest, kLongest);
  const int64_t segment = rounded_up(wanted, served);
  // A row overwrites the inputs of an earlier one, a column at a time, in the ring. All that read
  // such a column have done so if they are ahead by what the taps reach to the left.
  const int64_t lag = rounded_up(std::max(segment + plan.reach(), plan.taps.left()), served);
  if (lag >= plan.width) return of_one_row(plan);
  return {plan.height, plan.width, segment, lag};
}

}  // namespace vqvae2_fast::cpu::sampler
