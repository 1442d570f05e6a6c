// Decodes the streams of a dump (tools/codec_golden.py --dump) at every SIMD level, in several
// batches and on one and two threads: the codes must be those of the machine that wrote it. Without
// torch and Python; .ci/aarch64 runs it on an emulated Arm processor.
//
//     codec_test DIR/level0.dump DIR/level1.dump
//     codec_test --images 100 DIR/level0.dump DIR/level1.dump    # only the first images
//     codec_test --all DIR/level0.dump DIR/level1.dump     # every image in every way: slow
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/sampler/sampler.h"

namespace {

using namespace vqvae2_fast::cpu;

class Dump {
 public:
  explicit Dump(const char* path) : file_(fopen(path, "rb")) {
    if (!file_) {
      perror(path);
      exit(2);
    }
  }
  ~Dump() { fclose(file_); }
  Dump(const Dump&) = delete;
  Dump& operator=(const Dump&) = delete;

  int64_t number() { return values<int64_t>(1)[0]; }

  std::string name() {
    const std::vector<char> text = values<char>(number());
    return {text.begin(), text.end()};
  }

  template <class T>
  std::vector<T> array() {
    return values<T>(number());
  }

 private:
  template <class T>
  std::vector<T> values(int64_t count) {
    std::vector<T> found(count);
    if (fread(found.data(), sizeof(T), count, file_) != static_cast<size_t>(count)) {
      fprintf(stderr, "the dump is cut short\n");
      exit(2);
    }
    return found;
  }

  FILE* file_;
};

struct Level {
  std::map<std::string, std::vector<float>> tensors;
  sampler::Description description;
  int64_t images = 0, positions = 0;
  std::vector<int64_t> labels, codes;
  std::vector<std::vector<int64_t>> maps;
  std::vector<std::vector<uint32_t>> streams;

  explicit Level(Dump& dump) {
    const int64_t num_integers = dump.number(), num_tensors = dump.number();
    for (int64_t i = 0; i < num_integers; ++i) {
      const std::string name = dump.name();
      description.integers[name] = dump.array<int64_t>();
    }
    for (int64_t i = 0; i < num_tensors; ++i) {
      const std::string name = dump.name();
      tensors[name] = dump.array<float>();
    }
    for (const auto& [name, values] : tensors) {
      description.tensors[name] = {values.data(), static_cast<int64_t>(values.size())};
    }
    images = dump.number();
    const int64_t num_maps = dump.number();
    labels = dump.array<int64_t>();
    for (int64_t i = 0; i < num_maps; ++i) maps.push_back(dump.array<int64_t>());
    codes = dump.array<int64_t>();
    positions = static_cast<int64_t>(codes.size()) / images;
    for (int64_t i = 0; i < images; ++i) streams.push_back(dump.array<uint32_t>());
  }
};

struct Case {
  int64_t images, batch;
  int threads;
};

// Whether the first images decode to their codes, a batch at a time.
bool decodes(const Level& level, const sampler::Plan& plan, const Case& test) {
  const int64_t images = test.images < level.images ? test.images : level.images;
  std::vector<int64_t> found(images * level.positions);
  bool whole = true;
  for (int64_t first = 0; first < images; first += test.batch) {
    sampler::Request request;
    request.batch = images - first < test.batch ? images - first : test.batch;
    request.labels = level.labels.data() + first;
    for (const auto& map : level.maps) {
      request.maps.push_back(map.data() + first * (map.size() / level.images));
    }
    request.rule.temperature = 0.0f;
    request.codes = found.data() + first * level.positions;
    request.threads = test.threads;
    std::vector<vqvae2_fast::RangeDecoder> decoders;
    for (int64_t b = 0; b < request.batch; ++b) {
      const auto& stream = level.streams[first + b];
      decoders.emplace_back(stream.data(), stream.size());
    }
    request.decoders = decoders.data();
    sampler::draw_map(plan, request, [](int64_t) { return true; });
    for (const auto& decoder : decoders) whole = whole && decoder.finished();
  }
  return whole && std::equal(found.begin(), found.end(), level.codes.begin());
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && !strcmp(argv[1], "--all");
  const bool some = argc > 2 && !strcmp(argv[1], "--images");
  const int64_t images = some ? atoi(argv[2]) : 1000;
  const int first_dump = some ? 3 : all ? 2 : 1;
  // All images at once; then a few one at a time, with threads that share an image, and with
  // threads that take images of their own.
  std::vector<Case> cases = {{images, 64, 1}, {10, 1, 1}, {2, 1, 2}, {10, 10, 2}};
  if (all) cases = {{images, 1, 1}, {images, 64, 1}, {images, 1, 2}, {images, 64, 2}};
  int failures = 0;
  for (int number = first_dump; number < argc; ++number) {
    Dump dump(argv[number]);
    const Level level(dump);
    const sampler::Plan plan(level.description);
    for (const char* const* name = simd_levels(); *name; ++name) {
      set_simd_level(*name);
      for (const Case& test : cases) {
        const bool equal = decodes(level, plan, test);
        failures += !equal;
        printf("%s %s: %d images, %d at a time, %d threads: %s\n", argv[number], *name,
               static_cast<int>(test.images), static_cast<int>(test.batch), test.threads,
               equal ? "equal" : "FAILED");
      }
    }
  }
  const bool given = first_dump < argc && images > 0;
  if (!given) printf("usage: codec_test [--all | --images N] DUMP ...\n");
  return failures || !given;
}
