#include "weight_norms.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "../threads/pieces.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kSums = 16;
constexpr int64_t kPieceValues = 1 << 18;  // that a thread reads at a time

uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// All ones for the values that count, over the 16 * taps values after which the order repeats.
std::vector<uint32_t> mask_of(const NormedWeight& weight) {
  std::vector<uint32_t> mask(weight.taps * kSums);
  for (size_t e = 0; e < mask.size(); ++e) {
    mask[e] = static_cast<int64_t>(e) % weight.taps < weight.live ? ~uint32_t{0} : 0;
  }
  return mask;
}

float norm_of(const float* values, int64_t count, const std::vector<uint32_t>& mask) {
  double sums[kSums] = {};
  size_t at = 0;  // within the mask
  // A dead value may be anything, so it is not multiplied by zero.
  const auto add = [&](const void* from, size_t length) {
    uint32_t bits[kSums] = {};
    memcpy(bits, from, length * sizeof(float));
    for (int64_t s = 0; s < kSums; ++s) {
      const uint32_t kept = bits[s] & mask[at + s];
      float value;
      memcpy(&value, &kept, sizeof(value));
      const double wide = value;
      sums[s] += wide * wide;
    }
    at = at + kSums < mask.size() ? at + kSums : 0;
  };
  const int64_t whole = count / kSums * kSums;
  for (int64_t e = 0; e < whole; e += kSums) add(values + e, kSums);
  if (whole < count) add(values + whole, static_cast<size_t>(count - whole));
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  }
  return static_cast<float>(std::sqrt(sums[0]));
}

}  // namespace

void weight_norms(const std::vector<NormedWeight>& weights, int threads) {
  struct Piece {
    size_t weight;
    int64_t first, last;  // outputs
  };
  std::vector<Piece> pieces;
  std::vector<std::vector<uint32_t>> masks;
  for (size_t n = 0; n < weights.size(); ++n) {
    masks.push_back(mask_of(weights[n]));
    const int64_t of_output = std::max<int64_t>(1, weights[n].inputs * weights[n].taps);
    const int64_t step = std::max<int64_t>(1, kPieceValues / of_output);
    for (int64_t first = 0; first < weights[n].outputs; first += step) {
      pieces.push_back({n, first, std::min(first + step, weights[n].outputs)});
    }
  }
  for_each_piece(pieces.size(), threads, [&](size_t n) {
    const Piece& piece = pieces[n];
    const NormedWeight& weight = weights[piece.weight];
    const int64_t count = weight.inputs * weight.taps;
    for (int64_t o = piece.first; o < piece.last; ++o) {
      weight.norms[o] = norm_of(weight.values + o * count, count, masks[piece.weight]);
    }
  });
}

bool within(const std::vector<Block>& blocks, float bound, int threads) {
  struct Piece {
    const unsigned char* data;
    int64_t values;
  };
  std::vector<Piece> pieces;
  for (const Block& block : blocks) {
    const auto* data = static_cast<const unsigned char*>(block.data);
    const int64_t count = block.bytes / static_cast<int64_t>(sizeof(float));
    for (int64_t first = 0; first < count; first += kPieceValues) {
      pieces.push_back({data + first * sizeof(float), std::min(kPieceValues, count - first)});
    }
  }
  std::atomic<bool> all{true};
  // Without the sign, the bits of floats are ordered as their values, and those of NaN are above.
  const auto limit = static_cast<int32_t>(bits_of(bound));
  for_each_piece(pieces.size(), threads, [&](size_t n) {
    int32_t beyond = 0;
    for (int64_t e = 0; e < pieces[n].values; ++e) {
      int32_t bits;
      memcpy(&bits, pieces[n].data + e * sizeof(float), sizeof(bits));
      beyond |= (bits & 0x7fffffff) > limit;
    }
    if (beyond) all.store(false, std::memory_order_relaxed);
  });
  return all;
}

}  // namespace vqvae2_fast::cpu
