// The CUDA sampler, on a GPU or executed on the CPU: the bits of a sample's codes and logits do not
// depend on the batch, the grid, the threads of a block or the place of the weights.
// Their values are tested from Python (tests/sampling/test_cuda_engine.py).
//
// Top-k and top-p are compared with a sort (filter_checks.h), the row phase's products with sums on
// the host (row_checks.h).
//
// `sampler_test quick` draws a few times from four priors: for the thread sanitizer and planted
// mistakes.
#include <string.h>

#include "filter_checks.h"
#include "random_prior.h"
#include "row_checks.h"

namespace {

using namespace sampler_test;

cuda_test::Checks check;

template <typename T>
bool same(const std::vector<T>& part, const std::vector<T>& whole, size_t first) {
  return memcmp(part.data(), whole.data() + first, part.size() * sizeof(T)) == 0;
}

bool all_finite(const std::vector<float>& values) {
  for (const float value : values) {
    if (!(value - value == 0.0f)) return false;
  }
  return true;
}

// Draws of `samples` samples from `first` on, against those of a whole draw.
Drawn compare(RandomPrior& prior, const Drawn& whole, const Draw& part, const char* what) {
  const Drawn drawn = prior.draw(part);
  const size_t first =
      static_cast<size_t>(part.first_sample) * RandomPrior::kHeight * RandomPrior::kWidth;
  check(same(drawn.codes, whole.codes, first), what);
  check(same(drawn.logits, whole.logits, first * RandomPrior::kCodes), what);
  return drawn;
}

bool several_codes(const std::vector<int64_t>& codes) {
  for (const int64_t code : codes) {
    if (code < 0 || code >= RandomPrior::kCodes) return false;
  }
  for (const int64_t code : codes) {
    if (code != codes[0]) return true;
  }
  return false;
}

// Draws a part again with most of its codes known.
void test_known(RandomPrior& prior, const Drawn& whole, Draw part) {
  constexpr int kPositions = RandomPrior::kHeight * RandomPrior::kWidth;
  const auto first = whole.codes.begin() + part.first_sample * kPositions;
  part.known.assign(first, first + part.batch * kPositions);
  for (size_t n = 0; n < part.known.size(); n += 3) part.known[n] = -1;
  compare(prior, whole, part, "known codes");
}

// The chain on one cluster, the convolutions on another: with weights that pass through shared
// memory, and with weights that stay there.
void test_clusters(RandomPrior& prior, const Drawn& whole, Draw part, bool attention, bool quick) {
  part.cluster = 4;
  part.blocks = 8;
  part.threads = 128;
  part.shared_bytes = attention ? 84 << 10 : 21 << 10;
  compare(prior, whole, part, "the chain on a cluster of 4, its weights streamed");
  if (quick) return;
  part.batch = 3;
  part.first_sample = 4;
  part.threads = 96;
  part.shared_bytes = 200 << 10;
  compare(prior, whole, part, "three samples, the chain on a cluster of 4, its weights resident");
  part.cluster = 2;
  part.batch = part.guided ? 4 : 8;
  part.first_sample = 0;
  compare(prior, whole, part, "eight network rows, the chain on a cluster of 2");
}

#if defined(VQ_STAGE_TIMES)
// Every stage has been done by some block at every position, in the order of the chain's stages; a
// block's moments follow each other, and what it waited for was told before.
void test_stage_times(const Drawn& drawn) {
  const size_t blocks = drawn.blocks, stages = drawn.stages, moments = vq_sampler_moments();
  bool all = drawn.times.size() == RandomPrior::kWidth * blocks * stages * moments;
  bool in_order = true, after_the_stage_before = true;
  for (int t = 0; all && t < RandomPrior::kWidth; ++t) {
    uint64_t told_before = 0;  // by the last block of the stage before
    for (size_t s = 0; s < stages; ++s) {
      uint64_t told = 0;
      for (size_t b = 0; b < blocks; ++b) {
        const uint64_t* at = &drawn.times[((t * blocks + b) * stages + s) * moments];
        if (at[0] == 0) continue;
        in_order = in_order && at[0] <= at[1] && at[1] <= at[2];
        after_the_stage_before = after_the_stage_before && (s < 2 || at[0] >= told_before);
        told = std::max(told, at[2]);
      }
      all = all && told > 0;
      told_before = told;
    }
  }
  check(all, "times of every stage at every position");
  check(in_order, "a step is ready, then computed, then told");
  check(after_the_stage_before, "a step is ready when the stage before has been told");
}
#endif

void test_kind(const Kind& kind, bool quick) {
  RandomPrior prior(kind);
  Draw all;
  all.batch = quick ? 2 : 8;
  all.guided = kind.classes;
  all.top_k = kind.classes ? 30 : 0;
  all.top_p = kind.classes ? 0.9 : 1.0;
  const Drawn whole = prior.draw(all);
  check(several_codes(whole.codes), "codes in range, and not all one");
  check(all_finite(whole.logits), "logits are finite");
#if defined(VQ_STAGE_TIMES)
  test_stage_times(whole);
#endif
  Draw one = all;
  one.batch = 1;
  one.first_sample = all.batch - 1;
  one.blocks = 7;
  compare(prior, whole, one, "a sample alone, with another grid");
  if (kind.classes) {
    Draw many = one;
    many.blocks = 40;
    many.threads = 32;
    many.shared_bytes = 24 << 10;
    compare(prior, whole, many, "more blocks than a block has threads to wait for them");
    Draw by_one = all;
    by_one.blocks = 1;
    const Drawn drawn = compare(prior, whole, by_one, "a buffer that inputs fill more than once");
    check(drawn.staged_in_turn, "inputs of all convolutions do not fit into the buffer at once");
  }
  if (!kind.reads_itself) test_clusters(prior, whole, one, kind.attention, quick);
  test_known(prior, whole, one);
  if (quick) return;
  Draw three = all;
  three.batch = 3;
  three.first_sample = 2;
  three.threads = 96;
  three.shared_bytes = 32 << 10;
  compare(prior, whole, three, "three samples, with larger blocks and less shared memory");
  three.blocks = 1;
  three.shared_bytes = 220 << 10;
  compare(prior, whole, three, "three samples by one block");
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && strcmp(arguments[1], "quick") == 0;
  test_filters(check, quick);
  test_row_products(check, quick);
  Kind kind;
  kind.classes = true;
  test_kind(kind, quick);
  kind = {};
  kind.reads_itself = kind.condition = true;
  test_kind(kind, quick);
  kind = {};
  kind.attention = false;
  kind.output_layers = 0;
  test_kind(kind, quick);
  if (!quick) {
    kind = {};
    kind.attention = false;
    kind.output_layers = 0;
    kind.weight_bytes = 2;
    kind.row_mode = 2;
    test_kind(kind, quick);
    kind.weight_bytes = 4;
    kind.row_mode = 1;
    test_kind(kind, quick);
    kind.reads_itself = kind.condition = true;
    test_kind(kind, quick);
  }
  return check.finish("sampler_test");
}
