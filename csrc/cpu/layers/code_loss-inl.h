// The kernels of code_loss.h: include inside a level file after its simd header.
#pragma once

#include <math.h>

#include "../simd/math-inl.h"
#include "code_loss.h"
#include "pointwise-inl.h"

namespace vqvae2_fast::cpu::code_loss {
namespace {

using products::kPanel;
using products::panels_of;

constexpr int kLanes = Vec::kLanes;
// A logit that takes no part in a softmax.
constexpr float kLowest = -3.0e38f;
// Positions of a block. With fewer, a large weight would be read too often.
constexpr int64_t kBlock = pointwise::kBlock;

inline int64_t workspace(int64_t num_codes, int64_t channels) {
  const int64_t width = panels_of(num_codes) * kPanel;
  return kBlock * (width + panels_of(channels) * kPanel) + width;
}

// Turns one position's logits, `count` of them and then lowest values up to whole vectors, into
// their gradient, and returns its nats. A NaN among them makes everything NaN.
inline double softmax_gradient(float* logits, int64_t count, int64_t code, float scale) {
  Vec most = Vec::broadcast(kLowest), sum = Vec::broadcast(0.0f);
  for (int64_t j = 0; j < count; j += kLanes) most = most.at_least(Vec::load(logits + j));
  float lanes[kLanes];
  most.store(lanes);
  float largest = lanes[0];
  for (int l = 1; l < kLanes; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
  const float of_code = logits[code];
  const Vec shift = Vec::broadcast(-largest);
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec e = exponential(Vec::load(logits + j) + shift);
    e.store(logits + j);
    sum = sum + e;
  }
  sum.store(lanes);
  double total = 0;
  for (int l = 0; l < kLanes; ++l) total += static_cast<double>(lanes[l]);
  // d nats / d logits = softmax - one-hot
  const Vec factor = Vec::broadcast(static_cast<float>(static_cast<double>(scale) / total));
  for (int64_t j = 0; j < count; j += kLanes) (Vec::load(logits + j) * factor).store(logits + j);
  logits[code] -= scale;
  return log(total) + static_cast<double>(largest) - static_cast<double>(of_code);
}

// dbias[k] += the sum of a block's gradients, in the order of its rows.
inline void add_rows(const float* dlogits, int64_t rows, int64_t width, int64_t count,
                     float* dbias) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Vec sum = Vec::load(dlogits + j);
    for (int64_t r = 1; r < rows; ++r) sum = sum + Vec::load(dlogits + r * width + j);
    (Vec::load(dbias + j) + sum).store(dbias + j);
  }
  for (; j < count; ++j) {
    float sum = dlogits[j];
    for (int64_t r = 1; r < rows; ++r) sum += dlogits[r * width + j];
    dbias[j] += sum;
  }
}

inline double rows(const CodeLoss& loss, int64_t first, int64_t last, float* memory, float* part,
                   float* dbias, float* dfeatures) {
  const int64_t num_codes = loss.num_codes, channels = loss.channels;
  const int64_t width = panels_of(num_codes) * kPanel;
  const int64_t part_width = panels_of(channels) * kPanel;
  const int64_t used = (channels + kLanes - 1) / kLanes * kLanes;  // whole vectors of a panel
  float *const logits = memory, *const initial = logits + kBlock * width;
  float* const panels = initial + width;
  for (int64_t k = 0; k < width; ++k) initial[k] = k < num_codes ? loss.bias[k] : 0.0f;
  for (int64_t i = 0; i < num_codes * part_width; ++i) part[i] = 0;
  for (int64_t k = 0; k < num_codes; ++k) dbias[k] = 0;
  double nats = 0;
  for (int64_t row = first; row < last; row += kBlock) {
    const int64_t count = last - row < kBlock ? last - row : kBlock;
    const float* features = loss.features + row * channels;
    products::multiply<false>({.rows = count,
                               .columns = num_codes,
                               .depth = channels,
                               .a = features,
                               .a_stride = channels,
                               .panels = loss.packed,
                               .panel_stride = channels * kPanel,
                               .initial = initial,
                               .c = logits,
                               .c_stride = width});
    for (int64_t r = 0; r < count; ++r) {
      float* const of_row = logits + r * width;
      for (int64_t k = num_codes; k < width; ++k) of_row[k] = kLowest;
      nats += softmax_gradient(of_row, num_codes, loss.codes[row + r], loss.scale);
    }
    add_rows(logits, count, width, num_codes, dbias);
    products::pack_panels(features, count, channels, panels);
    products::multiply<true>({.rows = num_codes,
                              .columns = used,
                              .depth = count,
                              .a = logits,
                              .a_stride = width,
                              .panels = panels,
                              .panel_stride = count * kPanel,
                              .initial = part,
                              .initial_stride = part_width,
                              .c = part,
                              .c_stride = part_width});
    products::multiply<false>({.rows = count,
                               .columns = channels,
                               .depth = num_codes,
                               .a = logits,
                               .a_stride = width,
                               .panels = loss.packed_backward,
                               .panel_stride = num_codes * kPanel,
                               .c = dfeatures + row * channels,
                               .c_stride = channels});
  }
  return nats;
}

constexpr CodeLossKernels kKernels = {.block_rows = kBlock, .workspace = workspace, .rows = rows};

}  // namespace
}  // namespace vqvae2_fast::cpu::code_loss
