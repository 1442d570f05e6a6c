// Attention in the order of engine `cpu` (attention_in_order.cuh) against one thread that adds in
// that order, bit for bit. Logits would not tell: what follows attention is rounded to 127 steps,
// which hides nearly every wrong last bit.
#pragma once

#include <cmath>
#include <vector>

#include "../../cuda/sampler/attention_in_order.cuh"
#include "../cuda_on_cpu/device_array.h"

namespace sampler_test {

// One block per head.
__global__ void heads_kernel(const vqvae2_fast::cuda::sampler::Network net, int position) {
  using namespace vqvae2_fast::cuda::sampler;
  VQ_DYNAMIC_SHARED(float, memory);
  const Place at = {position / net.width, position % net.width, 0, 0, 0};
  attend_in_order(net, at, 0, static_cast<int>(blockIdx.x), head_scratch(memory, net));
}

// The same by one thread: products of 128 inputs added to each score, weights in 16 lanes that are
// added by halves, values in four chains. `weights` has a word for each position.
__global__ void heads_in_turn_kernel(const vqvae2_fast::cuda::sampler::Network net, int position,
                                     float* weights, float* out) {
  using namespace vqvae2_fast::cuda::sampler;
  const int dim = net.head_dim, padded = (net.height * net.width + 31) / 32 * 32;
  for (int head = 0; head < net.num_heads; ++head) {
    const float* keys = net.keys + static_cast<int64_t>(head) * padded * dim;
    const float* values = net.values + static_cast<int64_t>(head) * padded * dim;
    float largest = -INFINITY, lanes[16] = {};
    for (int p = 0; p < position; ++p) {
      float score = 0.0f, sum = 0.0f;
      for (int c = 0; c < dim; ++c) {
        sum = fmaf(net.query[head * dim + c], keys[(p / 32 * dim + c) * 32 + p % 32], sum);
        if (c % 128 != 127 && c + 1 != dim) continue;
        score += sum;
        sum = 0.0f;
      }
      weights[p] = score;
      largest = fmaxf(largest, score);
    }
    for (int p = 0; p < position; ++p) {
      weights[p] = exponential(weights[p] - largest);
      lanes[p % 16] += weights[p];
    }
    for (int half = 8; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    for (int c = 0; c < dim; ++c) {
      float chains[4] = {};
      for (int p = 0; p < position; ++p) {
        chains[p % 4] = fmaf(weights[p], values[p * dim + c], chains[p % 4]);
      }
      const float sum = (chains[0] + chains[1]) + (chains[2] + chains[3]);
      out[head * dim + c] = position == 0 ? 0.0f : elu(VQ_MUL(sum, 1.0f / lanes[0]));
    }
  }
}

inline bool attends_in_order(int dim, int threads, int position) {
  using namespace vqvae2_fast::cuda::sampler;
  constexpr int kHeads = 2, kRows = 5, kColumns = 29, kPadded = 160;
  uint32_t state = 1;
  const auto random = [&](size_t size) {
    std::vector<float> values(size);
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
    }
    return values;
  };
  const size_t all = static_cast<size_t>(kHeads) * dim, cached = all * kPadded;
  cuda_test::DeviceArray<float> query(random(all)), keys(random(cached)), values(random(cached));
  cuda_test::DeviceArray<float> out{std::vector<float>(all)}, in_turn{std::vector<float>(all)};
  cuda_test::DeviceArray<float> weights{std::vector<float>(kPadded)};
  Network net = {};
  net.height = kRows;
  net.width = kColumns;
  net.rows = 1;
  net.num_heads = kHeads;
  net.head_dim = dim;
  net.query = query.data();
  net.keys = keys.data();
  net.values = values.data();
  net.out_inputs = out.data();
  cuda_test::LaunchShape shape;
  shape.grid = dim3(kHeads);
  shape.block = dim3(threads);
  shape.shared_bytes = static_cast<int>(sizeof(float)) * (kRows * kColumns + 5 * dim + kLanes);
  cuda_test::must(cuda_test::launch("heads", heads_kernel, shape, net, position));
  shape.grid = shape.block = dim3(1);
  cuda_test::must(cuda_test::launch("heads in turn", heads_in_turn_kernel, shape, net, position,
                                    weights.data(), in_turn.data()));
  return out.values() == in_turn.values();
}

inline void test_attention_in_order(cuda_test::Checks& check) {
  for (const int position : {0, 1, 31, 144}) {
    check(attends_in_order(9, 64, position), "attention adds in the order of the CPU");
  }
  check(attends_in_order(130, 96, 77), "attention adds in the order of the CPU: wide heads");
}

}  // namespace sampler_test
