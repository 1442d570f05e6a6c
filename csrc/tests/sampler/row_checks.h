// The row phase's products in every precision and tile against sums on the host, and the bank
// conflicts of their layout in shared memory.
#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "../../cuda/sampler/row_phase.cuh"
#include "../cuda_on_cpu/device_array.h"

namespace sampler_test {

namespace kernels = vqvae2_fast::cuda::sampler;

// A product, its inputs and its weights. Columns of the map are `stride` floats apart and overlap,
// as in a ring.
class RowCase {
 public:
  // Of integers, every sum is exact. Other numbers round.
  RowCase(int inputs, int outputs, int stride, bool integers) {
    p_.layers = 2;
    p_.width = 37;
    p_.rows = 2 * p_.width;
    p_.inputs = inputs;
    p_.steps = (inputs + kernels::kStepInputs - 1) / kernels::kStepInputs;
    p_.outputs = outputs;
    p_.num_segments = 3;
    p_.first_segment = 1;
    p_.all_segments = 4;
    p_.by_four = stride % 4 == 0;
    p_.input_column = stride;
    const int segment = (p_.width - 1) * stride + inputs;
    p_.input_sample = (3 * segment + 3) / 4 * 4;
    p_.input_layer = 2 * p_.input_sample;
    for (int s = 0; s < 3; ++s) p_.segments[s] = (2 - s) * segment / 4 * 4;
    input_ = numbers(p_.layers * p_.input_layer, integers);
    weights_ =
        numbers(p_.layers * p_.all_segments * p_.steps * outputs * kernels::kStepInputs, integers);
    bias_ = numbers(p_.layers * outputs, integers);
    for (size_t w = 0; w < weights_.size(); ++w) {
      const int k = w % kernels::kStepInputs;
      const int step = w / kernels::kStepInputs / outputs % p_.steps;
      if (step * kernels::kStepInputs + k >= inputs) weights_[w] = 0.0f;
    }
  }

  // On the device, with the weights as the precision has them.
  template <typename Mode>
  kernels::RowProduct on_device() {
    device_.clear();
    kernels::RowProduct p = p_;
    p.input = put(input_);
    p.bias = put(bias_);
    if constexpr (Mode::kWeightChunks == 4) {
      p.weights = put(weights_);
    } else {
      std::vector<float> pairs(weights_.size() / 2);
      for (size_t w = 0; w < pairs.size(); ++w) {
        uint32_t low, high;
        memcpy(&low, &weights_[2 * w], sizeof(low));
        memcpy(&high, &weights_[2 * w + 1], sizeof(high));
        const uint32_t pair = low >> 16 | (high & 0xFFFF0000u);
        memcpy(&pairs[w], &pair, sizeof(pair));
      }
      p.weights = put(pairs);
    }
    p.output = put(std::vector<float>(static_cast<size_t>(p.layers) * p.rows * p.outputs, NAN));
    return p;
  }
  std::vector<float> outputs() const { return device_.back()->values(); }

  // In float32, in the kernel's order.
  std::vector<float> expected() const {
    std::vector<float> result;
    for (int layer = 0; layer < p_.layers; ++layer) {
      for (int m = 0; m < p_.rows; ++m) {
        for (int o = 0; o < p_.outputs; ++o) result.push_back(expected(layer, m, o));
      }
    }
    return result;
  }

 private:
  float expected(int layer, int m, int o) const {
    constexpr int kInputs = kernels::kStepInputs;
    const float* row = input_.data() + layer * p_.input_layer + m / p_.width * p_.input_sample +
                       m % p_.width * p_.input_column;
    float total = 0.0f, sum = 0.0f;
    const int steps = p_.num_segments * p_.steps;
    for (int step = 0; step < steps; ++step) {
      const int segment = step / p_.steps, first = step % p_.steps * kInputs;
      const int64_t matrix =
          (static_cast<int64_t>(layer) * p_.all_segments + p_.first_segment) * p_.steps + step;
      for (int k = 0; k < kInputs && first + k < p_.inputs; ++k) {
        sum = fmaf(row[p_.segments[segment] + first + k],
                   weights_[(matrix * p_.outputs + o) * kInputs + k], sum);
      }
      if ((step + 1) % 8 == 0 || step + 1 == steps) {
        total += sum;
        sum = 0.0f;
      }
    }
    return bias_[layer * p_.outputs + o] + total;
  }

  std::vector<float> numbers(int64_t count, bool integers) {
    std::vector<float> values(count);
    for (float& value : values) {
      state_ = state_ * 1664525u + 1013904223u;
      value = integers ? static_cast<float>(state_ >> 28) - 8.0f
                       : static_cast<float>(state_ >> 8) / (1 << 23) - 1.0f;
    }
    return values;
  }

  float* put(const std::vector<float>& values) {
    device_.push_back(std::make_unique<cuda_test::DeviceArray<float>>(values));
    return device_.back()->data();
  }

