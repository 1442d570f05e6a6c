// The matrices of Winograd's convolutions by the Toom-Cook construction, computed by the compiler
// from their interpolation points; n = taps + 3 points, the last at infinity.
//
// y = A^T [(G w) * (B^T x)] for a tile of 4 outputs y, n inputs x and the taps w, in one dimension.
#pragma once

namespace vqvae2_fast::cpu::winograd {
namespace {

template <int kTaps>
struct Interpolation;
// Of the sets that were tried, these lose least: the error is 2.2 times that of direct sums for a
// 2x2 kernel, 2.4 times for 3x3 and 4.2 times for 5x5 (root mean square, 256 channels).
template <>
struct Interpolation<2> {
  static constexpr double kAt[4] = {0, -1, 0.5, 2};
};
template <>
struct Interpolation<3> {
  static constexpr double kAt[5] = {0, 1, -1, 0.5, -2};
};
template <>
struct Interpolation<5> {
  static constexpr double kAt[7] = {0, 1, -1, 2, -2, 0.5, -0.5};
};

template <int kRows, int kColumns>
struct Matrix {
  double at[kRows][kColumns];
};

constexpr double power(double base, int exponent) {
  double result = 1;
  for (int i = 0; i < exponent; ++i) result *= base;
  return result;
}

template <int kTaps, int kColumns>
constexpr Matrix<kTaps + 3, kColumns> powers() {
  constexpr int n = kTaps + 3;
  Matrix<n, kColumns> matrix{};
  for (int i = 0; i + 1 < n; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      matrix.at[i][j] = power(Interpolation<kTaps>::kAt[i], j);
    }
  }
  matrix.at[n - 1][kColumns - 1] = 1;
  return matrix;
}

template <int kTaps>
constexpr Matrix<kTaps + 3, kTaps> weight_matrix() {
  constexpr int n = kTaps + 3;
  auto matrix = powers<kTaps, kTaps>();
  for (int i = 0; i + 1 < n; ++i) {
    double divisor = 1;
    for (int j = 0; j + 1 < n; ++j) {
      if (j != i) divisor *= Interpolation<kTaps>::kAt[i] - Interpolation<kTaps>::kAt[j];
    }
    for (int j = 0; j < kTaps; ++j) matrix.at[i][j] /= divisor;
  }
  return matrix;
}

// Row i holds the coefficients of the product of (x - point) over all points but i.
template <int kTaps>
constexpr Matrix<kTaps + 3, kTaps + 3> input_matrix() {
  constexpr int n = kTaps + 3;
  Matrix<n, n> matrix{};
  for (int i = 0; i < n; ++i) {
    double coefficients[n] = {1};
    int degree = 0;
    for (int j = 0; j + 1 < n; ++j) {
      if (j == i) continue;
      ++degree;
      for (int k = degree; k > 0; --k) {
        coefficients[k] = coefficients[k - 1] - Interpolation<kTaps>::kAt[j] * coefficients[k];
      }
      coefficients[0] *= -Interpolation<kTaps>::kAt[j];
    }
    for (int k = 0; k < n; ++k) matrix.at[i][k] = coefficients[k];
  }
  return matrix;
}

template <int kRows, int kColumns>
constexpr Matrix<kColumns, kRows> transposed(const Matrix<kRows, kColumns>& matrix) {
  Matrix<kColumns, kRows> result{};
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) result.at[j][i] = matrix.at[i][j];
  }
  return result;
}

// A transform of kIn values into kOut.
template <int kTaps>
struct InputTransform {
  static constexpr int kOut = kTaps + 3, kIn = kTaps + 3;
  static constexpr auto kMatrix = input_matrix<kTaps>();
};
template <int kTaps>
struct InputAdjoint {
  static constexpr int kOut = kTaps + 3, kIn = kTaps + 3;
  static constexpr auto kMatrix = transposed(input_matrix<kTaps>());
};
template <int kTaps>
struct OutputTransform {
  static constexpr int kOut = 4, kIn = kTaps + 3;
  static constexpr auto kMatrix = transposed(powers<kTaps, 4>());
};
template <int kTaps>
struct OutputAdjoint {
  static constexpr int kOut = kTaps + 3, kIn = 4;
  static constexpr auto kMatrix = powers<kTaps, 4>();
};
template <int kTaps>
struct WeightTransform {
  static constexpr int kOut = kTaps + 3, kIn = kTaps;
  static constexpr auto kMatrix = weight_matrix<kTaps>();
};
template <int kTaps>
struct WeightAdjoint {
  static constexpr int kOut = kTaps, kIn = kTaps + 3;
  static constexpr auto kMatrix = transposed(weight_matrix<kTaps>());
};

}  // namespace
}  // namespace vqvae2_fast::cpu::winograd
