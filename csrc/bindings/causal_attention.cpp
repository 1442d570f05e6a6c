// `dropped_attention` and its gradient on the CPU, float32, on the stable ABI. Schemas:
// vqvae2_fast/ops/causal_attention/op.py; `causal_attention` checks what it passes on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <string>
#include <tuple>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "dropout_seed.h"
#include "maps.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kLogitGrain = 1 << 14;  // logits that a thread takes at a time

// [B, heads, L, channels] with the heads of a position side by side in memory, as the surrounding
// layer reads and writes them.
Tensor new_heads(const Tensor& like, int64_t channels) {
  const int64_t batch = like.size(0), heads = like.size(1), length = like.size(2);
  const int64_t sizes[] = {batch, heads, length, channels};
  const int64_t strides[] = {length * heads * channels, channels, heads * channels, 1};
  return new_strided_tensor(sizes, strides, torch::headeronly::ScalarType::Float);
}

float* head_of(Tensor& heads, int64_t group) {
  return heads.mutable_data_ptr<float>() + group / heads.size(1) * heads.stride(0) +
         group % heads.size(1) * heads.stride(1);
}

cpu::HeadRows rows_of(const Tensor& heads, int64_t group) {
  return {heads.const_data_ptr<float>() + group / heads.size(1) * heads.stride(0) +
              group % heads.size(1) * heads.stride(1),
          heads.stride(2), heads.stride(3)};
}

class Problem {
 public:
  Problem(const Tensor& q, const Tensor& k, const Tensor& v, double dropout_p,
          const std::string& dropout_on, const Tensor& seed)
      : q_(q), k_(k), v_(v) {
    STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
                    "expected q, k, v [B, heads, L, d].");
    for (int64_t i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(k.size(i) == q.size(i) && (i == 3 || v.size(i) == q.size(i)),
                      "expected k like q, and v with their positions.");
    }
    STD_TORCH_CHECK(is_float(q) && is_float(k) && is_float(v) && dropout_p >= 0 &&
                        static_cast<float>(dropout_p) < 1 &&
                        (dropout_on == "logits" || dropout_on == "probabilities"),
                    "expected float32 q, k, v, a dropout_p from 0 to below 1 in "
                    "float32, and dropout_on \"logits\" or \"probabilities\".");
    head_.length = q.size(2), head_.dim = q.size(3), head_.value_dim = v.size(3);
    head_.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_.dim)));
    head_.dropout_p = static_cast<float>(dropout_p);
    head_.on_logits = dropout_on == "logits";
    const DropoutSeed drops = dropout_seed(seed);
    head_.seed = drops.value;
    head_.group = drops.first_sample * static_cast<uint32_t>(q.size(1));
  }

  cpu::AttentionHead head(int64_t group) const {
    cpu::AttentionHead head = head_;
    head.q = rows_of(q_, group), head.k = rows_of(k_, group), head.v = rows_of(v_, group);
    head.group += static_cast<uint32_t>(group);
    return head;
  }

  int64_t groups() const { return head_.length == 0 ? 0 : q_.size(0) * q_.size(1); }
  int64_t grain() const { return 1 + kLogitGrain / (head_.length * head_.length + 1); }
  cpu::Aligned<float> memory(bool backward) const {
    const auto workspace = cpu::kernels().attention.workspace;
    return cpu::aligned<float>(workspace(head_.length, head_.dim, head_.value_dim, backward));
  }

 private:
  const Tensor &q_, &k_, &v_;
  cpu::AttentionHead head_ = {};
};

Tensor dropped_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, double dropout_p,
                             std::string dropout_on, const Tensor& seed) {
  const Problem problem(q, k, v, dropout_p, dropout_on, seed);
  Tensor out = new_heads(q, v.size(3));
  const cpu::AttentionKernels& kernels = cpu::kernels().attention;
  parallel_for(0, problem.groups(), problem.grain(), [&](int64_t first, int64_t last) {
    const cpu::Aligned<float> memory = problem.memory(false);
    for (int64_t group = first; group < last; ++group) {
      kernels.forward(problem.head(group), head_of(out, group), out.stride(2), memory.get());
    }
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> dropped_attention_backward_cpu(const Tensor& dout,
                                                                  const Tensor& q, const Tensor& k,
                                                                  const Tensor& v, double dropout_p,
                                                                  std::string dropout_on,
                                                                  const Tensor& seed) {
  const Problem problem(q, k, v, dropout_p, dropout_on, seed);
  STD_TORCH_CHECK(is_float(dout) && dout.dim() == 4 && dout.size(0) == v.size(0) &&
                      dout.size(1) == v.size(1) && dout.size(2) == v.size(2) &&
                      dout.size(3) == v.size(3),
                  "expected dout like v.");
  Tensor dq = new_heads(q, q.size(3)), dk = new_heads(q, q.size(3)), dv = new_heads(v, v.size(3));
  const cpu::AttentionKernels& kernels = cpu::kernels().attention;
  parallel_for(0, problem.groups(), problem.grain(), [&](int64_t first, int64_t last) {
    const cpu::Aligned<float> memory = problem.memory(true);
    for (int64_t group = first; group < last; ++group) {
      kernels.backward(problem.head(group), rows_of(dout, group), head_of(dq, group),
                       head_of(dk, group), head_of(dv, group), dq.stride(2), dv.stride(2),
                       memory.get());
    }
  });
  return {dq, dk, dv};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("dropped_attention", TORCH_BOX(&vqvae2_fast::dropped_attention_cpu));
  m.impl("dropped_attention_backward", TORCH_BOX(&vqvae2_fast::dropped_attention_backward_cpu));
}
