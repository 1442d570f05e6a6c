// The CUDA noise kernel against the CPU's, bit for bit, and against published words of Philox.
#include <string.h>

#include "../../cpu/counter_noise-inl.h"
#include "../../cuda/gumbel_noise.cu"
#include "device_array.h"

namespace {

using namespace cuda_test;
using vqvae2_fast::cuda::GumbelNoise;

Checks check;

std::vector<int64_t> strided(const std::vector<int64_t>& values, int64_t stride) {
  std::vector<int64_t> result(values.size() * static_cast<size_t>(stride), -1);
  for (size_t i = 0; i < values.size(); ++i) result[i * stride] = values[i];
  return result;
}

void compare(const char* what, const std::vector<int64_t>& samples, int64_t sample_stride,
             const std::vector<int64_t>& positions, int64_t position_stride, int64_t codes) {
  constexpr uint64_t kSeed = 0x123456789ABCDEFull;
  constexpr uint32_t kStream = 2;
  const size_t rows = samples.size() * positions.size();
  DeviceArray<int64_t> sample_numbers(strided(samples, sample_stride));
  DeviceArray<int64_t> position_numbers(strided(positions, position_stride));
  DeviceArray<float> noise(std::vector<float>(rows * codes, NAN));
  const GumbelNoise args = {.samples = sample_numbers.data(),
                            .sample_stride = sample_stride,
                            .batch = static_cast<int64_t>(samples.size()),
                            .positions = position_numbers.data(),
                            .position_stride = position_stride,
                            .length = static_cast<int64_t>(positions.size()),
                            .num_embeddings = codes,
                            .seed = kSeed,
                            .stream = kStream,
                            .noise = noise.data()};
  must(vq_gumbel_noise_cuda(args, nullptr));
  std::vector<float> expected(rows * codes);
  for (size_t row = 0; row < rows; ++row) {
    vqvae2_fast::cpu::fill_gumbel(kSeed, static_cast<uint32_t>(samples[row / positions.size()]),
                                  static_cast<uint32_t>(positions[row % positions.size()]), kStream,
                                  codes, &expected[row * codes]);
  }
  const std::vector<float> got = noise.values();
  check(memcmp(got.data(), expected.data(), expected.size() * sizeof(float)) == 0, what);
}

// Launches as the launcher does if there are more counters than threads in its grid.
void test_several_passes() {
  constexpr int64_t kCodes = 103, kPositions = 30;
  auto sample = zeros<int64_t>(1);
  std::vector<int64_t> numbers(kPositions);
  for (int64_t i = 0; i < kPositions; ++i) numbers[i] = i;
  DeviceArray<int64_t> positions(numbers);
  auto noise = zeros<float>(kPositions * kCodes);
  const GumbelNoise args = {.samples = sample.data(),
                            .batch = 1,
                            .positions = positions.data(),
                            .length = kPositions,
                            .num_embeddings = kCodes,
                            .seed = 1,
                            .noise = noise.data()};
  LaunchShape shape;
  shape.grid = dim3(3);
  shape.block = dim3(64);
  must(launch("gumbel_noise_kernel", vqvae2_fast::cuda::gumbel_noise_kernel, shape, args));
  std::vector<float> expected(kPositions * kCodes);
  for (int64_t i = 0; i < kPositions; ++i) {
    vqvae2_fast::cpu::fill_gumbel(1, 0, static_cast<uint32_t>(i), 0, kCodes, &expected[i * kCodes]);
  }
  check(noise.values() == expected, "more counters than threads");
}

void test_published_words() {
  // kat_vectors of Random123: philox4x32 10, counter and key of zeros, then of ones.
  const vqvae2_fast::Words4 zeros = vqvae2_fast::philox4x32(0, 0, 0, 0, 0);
  const uint32_t of_zeros[4] = {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u};
  const vqvae2_fast::Words4 ones = vqvae2_fast::philox4x32(~0u, ~0u, ~0u, ~0u, ~uint64_t{0});
  const uint32_t of_ones[4] = {0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu};
  check(memcmp(zeros.w, of_zeros, sizeof(of_zeros)) == 0, "Philox of zeros");
  check(memcmp(ones.w, of_ones, sizeof(of_ones)) == 0, "Philox of ones");
}

}  // namespace

int main() {
  test_published_words();
  compare("one row", {0}, 1, {0}, 1, 512);
  compare("a number of codes that fills no counter", {3, 1}, 1, {7, 0, 9}, 1, 37);
  compare("a single code", {5}, 1, {2, 3}, 1, 1);
  compare("strided samples and positions", {4, 8, 15}, 2, {16, 23, 42}, 3, 10);
  compare("the largest position", {4294967295}, 1, {4294967295}, 1, 9);
  test_several_passes();
  check(vq_gumbel_noise_cuda({.num_embeddings = 5}, nullptr) == nullptr, "nothing to do");
  return check.finish("gumbel_noise_test");
}
