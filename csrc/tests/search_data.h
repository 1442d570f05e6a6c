// Data on which a search goes wrong if it has any error, and the definition to compare with.
#pragma once

#include <math.h>
#include <stdint.h>

#include <random>
#include <vector>

namespace search_data {

using Floats = std::vector<float>;

struct Set {
  const char* name;
  int64_t num_rows, num_codes, dim;
  Floats z, codes;
  bool is_centered = false;  // for what chooses m itself: 0
};

inline Floats gaussian(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Vectors a few ulp from the midpoint of two codes, everything moved by `offset`.
inline Set midpoints(std::mt19937& random, int64_t n, int64_t k, int64_t d, float offset) {
  Set set = {.name = offset == 0 ? "midpoints" : "midpoints far out",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = Floats(n * d),
             .codes = gaussian(random, k * d)};
  for (float& value : set.codes) value += offset;
  for (int64_t i = 0; i < n; ++i) {
    const float* a = &set.codes[random() % k * d];
    const float* b = &set.codes[random() % k * d];
    for (int64_t j = 0; j < d; ++j) {
      const float nudge = 1 + static_cast<float>(static_cast<int>(random() % 7) - 3) * 0x1p-24f;
      set.z[i * d + j] = (a[j] + b[j]) / 2 * nudge;
    }
  }
  return set;
}

// Midpoints of neighbours among codes that lie close together, in two clusters far from their mean.
inline Set close_codes(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = midpoints(random, n, k, d, 0);
  set.name = "close codes";
  const Floats far = gaussian(random, d);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      float& value = set.codes[i * d + j];
      value = (i % 2 ? 1.0f : -1.0f) * far[j] + value / 16;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const float* a = &set.codes[random() % k * d];
    const float* b = &set.codes[((a - set.codes.data()) / d + 2) % k * d];
    for (int64_t j = 0; j < d; ++j) set.z[i * d + j] = (a[j] + b[j]) / 2;
  }
  return set;
}

// Midpoints of codes whose length is almost all in the first two components, which are equal: sums
// of two products are as large as they can be.
inline Set one_word(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = midpoints(random, n, k, d, 0);
  set.name = "one word";
  for (int64_t i = 0; i < k; ++i) {
    float* const code = &set.codes[i * d];
    for (int64_t j = 2; j < d; ++j) code[j] *= 1e-3f;
    code[0] = erff(code[0]);
    if (d > 1) code[1] = code[0];
  }
  for (int64_t i = 0; i < n; ++i) {
    const float* a = &set.codes[random() % k * d];
    const float* b = &set.codes[random() % k * d];
    for (int64_t j = 0; j < d; ++j) set.z[i * d + j] = (a[j] + b[j]) / 2;
  }
  return set;
}

// Two opposite codes, of which bfloat16 makes one longer and the other shorter, as much as it can,
// and rows between them that are a little nearer to the one that becomes longer.
inline Set opposite_roundings(std::mt19937& random, int64_t n, int64_t d) {
  Set set = {.name = "opposite roundings",
             .num_rows = n,
             .num_codes = 2,
             .dim = d,
             .z = gaussian(random, n * d),
             .codes = Floats(2 * d),
             .is_centered = true};
  double square = 0;
  for (int64_t j = 0; j < d; ++j) {
    const float sign = random() % 2 ? 1.0f : -1.0f;
    const float beside = 0x1p-18f * static_cast<float>(1 + random() % 4);
    set.codes[j] = sign * (1 + 0x1p-8f + beside);
    set.codes[d + j] = -sign * (1 + 0x1p-8f - beside);
    square += static_cast<double>(set.codes[j]) * static_cast<double>(set.codes[j]);
  }
  for (int64_t i = 0; i < n; ++i) {
    float* const z = &set.z[i * d];
    double product = 0;
    for (int64_t j = 0; j < d; ++j) product += static_cast<double>(z[j] * set.codes[j]);
    for (int64_t j = 0; j < d; ++j) {
      const float across = z[j] - static_cast<float>(product / square) * set.codes[j];
      z[j] = 0x1p-9f * across + 0x1p-15f * set.codes[j];
    }
  }
  return set;
}

// Values that a short format rounds all in the same direction, so that the losses add up instead of
// averaging out. Codes differ in which half of the dimensions loses, and in a little noise.
inline Set aligned_roundings(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = {.name = "aligned roundings",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = Floats(n * d),
             .codes = Floats(k * d)};
  std::normal_distribution<float> normal;
  std::vector<float> sign(d);
  for (float& s : sign) s = random() % 2 ? 1.0f : -1.0f;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      const bool above = (j + i) % 2;
      set.codes[i * d + j] = sign[j] *
                             (1 + (above ? 0x1.1p-8f : 0x0.fp-8f) + 0x1p-14f * normal(random)) *
                             (i % 4 < 2 ? 1.0f : -1.0f);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const float turn = random() % 2 ? 1.0f : -1.0f;
    for (int64_t j = 0; j < d; ++j) {
      const bool above = (j + i) % 2;
      set.z[i * d + j] =
          turn * sign[j] * (1 + (above ? 0x1.08p-8f : 0x0.f8p-8f) + 0x1p-14f * normal(random));
    }
  }
  return set;
}

