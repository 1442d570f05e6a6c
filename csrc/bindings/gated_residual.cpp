// `gated_residual` and its gradient on the CPU, float32, on the stable ABI. Schemas and checks:
// vqvae2_fast/ops/gated_residual/op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // values that a thread takes at a time

// A map as rows that hold the two halves of h one after the other: a row is a position if channels
// are last, else a whole image.
struct Layout {
  bool channels_last;
  bool is_vector;          // one condition for all positions of an image
  int64_t rows, channels;  // of x
};

Layout layout_of(const Tensor& x, const std::optional<Tensor>& condition) {
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2) * x.size(3);
  const bool is_vector =
      condition && (condition->size(2) != x.size(2) || condition->size(3) != x.size(3));
  // A vector needs the positions as rows.
  if ((channels > 1 && x.stride(1) == 1) || is_vector) {
    return {true, is_vector, batch * positions, channels};
  }
  return {false, false, batch, channels * positions};
}

Tensor in_layout(const Tensor& map, const Layout& layout) {
  return contiguous_form(layout.channels_last ? to_last(map) : map);
}

Tensor new_map_in(const Layout& layout, const Tensor& like) {
  const int64_t batch = like.size(0), channels = like.size(1), height = like.size(2);
  if (layout.channels_last) return new_map(batch, channels, height, like.size(3));
  return new_tensor(like, {batch, channels, height, like.size(3)});
}

// The condition of each row: one per row, or one per image.
class Condition {
 public:
  Condition(const std::optional<Tensor>& condition, const Tensor& h, const Layout& layout) {
    if (!condition) return;
    if (layout.is_vector) {
      values_.emplace(contiguous_form(*condition));
      rows_each_ = h.size(2) * h.size(3);
    } else {
      values_.emplace(in_layout(*condition, layout));
    }
    data_ = floats(*values_);
    width_ = 2 * layout.channels;
  }

  const float* of_row(int64_t row) const {
    return data_ ? data_ + row / rows_each_ * width_ : nullptr;
  }

 private:
  std::optional<Tensor> values_;
  const float* data_ = nullptr;
  int64_t width_ = 0, rows_each_ = 1;
};

void check(const Tensor& h, const Tensor& x, const std::optional<Tensor>& condition) {
  const auto fits = [&h](const Tensor& condition) {
    const bool whole = condition.size(2) == h.size(2) && condition.size(3) == h.size(3);
    return condition.size(0) == h.size(0) && condition.size(1) == h.size(1) &&
           (whole || (condition.size(2) == 1 && condition.size(3) == 1));
  };
  STD_TORCH_CHECK(
      is_float(x) && is_float(h) && x.dim() == 4 && h.dim() == 4 && h.size(0) == x.size(0) &&
          h.size(1) == 2 * x.size(1) && h.size(2) == x.size(2) && h.size(3) == x.size(3) &&
          (!condition || (is_float(*condition) && condition->dim() == 4 && fits(*condition))),
      "expected float32 h [B, 2C, H, W], x [B, C, H, W] and a condition "
      "like h or [B, 2C, 1, 1].");
}

Tensor gated_residual_cpu(const Tensor& h, const Tensor& x,
                          const std::optional<Tensor>& condition) {
  check(h, x, condition);
  const Layout layout = layout_of(x, condition);
  Tensor out = new_map_in(layout, x);
  if (h.numel() == 0) return out;
  const Tensor gates = in_layout(h, layout), skip = in_layout(x, layout);
  const Condition added(condition, h, layout);
  const float *const gate = floats(gates), *const rest = floats(skip);
  float* const target = mutable_floats(out);
  const int64_t channels = layout.channels;
  const cpu::GatedLayer& kernels = cpu::kernels().gated_layer;
  parallel_for(0, layout.rows, 1 + kGrain / (channels + 1), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels.gate(gate + row * 2 * channels, added.of_row(row), rest + row * channels, channels,
                   target + row * channels);
    }
  });
  return out;
}

Tensor gated_residual_backward_cpu(const Tensor& dout, const Tensor& h,
                                   const std::optional<Tensor>& condition) {
  check(h, dout, condition);
  const Layout layout = layout_of(dout, condition);
  Tensor dh = new_map_in(layout, h);
  if (h.numel() == 0) return dh;
  const Tensor above = in_layout(dout, layout), gates = in_layout(h, layout);
  const Condition added(condition, h, layout);
  const float *const gradient = floats(above), *const gate = floats(gates);
  float* const target = mutable_floats(dh);
  const int64_t channels = layout.channels;
  const cpu::GatedLayer& kernels = cpu::kernels().gated_layer;
  parallel_for(0, layout.rows, 1 + kGrain / (channels + 1), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels.gate_backward(gradient + row * channels, gate + row * 2 * channels, added.of_row(row),
                            channels, target + row * 2 * channels);
    }
  });
  return dh;
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("gated_residual_fused", TORCH_BOX(&vqvae2_fast::gated_residual_cpu));
  m.impl("gated_residual_backward", TORCH_BOX(&vqvae2_fast::gated_residual_backward_cpu));
}
