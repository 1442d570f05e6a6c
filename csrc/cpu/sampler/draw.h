// From logits to a code, by the rule of vqvae2_fast/ops/draw_codes/op.py.
//
// logits -> guidance -> / temperature -> top-k -> top-p -> + Gumbel noise -> argmax, lowest index
// on ties. Sums run in one order, so a draw is the same, bit for bit, at every SIMD level.
#pragma once

#include <stdint.h>

#include <vector>

#include "../../common/range_coder.h"
#include "buffer.h"
#include "kernels.h"

namespace vqvae2_fast::cpu {
struct KernelTable;
}

namespace vqvae2_fast::cpu::sampler {

struct Rule {
  float temperature = 1.0f;     // 0: the best code, whatever the noise
  int64_t top_k = 0;            // 0: all
  float top_p = 1.0f;           // 1: all
  float guidance = 1.0f;        // u + s * (c - u)
  float largest_logit = 1e37f;  // logits beyond it make the draw report `too_large`
};

// Whether one of n logits is NaN or beyond the largest absolute value.
bool beyond(const float* logits, int64_t n, float largest);

// One thread's scratch for drawing.
class Drawer {
 public:
  Drawer(const KernelTable& kernels, const Rule& rule, int64_t num_embeddings);

  // Draws a code from the logits of the class, under guidance those without a class (else null),
  // and the noise of the position.
  int64_t draw(const float* logits, const float* without_class, const float* noise);

  float log_prob(const float* logits, int64_t code);

  // The code whose interval a stream continues with, and the interval of a given code. Frequencies
  // are integers that every SIMD level computes alike: see vqvae2_fast/codec/README.md.
  int64_t decode(const float* logits, RangeDecoder& decoder);
  Interval interval(const float* logits, int64_t code);

  // Scratch of num_embeddings values for the noise.
  float* noise() { return noise_.data(); }

 private:
  // Sets what the filters leave out to -infinity.
  void filter(float* logits);
  // Fills frequencies_ with at least 1 per code, 2^24 in all.
  void count(const float* logits);

  const KernelTable& kernels_;
  const Rule rule_;
  const int64_t num_embeddings_, padded_;
  Buffer logits_, exponentials_, noise_;
  std::vector<int32_t> order_;
  std::vector<uint32_t> frequencies_;
};

}  // namespace vqvae2_fast::cpu::sampler
