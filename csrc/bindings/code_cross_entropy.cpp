// `code_cross_entropy` on the CPU, float32, on the stable ABI: threads share the positions. Schema:
// vqvae2_fast/ops/code_cross_entropy/op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;

// Parts of the positions whose weight gradients are summed separately, whatever the number of
// threads, and how many codes a thread sums at a time.
constexpr int64_t kMostParts = 8, kCodeGrain = 32;

void check_codes(const Tensor& codes, int64_t num_codes) {
  const int64_t* values = codes.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < codes.numel(); ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < num_codes, "expected codes in 0..", num_codes - 1,
                    ", got ", values[i], ".");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> code_cross_entropy_cpu(const Tensor& features,
                                                                  const Tensor& weight,
                                                                  const Tensor& bias,
                                                                  const Tensor& codes) {
  STD_TORCH_CHECK(is_float(features) && is_float(weight) && is_float(bias) && features.dim() == 2 &&
                      weight.dim() == 2 && bias.dim() == 1 && codes.dim() == 1 &&
                      features.size(0) > 0 && weight.size(0) > 0 &&
                      weight.size(1) == features.size(1) && bias.size(0) == weight.size(0) &&
                      codes.size(0) == features.size(0) &&
                      codes.scalar_type() == torch::headeronly::ScalarType::Long,
                  "expected float32 features [N, C], N > 0, weight [K, C] and bias [K], "
                  "and int64 codes [N].");
  const int64_t positions = features.size(0), channels = features.size(1);
  const int64_t num_codes = weight.size(0);
  const Tensor x = contiguous_form(features), w = contiguous_form(weight);
  const Tensor b = contiguous_form(bias), targets = contiguous_form(codes);
  check_codes(targets, num_codes);

  const cpu::PointwiseKernels& layers = cpu::kernels().pointwise;
  const cpu::CodeLossKernels& kernels = cpu::kernels().code_loss;
  const cpu::PointwiseLayer layer = {.v = floats(w), .outputs = num_codes, .inputs = channels};
  const auto packed = cpu::aligned<float>(layers.packed_floats(num_codes, channels));
  const auto packed_backward = cpu::aligned<float>(layers.packed_floats(num_codes, channels));
  layers.pack(layer, false, packed.get());
  layers.pack(layer, true, packed_backward.get());
  const cpu::CodeLoss loss = {.features = floats(x),
                              .bias = floats(b),
                              .codes = targets.const_data_ptr<int64_t>(),
                              .num_codes = num_codes,
                              .channels = channels,
                              .scale = 1.0f / static_cast<float>(positions),
                              .packed = packed.get(),
                              .packed_backward = packed_backward.get()};

  const int64_t block = kernels.block_rows, blocks = (positions + block - 1) / block;
  // The sums of all parts take no more memory than all logits would, or than two weights.
  const int64_t parts =
      std::min({kMostParts, blocks, std::max<int64_t>(2, positions / (channels + 1))});
  const int64_t part_floats = layers.part_floats(num_codes, channels);
  const auto sums = cpu::aligned<float>(parts * part_floats);
  std::vector<float> bias_sums(static_cast<size_t>(parts * num_codes));
  std::vector<double> nats(static_cast<size_t>(parts));
  Tensor dfeatures = new_tensor(x, {positions, channels});
  float* const dx = mutable_floats(dfeatures);
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const auto memory = cpu::aligned<float>(kernels.workspace(num_codes, channels));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = blocks * part / parts * block;
      const int64_t last = std::min(blocks * (part + 1) / parts * block, positions);
      nats[static_cast<size_t>(part)] =
          kernels.rows(loss, first, last, memory.get(), sums.get() + part * part_floats,
                       bias_sums.data() + part * num_codes, dx);
    }
  });

  Tensor dweight = new_tensor(w, {num_codes, channels});
  Tensor dbias = new_tensor(b, {num_codes});
  float *const dw = mutable_floats(dweight), *const db = mutable_floats(dbias);
  parallel_for(0, num_codes, kCodeGrain, [&](int64_t first, int64_t last) {
    layers.weight_gradient(layer, sums.get(), parts, first, last, dw, nullptr);
    for (int64_t k = first; k < last; ++k) {
      db[k] = 0;
      for (int64_t part = 0; part < parts; ++part) {
        db[k] += bias_sums[static_cast<size_t>(part * num_codes + k)];
      }
    }
  });
  double total = 0;
  for (double part : nats) total += part;
  Tensor mean = new_tensor(x, {});
  *mutable_floats(mean) = static_cast<float>(total / static_cast<double>(positions));
  return {mean, dfeatures, dweight, dbias};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("code_cross_entropy", TORCH_BOX(&vqvae2_fast::code_cross_entropy_cpu));
}
