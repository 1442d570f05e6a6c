// What a dropout is a function of, as operators are given it: only the seed, or also the number of
// the first sample where a call sees a part of a batch.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace vqvae2_fast {
namespace {

struct DropoutSeed {
  uint64_t value = 0;
  uint32_t first_sample = 0;
};

inline DropoutSeed dropout_seed(const torch::stable::Tensor& seed) {
  STD_TORCH_CHECK(seed.scalar_type() == torch::headeronly::ScalarType::Long &&
                      (seed.dim() == 0 || (seed.dim() == 1 && seed.size(0) == 2)),
                  "expected seed int64, 0-d or [2].");
  const int64_t* const data = seed.const_data_ptr<int64_t>();
  return {.value = static_cast<uint64_t>(data[0]),
          .first_sample = seed.dim() == 0 ? 0 : static_cast<uint32_t>(data[seed.stride(0)])};
}

}  // namespace
}  // namespace vqvae2_fast
