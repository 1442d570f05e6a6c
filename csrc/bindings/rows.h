// Tensors as matrices of rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../cpu/rows.h"

namespace vqvae2_fast {
namespace {

inline cpu::Dtype dtype_of(const torch::stable::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return cpu::Dtype::kFloat32;
    case torch::headeronly::ScalarType::BFloat16:
      return cpu::Dtype::kBFloat16;
    case torch::headeronly::ScalarType::Half:
      return cpu::Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, "expected ", name, " float32, bfloat16 or float16, got ",
                      torch::headeronly::toString(tensor.scalar_type()), ".");
  }
}

inline cpu::Rows rows_of(const torch::stable::Tensor& matrix, const char* name) {
  return {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1), dtype_of(matrix, name)};
}

}  // namespace
}  // namespace vqvae2_fast
