#include "pack.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "../threads/team.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Inputs whose taps are read together. The weights of an input's taps share cache lines in a
// convolution, so those of 32 outputs should stay in the second-level cache in the meantime.
constexpr int64_t kInputsAtOnce = 16;
// Weights for which another thread is worth starting.
constexpr int64_t kWeightsPerThread = 1 << 18;

// The columns of a panel that are not padding.
struct Columns {
  Columns(const Packing& packing, int64_t n, int64_t panel) {
    for (int64_t c = 0; c < kPanel; ++c) {
      const int64_t output = packing.outputs[panel * kPanel + c];
      if (output == Packing::kZeros) continue;
      place[count] = c;
      source[count] = packing.weights[n] + output * packing.output_stride;
      factor[count] = packing.factors.empty() ? 1.0f : packing.factors[n][output];
      ++count;
    }
  }

  int64_t count = 0;
  int64_t place[kPanel];
  const float* source[kPanel];
  float factor[kPanel];
};

// Writes the live weights of a panel as float32 [inputs, kPanel], each tap where to[tap] says.
void gather(const Packing& packing, const Columns& columns, const std::vector<float*>& to) {
  const auto num_inputs = static_cast<int64_t>(packing.inputs.size());
  for (int64_t first = 0; first < num_inputs; first += kInputsAtOnce) {
    const int64_t end = std::min(num_inputs, first + kInputsAtOnce);
    for (size_t tap = 0; tap < to.size(); ++tap) {
      for (int64_t i = first; i < end; ++i) {
        if (packing.inputs[i] == Packing::kZeros) continue;
        const int64_t offset = packing.taps[tap] + packing.inputs[i];
        float* row = to[tap] + i * kPanel;
        for (int64_t c = 0; c < columns.count; ++c) {
          row[columns.place[c]] = columns.source[c][offset] * columns.factor[c];
        }
      }
    }
  }
}

// q = clamp(round(row / scales), -127, 127), ties to even.
void quantize_row(const float* row, const float* scales, int32_t* q) {
  // In [2^23, 2^24) float32 has the integers only, so this sum is rounded to one.
  constexpr float kRounding = 12582912.0f;
  for (int64_t c = 0; c < kPanel; ++c) {
    const float quotient = row[c] / scales[c];
    const float low = quotient < 127.0f ? quotient : 127.0f;
    const float clamped = low > -127.0f ? low : -127.0f;
    q[c] = static_cast<int32_t>((clamped + kRounding) - kRounding);
  }
}

void store_quads(const float* rows, int64_t count, const float* scales, float* to) {
  auto* bytes = reinterpret_cast<int8_t*>(to + kPanel);
  int32_t sums[kPanel] = {};
  for (int64_t k = 0; k < count; ++k, rows += kPanel) {
    int32_t q[kPanel];
    quantize_row(rows, scales, q);
    int8_t* words = bytes + k / kQuad * kQuad * kPanel + k % kQuad;
    for (int64_t c = 0; c < kPanel; ++c) {
      words[c * kQuad] = static_cast<int8_t>(q[c]);
      sums[c] -= 128 * q[c];
    }
  }
  memcpy(to, sums, sizeof(sums));
}

// Multiplies rows [count * inputs, kPanel] by the scales of their inputs.
void scale_inputs(float* rows, int64_t count, int64_t inputs, const float* scales) {
  for (int64_t k = 0; k < count * inputs; ++k, rows += kPanel) {
    const float scale = scales[k % inputs];
    for (int64_t c = 0; c < kPanel; ++c) rows[c] *= scale;
  }
}

// The step of each column: 127 of them reach its largest weight.
void find_scales(const float* rows, int64_t count, float* scales) {
  float largest[kPanel] = {};
  for (int64_t k = 0; k < count; ++k, rows += kPanel) {
    for (int64_t c = 0; c < kPanel; ++c) {
      const float magnitude = std::fabs(rows[c]);
      largest[c] = magnitude > largest[c] ? magnitude : largest[c];
    }
  }
  for (int64_t c = 0; c < kPanel; ++c) {
    scales[c] = largest[c] > 0.0f ? largest[c] / 127.0f : 1.0f;
  }
}

// Packs panels one after another, with the memory that this takes.
class Packer {
 public:
  explicit Packer(const Packing& packing)
      : packing_(packing),
        num_inputs_(static_cast<int64_t>(packing.inputs.size())),
        num_taps_(static_cast<int64_t>(packing.taps.size())),
        to_(packing.taps.size()) {
    if (packing.format == Format::kQuads) rows_.resize(num_taps_ * num_inputs_ * kPanel);
  }

  void pack(int64_t n, int64_t panel) {
    const Columns columns(packing_, n, panel);
    if (packing_.format == Format::kFloat32) {
      for (const Packing::Block& block : packing_.blocks) {
        for (int64_t t = 0; t < block.num_taps; ++t) {
          to_[block.first_tap + t] = place(block, n, panel) + t * num_inputs_ * kPanel;
        }
      }
      gather(packing_, columns, to_);
      return;
    }
    if (columns.count < kPanel) std::fill(rows_.begin(), rows_.end(), 0.0f);
    for (int64_t t = 0; t < num_taps_; ++t) to_[t] = rows_.data() + t * num_inputs_ * kPanel;
    gather(packing_, columns, to_);
    scale_inputs(rows_.data(), num_taps_, num_inputs_, packing_.input_scales + n * num_inputs_);
    const auto outputs = static_cast<int64_t>(packing_.outputs.size());
    float* const scales = packing_.scales + n * outputs + panel * kPanel;
    find_scales(rows_.data(), num_taps_ * num_inputs_, scales);
    for (const Packing::Block& block : packing_.blocks) {
      store_quads(to_[block.first_tap], block.num_taps * num_inputs_, scales,
                  place(block, n, panel));
    }
  }

 private:
  static float* place(const Packing::Block& block, int64_t n, int64_t panel) {
    return block.to + n * block.matrix_stride + panel * block.panel_stride;
  }

  const Packing& packing_;
  const int64_t num_inputs_, num_taps_;
  std::vector<float*> to_;   // of each tap
  std::vector<float> rows_;  // a panel before it is rounded; padded inputs stay zero
};

}  // namespace

void pack(const Packing& packing, int threads) {
  const int64_t panels = static_cast<int64_t>(packing.outputs.size()) / kPanel;
  const int64_t count = static_cast<int64_t>(packing.weights.size()) * panels;
  const auto of_panel = static_cast<int64_t>(packing.taps.size() * packing.inputs.size()) * kPanel;
  const int64_t useful = std::min(count, count * of_panel / kWeightsPerThread);
  threads = static_cast<int>(std::clamp<int64_t>(useful, 1, threads));
  std::vector<Packer> packers(threads, Packer(packing));
  std::atomic<int64_t> next{0};
  Team(threads).run([&](int thread) {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      packers[thread].pack(index / panels, index % panels);
    }
  });
}

}  // namespace vqvae2_fast::cpu::sampler
