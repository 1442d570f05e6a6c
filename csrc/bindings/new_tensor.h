// Tensors that kernels ask for. Where there is no memory on the CPU, torch's stable ABI raises an
// error that names neither memory nor sizes; these do.
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
    if (!like.is_cpu()) throw;
    refuse_memory(sizes);
  }
}

// On the CPU; it does not go through torch's dispatcher.
template <size_t N>
inline torch::stable::Tensor new_strided_tensor(const int64_t (&sizes)[N],
                                                const int64_t (&strides)[N],
                                                torch::headeronly::ScalarType dtype) {
  AtenTensorHandle handle;
  const int32_t number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  if (aoti_torch_empty_strided(N, sizes, strides, number, aoti_torch_device_type_cpu(), 0,
                               &handle) != AOTI_TORCH_SUCCESS) {
    refuse_memory(sizes);
  }
  return torch::stable::Tensor(handle);
}

inline torch::stable::Tensor contiguous_form(const torch::stable::Tensor& tensor) {
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::exception&) {
    if (!tensor.is_cpu()) throw;
    refuse_memory(tensor.sizes());
  }
}

}  // namespace
}  // namespace vqvae2_fast