  kernels::RowProduct p_ = {};
  uint32_t state_ = 1;
  std::vector<float> input_, weights_, bias_;
  std::vector<std::unique_ptr<cuda_test::DeviceArray<float>>> device_;  // the outputs last
};

// The outputs of two products of one launch, one after the other.
template <typename Mode, typename Tile>
std::vector<float> row_outputs(RowCase& first, RowCase& second) {
  const kernels::RowProduct p = first.on_device<Mode>(), q = second.on_device<Mode>();
  cuda_test::LaunchShape shape;
  shape.grid = dim3((std::max(p.rows, q.rows) + Tile::kRows - 1) / Tile::kRows,
                    (std::max(p.outputs, q.outputs) + Tile::kColumns - 1) / Tile::kColumns,
                    p.layers + q.layers);
  shape.block = dim3(kernels::kRowThreads);
  cuda_test::must(
      cuda_test::launch("row phase", kernels::row_phase_kernel<Mode, Tile>, shape, p, q));
  std::vector<float> outputs = first.outputs();
  const std::vector<float> others = second.outputs();
  outputs.insert(outputs.end(), others.begin(), others.end());
  return outputs;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// 39 steps, in which the second round of four groups is not whole; then inputs of no multiple of
// anything.
template <typename Mode>
void test_row_tiles(cuda_test::Checks& check, bool integers, const std::string& mode) {
  RowCase first(200, 150, 8, integers), second(45, 21, 3, integers);
  const std::vector<float> narrow = row_outputs<Mode, kernels::Tile<32, 32, 32>>(first, second);
  if (integers || std::is_same_v<Mode, kernels::Float32>) {
    std::vector<float> expected = first.expected();
    const std::vector<float> others = second.expected();
    expected.insert(expected.end(), others.begin(), others.end());
    check(same_bits(narrow, expected), ("row products in their order: " + mode).c_str());
  }
  check(same_bits((row_outputs<Mode, kernels::Tile<32, 64, 32>>(first, second)), narrow),
        ("the same in tiles of 32 x 64: " + mode).c_str());
  check(same_bits((row_outputs<Mode, kernels::Tile<64, 128, 64>>(first, second)), narrow),
        ("the same in tiles of 64 x 128: " + mode).c_str());
}

// The most words of one bank that lanes first .. first + count read at once. Each reads `width`
// words from the one on that `word` says.
template <typename Word>
int words_of_a_bank(int first, int count, int width, const Word& word) {
  std::array<std::set<int>, 32> banks;
  for (int lane = first; lane < first + count; ++lane) {
    for (int w = word(lane); w < word(lane) + width; ++w) banks[w % 32].insert(w);
  }
  size_t most = 0;
  for (const std::set<int>& words : banks) most = std::max(most, words.size());
  return static_cast<int>(most);
}

// Four words of a lane are read by eight lanes at once, or by sixteen where lanes that differ in
// one bit read one address.
inline void test_row_layout(cuda_test::Checks& check) {
  int matrices = 1, pairs = 1, floats = 1, copies = 1;
  bool shared_by_two = true;
  for (int chunk = 0; chunk < kernels::kChunk4; ++chunk) {
    for (int first = 0; first < 32; first += 8) {
      const auto at_once = [&](int& most, const auto& place) {
        most = std::max(most, words_of_a_bank(first, 8, 4, [&](int l) { return 4 * place(l); }));
      };
      at_once(copies, [&](int l) { return kernels::place<4>(l / 4, l % 4); });
      at_once(copies, [&](int l) { return kernels::place<2>(l / 2, l % 2); });
      if (chunk % 2 == 1) continue;
      at_once(matrices, [&](int l) { return kernels::input_matrix_place(l, chunk); });
      at_once(matrices, [&](int l) { return kernels::weight_matrix_place<4>(l, chunk); });
      at_once(matrices, [&](int l) { return kernels::weight_matrix_place<2>(l, 0); });
    }
    for (int first = 0; first < 32; first += 16) {
      const auto inputs = [&](int l) { return 4 * kernels::input_float_place(l, chunk); };
      const auto weights = [&](int l) { return 4 * kernels::weight_float_place(l, chunk); };
      floats = std::max(
          {floats, words_of_a_bank(first, 16, 4, inputs), words_of_a_bank(first, 16, 4, weights)});
      for (int l = first; l < first + 16; ++l) {
        shared_by_two = shared_by_two && inputs(l) == inputs(l ^ 2) && weights(l) == weights(l ^ 1);
      }
      pairs = std::max(pairs, words_of_a_bank(first, 16, 2, [&](int l) {
                         return 4 * kernels::input_pair_place(l, chunk / 2 * 2) + l % 2 * 2;
                       }));
    }
  }
  check(matrices == 1, "ldmatrix meets no bank twice");
  check(pairs == 1, "reads of two floats meet no bank twice");
  check(floats == 1, "reads of four floats meet no bank twice");
  check(copies == 1, "copies into a slot meet no bank twice");
  check(shared_by_two, "pairs of lanes read the same four floats");
}

// The tile that a card of `multiprocessors` gets for 16 layers of 5,120 inputs and 768 outputs.
inline kernels::RowTile best_tile(int rows, int multiprocessors) {
  kernels::RowProduct p = {};
  p.layers = 16;
  p.rows = rows;
  p.all_segments = 4;
  p.inputs = 1280;
  p.steps = p.inputs / kernels::kStepInputs;
  p.outputs = 768;
  return kernels::best_row_tile({&p}, multiprocessors);
}

inline void test_choice_of_tiles(cuda_test::Checks& check) {
  check(best_tile(32, 512).columns == 32, "few rows are cut small, to fill the card");
  check(best_tile(32, 132).columns == 64, "no smaller than it takes");
  check(best_tile(4096, 132).columns == 128, "many rows are cut large, to read less");
  check(best_tile(64, 1).columns == 128, "a small card is filled by few tiles");
}

inline void test_row_products(cuda_test::Checks& check, bool quick) {
  test_row_layout(check);
  test_choice_of_tiles(check);
  test_row_tiles<kernels::Float32>(check, false, "float32");
  test_row_tiles<kernels::TensorFloat32>(check, true, "integers in tf32");
  test_row_tiles<kernels::BFloat16Pair>(check, true, "integers in bfloat16");
  if (quick) return;
  test_row_tiles<kernels::TensorFloat32>(check, false, "tf32");
  test_row_tiles<kernels::BFloat16Pair>(check, false, "bfloat16");
}

}  // namespace sampler_test
