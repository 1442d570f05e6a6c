// Tests what csrc/cuda/portable.h offers. The same program is built by a host compiler on the
// harness and by nvcc; on a GPU it shows whether the harness models the instructions correctly.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../cuda/portable.h"
#include "device_array.h"
#include "matrix_kernels.cuh"
#include "resident_kernels.cuh"
#include "warp_kernels.cuh"

namespace {

using namespace cuda_test;
using namespace vqvae2_fast::cuda;

Checks check;

LaunchShape shape_of(unsigned blocks, unsigned threads, size_t shared_bytes = 0) {
  LaunchShape shape;
  shape.grid = dim3(blocks);
  shape.block = dim3(threads);
  shape.shared_bytes = shared_bytes;
  return shape;
}

LaunchShape cooperative(unsigned blocks, unsigned threads, size_t shared_bytes = 0) {
  LaunchShape shape = shape_of(blocks, threads, shared_bytes);
  shape.cooperative = true;
  return shape;
}

void test_collectives() {
  constexpr int kThreads = 80;  // the last warp has only half of its lanes
  auto results = zeros<uint32_t>(kThreads * kCollectives);
  must(launch("collectives_kernel", collectives_kernel, shape_of(1, kThreads), results.data()));
  const std::vector<uint32_t> got = results.values();
  int wrong[kCollectives] = {};
  for (int i = 0; i < kThreads; ++i) {
    const int warp = i / 32, lane = i % 32, lanes = warp == 2 ? 16 : 32;
    const auto value = [&](int l) { return static_cast<uint32_t>(warp * 100 + l * l % 17); };
    uint32_t sum = 0, smallest = ~0u, votes = 0, equal = 0;
    for (int l = 0; l < lanes; ++l) {
      sum += value(l);
      smallest = value(l) < smallest ? value(l) : smallest;
      votes |= value(l) % 2 != 0 ? 1u << l : 0;
      equal |= value(l) == value(lane) ? 1u << l : 0;
    }
    const uint32_t expected[kCollectives] = {
        value(lane ^ 5),
        lane % 16 + 3 < 16 ? value(lane + 3) : value(lane),
        lane % 8 >= 2 ? value(lane - 2) : value(lane),
        value(lane / 4 * 4 + 1),
        sum,
        smallest,
        votes,
        equal,
        votes != 0,
        false,
        static_cast<uint32_t>(lane < 8 ? 28 : 0),
    };
    for (int c = 0; c < kCollectives; ++c) wrong[c] += got[i * kCollectives + c] != expected[c];
  }
  for (int c = 0; c < kCollectives; ++c) check(wrong[c] == 0, kCollectiveNames[c]);
}

void test_block_barriers() {
  auto results = zeros<int>(3 * 96);
  LaunchShape shape = shape_of(1, 96);
  shape.block = dim3(4, 8, 3);
  must(launch("votes_kernel", votes_kernel, shape, results.data()));
  const std::vector<int> got = results.values();
  bool counts = true, all = true, any = true;
  for (int i = 0; i < 96; ++i) {
    counts &= got[3 * i] == 40;
    all &= got[3 * i + 1] == 1;
    any &= got[3 * i + 2] == 0;
  }
  check(counts, "__syncthreads_count over a block of three dimensions");
  check(all, "__syncthreads_and");
  check(any, "__syncthreads_or");
}

void test_barrier_of_the_first() {
  auto words = zeros<int>(96);
  must(launch("first_warps_kernel", first_warps_kernel, shape_of(1, 96), words.data()));
  const std::vector<int> got = words.values();
  bool right = true;
  for (int t = 0; t < 96; ++t) right &= got[t] == (t < 64 ? 3 : 6);
  check(right, "a barrier of a block's first warps, and then of all");
}

void test_atomics() {
  auto words = zeros<AtomicWords>(1);
  must(launch("atomics_kernel", atomics_kernel, shape_of(3, 64), words.data()));
  const AtomicWords got = words.values()[0];
  check(got.sum == 192 * 191 / 2, "atomicAdd of unsigned");
  check(got.signed_sum == -192, "atomicSub of int");
  check(got.float_sum == 96.0f, "atomicAdd of float");
  check(got.wide_sum == 192ull << 33, "atomicAdd of unsigned long long");
  check(got.smallest == -191 && got.largest == 191, "atomicMin and atomicMax");
  check(got.bits == 0xFFu, "atomicOr");
  check(got.product == 1u << 6, "atomicCAS");
}

void test_pipeline() {
  constexpr int kTiles = 7;
  std::vector<float> input(kTiles * 128);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 61);
  DeviceArray<float> in(input);
  auto out = zeros<float>(128);
  must(launch("pipeline_kernel", pipeline_kernel, shape_of(1, 32, 3 * 128 * sizeof(float)),
              in.data(), out.data(), kTiles, 100));
  const std::vector<float> got = out.values();
  bool right = true;
  for (int i = 0; i < 128; ++i) {
    float sum = 0;
    for (int tile = 0; tile < kTiles; ++tile) sum += i < 100 ? input[tile * 128 + i] : 0;
    right &= got[i] == sum;
  }
  check(right, "cp.async in three groups, zeros past the end");
}

