// The CPU sampler without torch, at every SIMD level this CPU has: a draw is the same, bit for bit,
// at every level, with any number of threads, in any batch, and when its codes are
// known or read from a stream. The engine's numbers are tested from Python. .ci/sanitizers builds
// and runs it.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <fstream>

#include "../cpu/kernels.h"
#include "sampler/random_plan.h"

namespace {

using namespace sampler_test;
using vqvae2_fast::cpu::kernels;
using vqvae2_fast::cpu::set_simd_level;
using vqvae2_fast::cpu::simd_levels;
using vqvae2_fast::cpu::sampler::Buffer;

constexpr const char* kFormats[] = {"float32", "quads"};

int failures = 0;
std::string subject;  // of the checks: a prior and its format

void check(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  printf("FAILED at %s: %s, %s\n", kernels().name, subject.c_str(), what);
}

// Whether `part` is what `whole` has from a sample on.
template <class T>
bool within(const std::vector<T>& part, const std::vector<T>& whole, int64_t sample, int64_t size) {
  return memcmp(part.data(), whole.data() + sample * size, part.size() * sizeof(T)) == 0;
}

void check_same(const Drawn& part, const Drawn& whole, const char* what, int64_t sample = 0) {
  constexpr int64_t kSize = RandomPlan::kPositions;
  check(within(part.codes, whole.codes, sample, kSize) &&
            within(part.logits, whole.logits, sample, kSize * RandomPlan::kCodes) &&
            within(part.log_prob, whole.log_prob, sample, kSize) &&
            within(part.intervals, whole.intervals, sample, kSize),
        what);
}

// Each sample's codes as a stream.
std::vector<std::vector<uint32_t>> encoded(const Drawn& drawn) {
  std::vector<std::vector<uint32_t>> streams;
  for (size_t i = 0; i < drawn.intervals.size(); i += RandomPlan::kPositions) {
    vqvae2_fast::RangeEncoder encoder;
    for (int64_t p = 0; p < RandomPlan::kPositions; ++p) encoder.encode(drawn.intervals[i + p]);
    encoder.finish();
    streams.push_back(encoder.words());
  }
  return streams;
}

void test_draws(const RandomPlan& plan, const Drawn& drawn) {
  check(!drawn.too_large, "finite logits");
  // More threads than samples share each position; others draw samples of their own.
  check_same(plan.draw({.batch = 1, .first_sample = 1, .threads = 3}), drawn, "three threads", 1);
  check_same(plan.draw({.threads = 2}), drawn, "two threads side by side");

  std::vector<int64_t> known = drawn.codes;
  check_same(plan.draw({.columns = 3, .known = known}), drawn, "three columns at once");
  check_same(plan.draw({.batch = 1, .columns = 9, .threads = 2, .known = known}), drawn,
             "rows at once, two threads");
  for (size_t i = 0; i < known.size(); i += 3) known[i] = -1;
  check_same(plan.draw({.known = known}), drawn, "known codes");

  const Drawn read = plan.draw({.threads = 2, .streams = encoded(drawn)});
  check(read.finished, "streams read to their ends");
  check_same(read, drawn, "codes read from streams");
}

void test_filters(const RandomPlan& plan, bool guided) {
  const Rule rule = {.temperature = 0.7f, .top_k = 9, .top_p = 0.8f, .guidance = 1.5f};
  const Drawn drawn = plan.draw({.batch = 2, .guided = guided, .rule = rule});
  check_same(
      plan.draw({.batch = 1, .first_sample = 1, .guided = guided, .threads = 2, .rule = rule}),
      drawn, "filters, two threads", 1);
}

// With top-k 1, whether each code is the best of those whose logits are numbers.
bool keeps_the_best(const Drawn& drawn) {
  for (size_t at = 0; at < drawn.codes.size(); ++at) {
    const float* logits = drawn.logits.data() + at * RandomPlan::kCodes;
    for (int64_t k = 0; k < RandomPlan::kCodes; ++k) {
      if (!isnan(logits[k]) && !(logits[drawn.codes[at]] >= logits[k])) return false;
    }
  }
  return true;
}

// Logits that are not numbers are told of, and nothing outside the memory is touched.
void test_not_finite(const RandomPlan& plan) {
  float* bias = plan.plan().memory("head.bias");
  const std::vector<float> kept(bias, bias + RandomPlan::kCodes);
  const Rule filtered = {.top_k = 9, .top_p = 0.8f};
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t step : {1, 2}) {
      for (int64_t k = 0; k < RandomPlan::kCodes; k += step) bias[k] = value;
      const Drawn drawn = plan.draw({.batch = 1});
      check(drawn.too_large, "logits that are not finite");
      check(plan.draw({.batch = 1, .rule = filtered}).too_large, "filtered ones");
      check(plan.draw({.batch = 1, .streams = encoded(drawn)}).too_large, "decoded ones");
      if (isnan(value) && step == 2) {
        check(keeps_the_best(plan.draw({.batch = 1, .rule = {.top_k = 1}})), "top-k beside NaN");
      }
      std::copy(kept.begin(), kept.end(), bias);
    }
  }
}

