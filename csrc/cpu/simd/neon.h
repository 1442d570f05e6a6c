// Four lanes of Advanced SIMD, which every 64-bit Arm processor has.
//
// No int16 products here: `smlal` multiplies four pairs, as many as a float32 multiply-add.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace vqvae2_fast::cpu {

bool has_dot_products();  // dispatch.cpp

namespace {

struct Vec {
  static constexpr int kLanes = 4;
  // 12 rows x 2 vectors of accumulators, 2 of codes and a broadcast leave 5 of the 32 registers.
  static constexpr int kTileRows = 12;
  float32x4_t v;

  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  // The first `count` lanes, at most all; the others are 0.
  static Vec load_first(const float* p, int64_t count) {
    if (count == kLanes) return load(p);
    float lanes[kLanes] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = p[l];
    return load(lanes);
  }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  void store(float* p) const { vst1q_f32(p, v); }
  // Other levels store past the caches here.
  void stream(float* p) const { store(p); }
  static void finish_streaming() {}
  void store_first(float* p, int64_t count) const {
    if (count == kLanes) return store(p);
    float lanes[kLanes];
    store(lanes);
    for (int64_t l = 0; l < count; ++l) p[l] = lanes[l];
  }
  // The low byte of each lane's bits.
  void store_low_bytes(uint8_t* p) const {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_f32(v));
    const uint32x2_t bytes = vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words)));
    const uint32_t four = vget_lane_u32(bytes, 0);
    __builtin_memcpy(p, &four, sizeof(four));
  }
  Vec add_product(Vec a, Vec b) const { return {vfmaq_f32(v, a.v, b.v)}; }
  // The same: the product is never rounded here.
  Vec add_product_fused(Vec a, Vec b) const { return add_product(a, b); }
  Vec operator-(Vec b) const { return {vsubq_f32(v, b.v)}; }
  Vec operator+(Vec b) const { return {vaddq_f32(v, b.v)}; }
  Vec operator*(Vec b) const { return {vmulq_f32(v, b.v)}; }
  Vec operator/(Vec b) const { return {vdivq_f32(v, b.v)}; }
  Vec square_root() const { return {vsqrtq_f32(v)}; }
  // this where less than bound, else bound; NaN stays.
  Vec at_most(Vec bound) const { return {vminq_f32(v, bound.v)}; }
  Vec at_least(Vec bound) const { return {vmaxq_f32(v, bound.v)}; }
  // positive where this > 0, else otherwise.
  Vec where_positive(Vec positive, Vec otherwise) const {
    return {vbslq_f32(vcgtq_f32(v, vdupq_n_f32(0.0f)), positive.v, otherwise.v)};
  }
  // 2^n of 1.5 * 2^23 + n, whose low bits hold n; n in -126..127.
  Vec power_of_two() const {
    const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(v), 23);
    return {vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3F800000u)))};
  }
};

// Sums of products of int8, four inputs at a time: weights as they are, inputs with 128 added.
struct QuadSum {
  static constexpr int kTileRows = 8;
  // Whether the sums are of the inputs with 128 added, which the caller makes up for.
  static constexpr bool kBiased = false;
  struct Weights {
    int8x16_t v;
  };
  struct Inputs {
    int8x16_t v;
  };
  int32x4_t v;

  static QuadSum zero() { return {vdupq_n_s32(0)}; }
  static QuadSum load(const int32_t* p) { return {vld1q_s32(p)}; }
  void store(int32_t* p) const { vst1q_s32(p, v); }
  static Weights load_weights(const int8_t* bytes) { return {vld1q_s8(bytes)}; }
  static Inputs broadcast(const uint8_t* inputs) {
    uint32_t four;
    __builtin_memcpy(&four, inputs, sizeof(four));
    return {vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u))};
  }
  // this[l] + sum over k of inputs[k] * weights[4 l + k].
  QuadSum add_products(Inputs inputs, Weights weights) const {
    const int16x8_t low = vmull_s8(vget_low_s8(weights.v), vget_low_s8(inputs.v));
    const int16x8_t high = vmull_high_s8(weights.v, inputs.v);
    return {vaddq_s32(v, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))};
  }
  QuadSum operator+(QuadSum b) const { return {vaddq_s32(v, b.v)}; }
  Vec to_float() const { return {vcvtq_f32_s32(v)}; }
};

// The same in one instruction, on processors that `has_dot_products`: all of Apple's, and servers'
// from Neoverse N1 on. In assembly, because this file is compiled for all processors.
#define VQ_HAS_DOT_SUMS
struct DotSum : QuadSum {
  static DotSum zero() { return {QuadSum::zero()}; }
  static DotSum load(const int32_t* p) { return {QuadSum::load(p)}; }
  DotSum operator+(DotSum b) const { return {QuadSum{vaddq_s32(v, b.v)}}; }
  DotSum add_products(Inputs inputs, Weights weights) const {
    DotSum sum = *this;
    asm(".arch_extension dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
        : "+w"(sum.v)
        : "w"(weights.v), "w"(inputs.v));
    return sum;
  }
};

// Per lane: keeps the least score and the second least. The low bits of a score are replaced by a
// tag, which says where it came from; a NaN score is dropped: `vmax` gives NaN then, and `vminnm`
// the other operand.
inline void keep_two_least(Vec score, uint32_t clear, uint32_t tag, Vec& best, Vec& second) {
  const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(score.v), vdupq_n_u32(clear));
  const float32x4_t tagged = vreinterpretq_f32_u32(vorrq_u32(bits, vdupq_n_u32(tag)));
  second.v = vminnmq_f32(vmaxq_f32(best.v, tagged), second.v);
  best.v = vminnmq_f32(tagged, best.v);
}

inline float lane_sum(Vec a) { return vaddvq_f32(a.v); }

// sums[i] = lane_sum(a[i]) of four, in another order.
inline void lane_sums(const Vec* a, float* sums) {
  vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a[0].v, a[1].v), vpaddq_f32(a[2].v, a[3].v)));
}

inline float least_lane(Vec a) { return vminvq_f32(a.v); }

// Bit l is set where score[l] <= bound.
inline uint32_t lanes_at_most(Vec score, float bound) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcleq_f32(score.v, vdupq_n_f32(bound)), bit));
}

}  // namespace
}  // namespace vqvae2_fast::cpu