void test_matrices() {
  std::vector<uint16_t> a(16 * 32), b(8 * 32);
  std::vector<float> a32(16 * 16), b32(16 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = bf16_bits(static_cast<float>(i * 37 % 101) / 16 - 3);
  for (size_t i = 0; i < b.size(); ++i) b[i] = bf16_bits(static_cast<float>(i * 53 % 97) / 32 - 1);
  for (size_t i = 0; i < a32.size(); ++i) a32[i] = static_cast<float>(i * 31 % 89) / 8 - 4;
  for (size_t i = 0; i < b32.size(); ++i) b32[i] = static_cast<float>(i * 29 % 83) / 8 - 5;
  DeviceArray<uint16_t> da(a), db(b);
  DeviceArray<float> da32(a32), db32(b32);
  auto products = zeros<float>(2 * 128);
  must(launch("matrix_kernel", matrix_kernel, shape_of(1, 32), da.data(), db.data(), da32.data(),
              db32.data(), products.data()));
  const std::vector<float> got = products.values();
  // Small multiples of a power of two: sums are exact in any order.
  bool bf16 = true, tf32 = true;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0, expected32 = 0;
      for (int k = 0; k < 32; ++k) {
        expected += float_of_bf16(a[row * 32 + k]) * float_of_bf16(b[column * 32 + k]);
      }
      for (int k = 0; k < 16; ++k) expected32 += a32[row * 16 + k] * b32[k * 8 + column];
      bf16 &= got[row * 8 + column] == expected;
      tf32 &= got[128 + row * 8 + column] == expected32;
    }
  }
  check(bf16, "mma_bf16 on fragments of load_matrix_x4");
  check(tf32, "mma_tf32");
}

void test_formats() {
  const std::vector<float> values = {1.0f,     1.00390625f, 1.01171875f, 1.0039063f,
                                     -2.5f,    3.3e38f,     1e-40f,      0.0f,
                                     INFINITY, -INFINITY,   1.000488f,   1.00048828125f};
  DeviceArray<float> in(values);
  auto out = zeros<float>(2 * values.size());
  must(launch("formats_kernel", formats_kernel, shape_of(1, 32), in.data(), out.data(),
              static_cast<int>(values.size())));
  const std::vector<float> got = out.values();
  bool bf16 = true, tf32 = true;
  for (size_t i = 0; i < values.size(); ++i) {
    bf16 &= got[2 * i] == float_of_bf16(bf16_bits(values[i]));
    tf32 &= got[2 * i + 1] == rounded_to_tf32(values[i]);
  }
  check(bf16, "pack_bf16x2 rounds to nearest even");
  check(tf32, "to_tf32 rounds ties away from zero");
}

void test_flags_of_all_blocks() {
  constexpr unsigned kBlocks = 12, kThreads = 64, kSteps = 9;
  constexpr unsigned kSize = kBlocks * kThreads;
  DeviceArray<uint32_t> values(std::vector<uint32_t>(2 * kSize, 1));
  auto flags = zeros<uint32_t>(kBlocks);
  must(launch("mixing_kernel", mixing_kernel, cooperative(kBlocks, kThreads), values.data(),
              flags.data(), kSteps));
  std::vector<uint32_t> now(kSize, 1), next(kSize);
  for (unsigned step = 0; step < kSteps; ++step) {
    for (unsigned i = 0; i < kSize; ++i) next[i] = mixed(now[i], now[(i * 7 + 13) % kSize]);
    now.swap(next);
  }
  const std::vector<uint32_t> got = values.values();
  check(memcmp(&got[kSteps % 2 * kSize], now.data(), kSize * sizeof(uint32_t)) == 0,
        "flags of all blocks between steps that read every block's values");
}

