// One matrix product of the row phase, for all its layers. Plain data, passed to the kernel by
// value; strides in elements.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cuda::sampler {

constexpr int kMaxSegments = 8;
constexpr int kStepInputs = 16;  // inputs that a tile adds at once

// How the products are computed.
enum class RowMode : int32_t { kFloat32, kTensorFloat32, kBFloat16 };

// output[layer, m, o] = bias, class, condition + sum over segments s and inputs k of
//   input[layer * input_layer + segments[s] + n * input_sample + j * input_column + k]
//   * weights[layer, first_segment + s, k, o]            with m = n * width + j.
struct RowProduct {
  int32_t layers, rows, width;  // rows = network rows times width
  int32_t inputs, outputs;      // inputs of a segment
  int32_t steps;                // of kStepInputs inputs each, that hold a segment's
  int32_t num_segments, first_segment, all_segments;
  int32_t by_four;  // `input` and its strides are multiples of four floats
  const float* input;
  int64_t input_layer, input_sample, input_column;
  int64_t segments[kMaxSegments];
  // [layers, all_segments, steps, outputs, kStepInputs], zero beyond `inputs`: floats or bfloat16
  const void* weights;
  const float* bias;     // [layers, outputs], or null
  const float* classes;  // [layers, num_labels, outputs], or null
  const int64_t* labels;
  int32_t num_classes, num_labels, batch;
  const float* condition;  // [layers, batch, condition_width, outputs], or null
  int32_t condition_width, condition_scale;
  float* output;  // [layers, rows, outputs]
};

}  // namespace vqvae2_fast::cuda::sampler
