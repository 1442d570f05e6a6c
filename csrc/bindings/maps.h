// Maps [B, C, H, W] with channels last in memory, as rows of channels, on the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes, strides, aoti_torch_dtype_float32(),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

inline const float* floats(const torch::stable::Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

}  // namespace
}  // namespace vqvae2_fast
