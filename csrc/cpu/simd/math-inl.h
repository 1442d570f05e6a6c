// exp, sigmoid and ELU of a vector, defined by fixed sequences of operations that every SIMD level
// rounds alike. Include after a simd/ header, inside a level file.
#pragma once

namespace vqvae2_fast::cpu {
namespace {

// 2^n and e^r - 1 with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to -87..88, where 2^n is
// normal. The polynomial is that of Cephes' expf (below 1 ulp over this range).
struct SplitExponential {
  Vec scale, minus_one;
};

inline SplitExponential split_exponential(Vec x) {
  const Vec magic = Vec::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = x.at_least(Vec::broadcast(-87.0f)).at_most(Vec::broadcast(88.0f));
  const Vec shifted = magic.add_product_fused(x, Vec::broadcast(1.44269504088896341f));
  const Vec n = shifted - magic;
  Vec r = x.add_product_fused(n, Vec::broadcast(-0.693359375f));
  r = r.add_product_fused(n, Vec::broadcast(2.12194440e-4f));
  Vec p = Vec::broadcast(1.9875691500e-4f);
  p = Vec::broadcast(1.3981999507e-3f).add_product_fused(p, r);
  p = Vec::broadcast(8.3334519073e-3f).add_product_fused(p, r);
  p = Vec::broadcast(4.1665795894e-2f).add_product_fused(p, r);
  p = Vec::broadcast(1.6666665459e-1f).add_product_fused(p, r);
  p = Vec::broadcast(5.0000001201e-1f).add_product_fused(p, r);
  return {shifted.power_of_two(), r.add_product_fused(p, r * r)};
}

inline Vec exponential(Vec x) {
  const SplitExponential e = split_exponential(x);
  return e.scale.add_product_fused(e.scale, e.minus_one);
}

inline Vec sigmoid(Vec x) {
  const Vec one = Vec::broadcast(1.0f);
  return one / (one + exponential(Vec::broadcast(0.0f) - x));
}

// x for x > 0, else e^x - 1 with a relative error of about an ulp, also near 0.
inline Vec elu_of(Vec x) {
  const SplitExponential e = split_exponential(x);
  const Vec minus_one = (e.scale - Vec::broadcast(1.0f)).add_product_fused(e.scale, e.minus_one);
  return x.where_positive(x, minus_one);
}

}  // namespace
}  // namespace vqvae2_fast::cpu