void test_flags() {
  constexpr unsigned kBlocks = 6, kThreads = 64, kRounds = 20;
  auto values = zeros<float>(kBlocks * kThreads);
  auto flags = zeros<uint32_t>(kBlocks);
  must(launch("ring_kernel", ring_kernel, cooperative(kBlocks, kThreads), values.data(),
              flags.data(), kRounds));
  const std::vector<float> got = values.values();
  bool right = true;
  for (unsigned i = 0; i < kThreads; ++i) {
    right &= got[(kBlocks - 1) * kThreads + i] == static_cast<float>(i + kBlocks * kRounds - 1);
  }
  check(right, "a ring of blocks that hand each other values by flags");

  auto flag = zeros<uint32_t>(1);
  auto times = zeros<uint64_t>(2);
  must(launch("clock_kernel", clock_kernel, cooperative(2, 1), flag.data(), times.data()));
  const std::vector<uint64_t> read = times.values();
  check(read[0] > 0 && read[1] >= read[0], "nanoseconds is one clock for all blocks");
}

void test_last_block() {
  constexpr unsigned kBlocks = 10;
  auto partial = zeros<float>(kBlocks), total = zeros<float>(1);
  auto done = zeros<uint32_t>(1);
  must(launch("last_block_kernel", last_block_kernel, shape_of(kBlocks, 64), partial.data(),
              done.data(), total.data()));
  check(total.values()[0] == kBlocks * (kBlocks + 1) / 2 * 64,
        "the last block sums what the others left, by __threadfence and an atomic");
}

void test_launch_errors() {
  auto results = zeros<int>(8);
  LaunchShape shape = shape_of(1, 2048);
  const char* error = launch("votes_kernel", votes_kernel, shape, results.data());
  check(error != nullptr && strstr(error, "votes_kernel") != nullptr &&
            strstr(error, "2048") != nullptr,
        "too many threads: the error names kernel and shape");
  shape = shape_of(1, 32, 1 << 20);
  check(launch("votes_kernel", votes_kernel, shape, results.data()) != nullptr,
        "too much shared memory is an error");
  const int most = co_resident_blocks(votes_kernel, 1024, 0);
  check(most > 0, "co_resident_blocks");
  error = launch("votes_kernel", votes_kernel, cooperative(most + 1, 1024), results.data());
  check(error != nullptr && strstr(error, "too many blocks") != nullptr,
        "a cooperative launch larger than the card is an error");
  constexpr int kFloats = (100 << 10) / sizeof(float);
  auto out = zeros<float>(64);
  error = launch("large_shared_kernel", large_shared_kernel,
                 shape_of(1, 64, kFloats * sizeof(float)), out.data(), kFloats);
  check(error == nullptr && out.values()[63] == kFloats - 64, "100 KiB of dynamic shared memory");
}

void test_why_not_runnable() {
  check(why_not_runnable(votes_kernel) == nullptr, "a kernel of this build runs on this device");
#if defined(CUDA_ON_CPU)
  const auto tells = [](const char* failure, const char* expected) {
    setenv("CUDA_ON_CPU_FAIL", failure, 1);
    const char* reason = why_not_runnable(votes_kernel);
    unsetenv("CUDA_ON_CPU_FAIL");
    return reason != nullptr && strstr(reason, expected) != nullptr &&
           cudaGetLastError() == cudaSuccess;
  };
  check(tells("cudaGetDevice:35", "supports CUDA 12.4 and the kernels were built with CUDA 13.0"),
        "a driver that is too old, with both versions");
  check(tells("cudaGetDevice:100", "no CUDA-capable device"), "no device");
  check(tells("cudaFuncGetAttributes:209", "no kernels for compute capability 9.0"),
        "a card that the build has no kernels for");
#endif
}

}  // namespace

int main() {
  test_collectives();
  test_block_barriers();
  test_barrier_of_the_first();
  test_atomics();
  test_pipeline();
  test_matrices();
  test_formats();
  test_flags_of_all_blocks();
  test_flags();
  test_last_block();
  test_launch_errors();
  test_why_not_runnable();
  return check.finish("portable_test");
}
