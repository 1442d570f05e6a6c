#include "draw.h"

#include <string.h>

#include <algorithm>
#include <cmath>

#include "../../common/counter_noise.h"
#include "../kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

int64_t first_largest(const float* values, const float* added, int64_t count) {
  int64_t best = 0;
  float largest = -INFINITY;
  for (int64_t k = 0; k < count; ++k) {
    const float value = added ? values[k] + added[k] : values[k];
    if (value > largest) {
      largest = value;
      best = k;
    }
  }
  return best;
}

}  // namespace

bool beyond(const float* logits, int64_t n, float largest) {
  int found = 0;  // not bool, or the loop is not vectorised
  for (int64_t k = 0; k < n; ++k) found |= !(std::fabs(logits[k]) <= largest);
  return found != 0;
}

Drawer::Drawer(const KernelTable& kernels, const Rule& rule, int64_t num_embeddings)
    : kernels_(kernels),
      rule_(rule),
      num_embeddings_(num_embeddings),
      padded_(rounded_up(num_embeddings)),
      logits_(padded_),
      exponentials_(padded_),
      noise_(padded_),
      order_(num_embeddings),
      frequencies_(padded_) {}

int64_t Drawer::draw(const float* logits, const float* without_class, const float* noise) {
  float* values = logits_.data();
  for (int64_t k = 0; k < num_embeddings_; ++k) values[k] = logits[k];
  if (without_class) {
    for (int64_t k = 0; k < num_embeddings_; ++k) {
      values[k] = without_class[k] + rule_.guidance * (logits[k] - without_class[k]);
    }
  }
  if (rule_.temperature == 0.0f) return first_largest(values, nullptr, num_embeddings_);
  if (rule_.temperature != 1.0f) {
    for (int64_t k = 0; k < num_embeddings_; ++k) values[k] /= rule_.temperature;
  }
  filter(values);
  return first_largest(values, noise, num_embeddings_);
}

void Drawer::filter(float* logits) {
  const int64_t kept_by_k =
      rule_.top_k > 0 && rule_.top_k < num_embeddings_ ? rule_.top_k : num_embeddings_;
  if (kept_by_k == num_embeddings_ && rule_.top_p >= 1.0f) return;
  const auto before = [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  for (int64_t k = 0; k < num_embeddings_; ++k) {
    order_[k] = static_cast<int32_t>(k);
    if (std::isnan(logits[k])) logits[k] = -INFINITY;  // NaN has no place in an order
  }
  if (kept_by_k < num_embeddings_) {
    std::nth_element(order_.begin(), order_.begin() + kept_by_k, order_.end(), before);
    for (int64_t k = kept_by_k; k < num_embeddings_; ++k) logits[order_[k]] = -INFINITY;
  }
  if (rule_.top_p >= 1.0f) return;

  // A heap yields the codes best first, and only as many as are kept.
  const auto after = [&before](int32_t a, int32_t b) { return before(b, a); };
  const auto begin = order_.begin();
  auto end = begin + kept_by_k;
  std::make_heap(begin, end, after);
  // The scratch behind the codes holds zeros; their exponentials are not read.
  kernels_.sampler.exp_shifted(logits, logits[order_[0]], exponentials_.data(), padded_);
  // In double: a sum of thousands of equal shares would be rounded at every step in float.
  double total = 0.0;
  for (int64_t k = 0; k < num_embeddings_; ++k) {
    if (logits[k] > -INFINITY) total += static_cast<double>(exponentials_.data()[k]);
  }
  double cumulative = 0.0;
  while (end != begin && static_cast<float>(cumulative) < rule_.top_p) {
    cumulative += static_cast<double>(exponentials_.data()[order_[0]] / static_cast<float>(total));
    std::pop_heap(begin, end, after);
    --end;
  }
  for (auto left_out = begin; left_out != end; ++left_out) logits[*left_out] = -INFINITY;
}

float Drawer::log_prob(const float* logits, int64_t code) {
  float* values = logits_.data();
  float largest = logits[0];
  for (int64_t k = 0; k < num_embeddings_; ++k) {
    values[k] = logits[k];
    largest = logits[k] > largest ? logits[k] : largest;
  }
  kernels_.sampler.exp_shifted(values, largest, exponentials_.data(), padded_);
  float total = 0.0f;
  for (int64_t k = 0; k < num_embeddings_; ++k) total += exponentials_.data()[k];
  return (logits[code] - largest) - fixed_log(total);
}

void Drawer::count(const float* logits) {
  if (beyond(logits, num_embeddings_, rule_.largest_logit)) {
    // The draw is refused in the end. Until then a stream needs frequencies that it can divide by.
    std::fill_n(frequencies_.begin(), num_embeddings_, 1);
    frequencies_[0] += kFrequencyTotal - static_cast<uint32_t>(num_embeddings_);
    return;
  }
  float* exponentials = exponentials_.data();
  memcpy(exponentials, logits, num_embeddings_ * sizeof(float));
  for (int64_t k = num_embeddings_; k < padded_; ++k) exponentials[k] = -3.0e38f;
  const float largest = kernels_.sampler.largest(exponentials, padded_);
  int64_t best = 0;
  while (logits[best] < largest) ++best;
  kernels_.sampler.exp_shifted(exponentials, logits[best], exponentials, padded_);
  for (int64_t k = num_embeddings_; k < padded_; ++k) exponentials[k] = 0.0f;
  const auto total = static_cast<double>(kFrequencyTotal - num_embeddings_);
  uint32_t given = kernels_.sampler.frequencies(exponentials, total, frequencies_.data(), padded_);
  given -= static_cast<uint32_t>(padded_ - num_embeddings_);  // 1 for each exponential of 0
  // What rounding down left over. It is computed modulo 2^32, so it may also be negative.
  frequencies_[best] += kFrequencyTotal - given;
}

int64_t Drawer::decode(const float* logits, RangeDecoder& decoder) {
  count(logits);
  const uint32_t place = decoder.peek();
  Interval interval = {0, frequencies_[0]};
  int64_t code = 0;
  while (place - interval.begin >= interval.size && code + 1 < num_embeddings_) {
    interval.begin += interval.size;
    interval.size = frequencies_[++code];
  }
  decoder.take(interval);
  return code;
}

Interval Drawer::interval(const float* logits, int64_t code) {
  count(logits);
  Interval interval = {0, frequencies_[code]};
  for (int64_t k = 0; k < code; ++k) interval.begin += frequencies_[k];
  return interval;
}

}  // namespace vqvae2_fast::cpu::sampler
