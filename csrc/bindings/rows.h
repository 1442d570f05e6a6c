// Tensors as matrices of rows, and how kernels get torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>

#include "../cpu/float_mode.h"
#include "../cpu/rows.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

// what: the operator and its argument, for the message.
inline cpu::Dtype dtype_of(const torch::stable::Tensor& tensor, const char* what) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return cpu::Dtype::kFloat32;
    case torch::headeronly::ScalarType::BFloat16:
      return cpu::Dtype::kBFloat16;
    case torch::headeronly::ScalarType::Half:
      return cpu::Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, what, " float32, bfloat16 or float16, got ",
                      torch::headeronly::toString(tensor.scalar_type()), ".");
  }
}

inline cpu::Rows rows_of(const torch::stable::Tensor& matrix, const char* what) {
  return {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1), dtype_of(matrix, what)};
}

inline void run_parts(int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  parallel_for(0, count, 1, [&part](int64_t first, int64_t last) {
    const cpu::DefaultFloats mode;
    part(first, last);
  });
}

}  // namespace
}  // namespace vqvae2_fast
