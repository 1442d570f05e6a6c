// Maps [B, C, H, W] with channels last in memory, as rows of channels, on the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../cpu/layers/gated_layer.h"
#include "../cpu/layers/winograd_layer.h"
#include "dropout_seed.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

inline torch::stable::Tensor to_last(const torch::stable::Tensor& map) {  // -> [B, H, W, C]
  return torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3);
}

// A float32 map, channels last. Not a view of a tensor [B, H, W, C]: autograd would forbid users to
// change it in place.
inline torch::stable::Tensor new_map(int64_t batch, int64_t channels, int64_t height,
                                     int64_t width) {
  const int64_t sizes[] = {batch, channels, height, width};
  const int64_t strides[] = {height * width * channels, 1, width * channels, channels};
  return new_strided_tensor(sizes, strides, torch::headeronly::ScalarType::Float);
}

inline bool is_float(const torch::stable::Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Float;
}

inline const float* floats(const torch::stable::Tensor& tensor) {
  return tensor.const_data_ptr<float>();
}

// Whether a normed weight's g, if there is one, is [C_out, 1, 1, 1].
inline bool fits_weight(const std::optional<torch::stable::Tensor>& g,
                        const torch::stable::Tensor& v) {
  return !g ||
         (is_float(*g) && g->dim() == 4 && g->size(0) == v.size(0) && g->numel() == v.size(0));
}

// A layer's bias, contiguous.
inline torch::stable::Tensor checked_bias(const torch::stable::Tensor& bias, int64_t outputs) {
  STD_TORCH_CHECK(is_float(bias) && bias.dim() == 1 && bias.size(0) == outputs,
                  "expected bias float32 [C_out] with C_out=", outputs, ", got ", bias.numel(),
                  " values of ", torch::headeronly::toString(bias.scalar_type()), " in ",
                  bias.dim(), " dimensions.");
  return contiguous_form(bias);
}

inline float* mutable_floats(const torch::stable::Tensor& tensor) {
  return tensor.mutable_data_ptr<float>();
}

// [B, C, H, W] -> [B, H, W, C], channels contiguous.
inline torch::stable::Tensor as_rows(const torch::stable::Tensor& map) {
  const torch::stable::Tensor rows = to_last(map);
  return rows.stride(3) == 1 ? rows : contiguous_form(rows);
}

// rows [B, H, W, C], channels contiguous, cut into Winograd's tiles.
inline cpu::winograd::Map map_of(const torch::stable::Tensor& rows) {
  cpu::winograd::Map map = {.batch = rows.size(0),
                            .height = rows.size(1),
                            .width = rows.size(2),
                            .channels = rows.size(3),
                            .stride_batch = rows.stride(0),
                            .stride_row = rows.stride(1),
                            .stride_column = rows.stride(2)};
  cpu::winograd::cut_into_tiles(map);
  return map;
}

inline cpu::winograd::Threads torch_threads() {
  return {torch::stable::get_num_threads(), run_parts};
}

// Whether both sides of a weight [O, C, h, w] have channels, in multiples of `unit`.
inline bool has_channels(const torch::stable::Tensor& weight, int64_t unit) {
  return weight.size(0) > 0 && weight.size(1) > 0 && weight.size(0) % unit == 0 &&
         weight.size(1) % unit == 0;
}

// The activation and dropout before a convolution of x [B, C, H, W].
inline cpu::Activation activation_of(const torch::stable::Tensor& x, bool elu, double dropout_p,
                                     const std::optional<torch::stable::Tensor>& seed) {
  STD_TORCH_CHECK(dropout_p == 0 || seed, "expected a seed for dropout.");
  const DropoutSeed drops = dropout_p == 0 ? DropoutSeed{} : dropout_seed(*seed);
  return {.elu = elu,
          .dropout_p = static_cast<float>(dropout_p),
          .seed = drops.value,
          .first_image = drops.first_sample,
          .positions = x.size(2) * x.size(3)};
}

// rows [B, H, W, C] -> [C], the same sum for any number of threads.
inline torch::stable::Tensor sum_over_rows(const torch::stable::Tensor& rows) {
  constexpr int64_t kBlock = 32, kParts = 8;  // a block is summed in float32
  const torch::stable::Tensor source = contiguous_form(rows);
  const int64_t channels = source.size(3), count = channels ? source.numel() / channels : 0;
  const int64_t each = (count + kParts - 1) / kParts;
  const float* const data = floats(source);
  std::vector<double> sums(static_cast<size_t>(kParts * channels));
  parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> block(static_cast<size_t>(channels));
    for (int64_t part = begin; part < end; ++part) {
      double* const total = sums.data() + part * channels;
      const int64_t last = std::min(count, (part + 1) * each);
      for (int64_t row = part * each; row < last; row += kBlock) {
        std::fill(block.begin(), block.end(), 0.0f);
        const int64_t stop = std::min(last, row + kBlock);
        for (int64_t r = row; r < stop; ++r) {
          const float* values = data + r * channels;
          for (int64_t c = 0; c < channels; ++c) block[static_cast<size_t>(c)] += values[c];
        }
        for (int64_t c = 0; c < channels; ++c) {
          total[c] += static_cast<double>(block[static_cast<size_t>(c)]);
        }
      }
    }
  });
  torch::stable::Tensor result = new_tensor(rows, {channels});
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t part = 0; part < kParts; ++part) {
      total += sums[static_cast<size_t>(part * channels + c)];
    }
    mutable_floats(result)[c] = static_cast<float>(total);
  }
  return result;
}

}  // namespace
}  // namespace vqvae2_fast
