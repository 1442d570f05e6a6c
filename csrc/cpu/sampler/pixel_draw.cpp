// Pixel phase: codes from logits, guesses, and how many of a window's codes are right.
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

// Before the first step of a row, the guesses are the codes of the row above. If a window comes
// again, its last draws are the guesses. The row's noise is made here, once, for all of them.
void Pixel::guess_row(int64_t row) {
  const Request& request = s.request;
  const int64_t width = plan.width;
  const Range columns_here = share_of(width);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t column = columns_here.begin; column < columns_here.end; ++column) {
      const int64_t position = row * width + column, at = b * plan.height * width + position;
      const int64_t known = request.known ? request.known[at] : -1;
      request.codes[at] = known >= 0 ? known : row > 0 ? request.codes[at - width] : 0;
      if (s.row_noise.size() > 0 && known < 0) {
        make_noise(b, position, s.row_noise.data() + (b * width + column) * s.noise_stride());
      }
    }
  }
  s.team.barrier();
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
      } else if (s.row_noise.size() > 0) {
        const int64_t column = position % plan.width;
        noise = s.row_noise.data() + (b * plan.width + column) * s.noise_stride();
      } else if (request.rule.temperature != 0.0f) {
        make_noise(b, position, drawer.noise());
      }
      const float* without_class = logits + s.batch * stride;
      code = drawer.draw(logits, request.guided ? without_class : nullptr, noise);
    }
    if (in_window) s.matches[item] = request.codes[at] == code;
    request.codes[at] = code;
  }
}

// How many columns of the window are right in every sample; after all threads have drawn.
int64_t Pixel::num_right() const {
  for (int64_t k = 0; k + 1 < positions; ++k) {
    for (int64_t b = 0; b < s.batch; ++b) {
      if (!s.matches[k * s.batch + b]) return k + 1;
    }
  }
  return positions;
}

// Checks the logits of the first `count` positions of the step, and writes what was asked for.
void Pixel::record(int64_t count) {
  const Request& request = s.request;
  const int64_t k = plan.num_embeddings, stride = plan.head.outputs();
  const float largest = request.rule.largest_logit;
  const Range items = share_of(s.batch * count);
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