// Whether the kernel has an advice for the memory at an address: "hg", huge pages, or "nh", none.
bool is_advised(const float* memory, const char* advice) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2) {
      inside = begin <= address && address < end;
    } else if (inside && line.rfind("VmFlags:", 0) == 0) {
      return (line + " ").find(std::string(" ") + advice + " ") != std::string::npos;
    }
  }
  return false;
}

// From now on all memory is in small pages.
void test_small_pages() {
  subject = "memory";
  const Buffer buffer(int64_t{4} << 20);
  const float* const last = buffer.data() + buffer.size() - 1;
  if (!is_advised(last, "hg")) return;  // a system without huge pages, or one that does not tell
  buffer.populate(0, 1, /*patience=*/0);
  check(std::all_of(buffer.data(), buffer.data() + buffer.size(), [](float x) { return x == 0; }),
        "zeros");
  check(is_advised(buffer.data(), "hg"), "the first page is a huge one");
  check(is_advised(last, "nh"), "small pages after two that took their time");
  buffer.merge_pages();
  check(is_advised(last, "hg"), "they may be merged later");
  const Buffer later(buffer.size());
  check(is_advised(later.data(), "nh"), "later memory in small pages");
}

void test(const Kind& kind, Format format) {
  subject = std::string(kind.name) + " in " + kFormats[static_cast<int64_t>(format)];
  const RandomPlan plan(kind, format);
  Drawn of_scalar;
  for (const char* const* level = simd_levels(); *level; ++level) {
    set_simd_level(*level);
    const Drawn drawn = plan.draw({});
    if (of_scalar.codes.empty()) of_scalar = drawn;
    check_same(drawn, of_scalar, "scalar");
    // Scalar code is slow under the sanitizers. Where there are other levels, a program of its own
    // tests the rest of it.
    if (level == simd_levels() && level[1]) continue;
    test_draws(plan, drawn);
    test_filters(plan, kind.classes);
    test_not_finite(plan);
  }
}

}  // namespace

// Tests all kinds of priors, or the one whose name is given.
int main(int argc, char** argv) {
  const Kind kinds[] = {
      {.name = "attention"},
      {.name = "a condition", .attention = false, .condition = true, .output_layers = 0},
      {.name = "everything", .condition = true, .classes = true},
      {.name = "taps at the position", .reads_itself = true, .classes = true},
      {.name = "several rows at once", .reads_itself = true, .attention = false},
  };
  bool found = argc == 1;
  for (const Kind& kind : kinds) {
    if (argc > 1 && strcmp(argv[1], kind.name) != 0) continue;
    found = true;
    test(kind, Format::kFloat32);
    test(kind, Format::kQuads);
  }
  check(found, "there is a kind of that name");
  test_small_pages();
  printf("%d failures\n", failures);
  return failures != 0;
}
