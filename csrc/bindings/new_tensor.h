// Tensors that kernels ask for. Where there is no memory, torch's stable ABI raises an error that
// names neither memory nor sizes; these do.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <optional>
#include <string>

namespace vqvae2_fast {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;

[[noreturn]] inline void refuse_memory(IntHeaderOnlyArrayRef sizes) {
  std::string shape;
  for (const int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, "vqvae2_fast: can't allocate memory for a tensor [", shape,
                  "]: use a smaller batch.");
  __builtin_unreachable();
}

inline torch::stable::Tensor new_tensor(
    const torch::stable::Tensor& like, IntHeaderOnlyArrayRef sizes,
    std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  try {
    return torch::stable::new_empty(like, sizes, dtype);
  } catch (const std::exception&) {
    refuse_memory(sizes);
  }
}

inline torch::stable::Tensor contiguous_form(const torch::stable::Tensor& tensor) {
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::exception&) {
    refuse_memory(tensor.sizes());
  }
}

}  // namespace
}  // namespace vqvae2_fast