inline Set scales(std::mt19937& random, int64_t n, int64_t k, int64_t d, int low, int high) {
  Set set = {.name = high < -30 ? "denormal" : "norms of every size",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = gaussian(random, n * d),
             .codes = gaussian(random, k * d)};
  const auto scale = [&](Floats& values) {
    for (size_t row = 0; row < values.size() / d; ++row) {
      const double factor = pow(10.0, low + static_cast<int>(random() % (high - low + 1)));
      for (int64_t j = 0; j < d; ++j) {
        const double value = values[row * d + j] * factor;
        values[row * d + j] = static_cast<float>(fmin(fmax(value, -3e38), 3e38));
      }
    }
  };
  scale(set.z);
  scale(set.codes);
  return set;
}

// Vectors so far out that the codes vanish, some or all, in the definition's float64 sums.
inline Set far_out(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = {.name = "far from all codes",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = gaussian(random, n * d),
             .codes = gaussian(random, k * d)};
  for (int64_t i = 0; i < n * d; ++i) {
    set.z[i] *= static_cast<float>(pow(10.0, static_cast<int>(4 + i / d % 13)));
  }
  return set;
}

inline Set duplicates(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = {.name = "duplicated codes",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = gaussian(random, n * d),
             .codes = gaussian(random, k * d)};
  for (int64_t i = k / 3; i < k; ++i) {
    for (int64_t j = 0; j < d; ++j) set.codes[i * d + j] = set.codes[i % (k / 3 + 1) * d + j];
  }
  return set;
}

inline Set integers(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = {.name = "small integers",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = Floats(n * d),
             .codes = Floats(k * d)};
  for (float& value : set.z) value = static_cast<float>(static_cast<int>(random() % 5) - 2);
  for (float& value : set.codes) value = static_cast<float>(static_cast<int>(random() % 5) - 2);
  return set;
}

inline Set not_finite(std::mt19937& random, int64_t n, int64_t k, int64_t d) {
  Set set = {.name = "not finite",
             .num_rows = n,
             .num_codes = k,
             .dim = d,
             .z = gaussian(random, n * d),
             .codes = gaussian(random, k * d)};
  for (int64_t i = 0; i < n; i += 3) set.z[i * d + i % d] = i % 2 ? INFINITY : NAN;
  for (int64_t i = 0; i < k; i += 5) set.codes[i * d + i % d] = i % 2 ? -INFINITY : NAN;
  for (int64_t i = 1; i < k; i += 7) {
    for (int64_t j = 0; j < d; ++j) set.codes[i * d + j] *= 1e30f;
  }
  return set;
}

inline double distance(const float* z, const float* e, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double difference = static_cast<double>(z[d]) - static_cast<double>(e[d]);
    sum += difference * difference;
  }
  return sum;
}

// The definition: smallest float64 distance, lowest index on ties, never NaN.
inline int64_t nearest(const Set& set, int64_t row) {
  double best = INFINITY;
  int64_t index = 0;
  for (int64_t k = 0; k < set.num_codes; ++k) {
    const double candidate = distance(&set.z[row * set.dim], &set.codes[k * set.dim], set.dim);
    if (candidate < best) {
      best = candidate;
      index = k;
    }
  }
  return index;
}

}  // namespace search_data
