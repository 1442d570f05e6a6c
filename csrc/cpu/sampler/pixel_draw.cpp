// Pixel phase: codes from logits.
#include <string.h>

#include "pixel.h"

namespace vqvae2_fast::cpu::sampler {

void Pixel::make_noise(int64_t b, int64_t position, float* noise) {
  const Request& request = s.request;
  const int64_t* row = request.rows ? request.rows + 2 * b : nullptr;
  s.table.gumbel_noise(row ? static_cast<uint64_t>(row[0]) : request.seed,
                       static_cast<uint32_t>(row ? row[1] : request.first_sample + b),
                       static_cast<uint32_t>(position), request.stream, plan.num_embeddings, noise);
}

// The logits of a position of a sample, of which there are `batch` to a position. Under guidance,
// those without a class lie `batch` rows further.
const float* Pixel::logits_of(int64_t item) const {
  const int64_t r = item / s.batch * s.rows + item % s.batch;
  return s.logits.data() + r * plan.head.outputs();
}

void Pixel::draw_codes() {
  const Request& request = s.request;
  const int64_t k = plan.num_embeddings, stride = plan.head.outputs();
  Drawer& drawer = *s.drawers[thread];
  const Range items = share_of(s.batch * positions);
  for (int64_t item = items.begin; item < items.end; ++item) {
    const int64_t b = item % s.batch, position = position_of(item / s.batch);
    const int64_t at = b * plan.height * plan.width + position;
    const float* logits = logits_of(item);
    int64_t code = request.known ? request.known[at] : -1;
    if (request.decoders) {
      code = drawer.decode(logits, request.decoders[b]);
    } else if (code < 0) {
      const float* noise = drawer.noise();
      if (request.noise) {
        noise = request.noise + at * k;
      } else if (request.rule.temperature != 0.0f) {
        make_noise(b, position, drawer.noise());
      }
      const float* without_class = logits + s.batch * stride;
      code = drawer.draw(logits, request.guided ? without_class : nullptr, noise);
    }
    request.codes[at] = code;
  }
}

// Checks the logits, and writes what was asked for.
void Pixel::record() {
  const Request& request = s.request;
  const int64_t k = plan.num_embeddings, stride = plan.head.outputs();
  const float largest = request.rule.largest_logit;
  const Range items = share_of(s.batch * positions);
  for (int64_t item = items.begin; item < items.end; ++item) {
    const int64_t b = item % s.batch;
    const int64_t at = b * plan.height * plan.width + position_of(item / s.batch);
    const float* logits = logits_of(item);
    if (beyond(logits, k, largest) ||
        (request.guided && beyond(logits + s.batch * stride, k, largest))) {
      s.too_large = true;
    }
    if (request.log_prob) {
      request.log_prob[at] = s.drawers[thread]->log_prob(logits, request.codes[at]);
    }
    if (request.intervals) {
      request.intervals[at] = s.drawers[thread]->interval(logits, request.codes[at]);
    }
    if (request.logits) memcpy(request.logits + at * k, logits, k * sizeof(float));
  }
}

}  // namespace vqvae2_fast::cpu::sampler
