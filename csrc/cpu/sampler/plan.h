// A prior as packed weights: the plan of vqvae2_fast/sampling/plan.py in the form that the engine
// keeps.
//
// Every group of channels is padded with zeros to whole panels; weights of padded channels are
// zero, so padded activations stay zero. Outputs that go through a gate are ordered in panels of
// kHalfPanel values and kHalfPanel gates. `cpu_pack.py` of vqvae2_fast/sampling/engines says what
// is packed where, pack.h packs.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace vqvae2_fast::cpu::sampler {

// What a plan is made from: integers by name, and contiguous words of 4 bytes by name. Without data
// they are zeros, to be written through Plan::memory.
struct Description {
  struct Tensor {
    const float* data;
    int64_t size;
  };
  std::map<std::string, std::vector<int64_t>> integers;
  std::map<std::string, Tensor> tensors;
};

// Scales of inputs are stored to whole vectors.
constexpr int64_t scaled_inputs(int64_t inputs) { return rounded_up(inputs, kHalfPanel); }

// n matrices of one shape.
struct Matrices {
  const float* weights = nullptr;       // [n, panels, panel_stride]
  const float* biases = nullptr;        // [n, panels * kPanel]
  const float* scales = nullptr;        // [n, panels * kPanel] with kQuads, else null
  const float* input_scales = nullptr;  // [n, scaled_inputs(inputs)], likewise
  int64_t inputs = 0, panels = 0;
  Format format = Format::kFloat32;

  int64_t outputs() const { return panels * kPanel; }
  int64_t panel_stride() const { return panel_words(format, inputs); }
  const float* weight(int64_t n, int64_t panel) const {
    return weights + (n * panels + panel) * panel_stride();
  }
  const float* bias(int64_t n) const { return biases + n * outputs(); }
  const float* input_scale(int64_t n) const { return input_scales + n * scaled_inputs(inputs); }
  const float* scale(int64_t n, int64_t panel) const {
    return scales + n * outputs() + panel * kPanel;
  }
};

// n causal convolutions of one shape, with taps split into rows < i and row i.
struct Convolutions {
  const float* above = nullptr;         // [n, panels, rows_above], panels of num_columns * channels
  const float* current = nullptr;       // [n, num_current, panels], panels of `channels` inputs
  const float* biases = nullptr;        // [n, panels * kPanel]
  const float* scales = nullptr;        // as in Matrices; of all taps
  const float* input_scales = nullptr;  // [n, channels]
  int64_t channels = 0, panels = 0;
  Format format = Format::kFloat32;

  int64_t outputs() const { return panels * kPanel; }
  bool integer() const { return format == Format::kQuads; }
  const float* scale(int64_t n, int64_t panel) const {
    return scales + n * outputs() + panel * kPanel;
  }
};

// n pairs of pointwise layers of one shape, with an ELU between; the second produces gates.
struct PointwiseLayers {
  Matrices first, second;
};

// Where the taps of all causal convolutions are.
struct Taps {
  int64_t rows_above = 0, first_column = 0, num_columns = 0;  // of rows above
  int64_t first_current = 0, num_current = 0;                 // of the current row

  bool reads_itself() const { return num_current > 0 && first_current + num_current > 0; }
  // How many columns one reading of the tap at `offset` serves, given that it needs nothing nearer
  // than -offset. It is a power of two, so that a column gets its taps in one order, the farthest
  // first, as where several columns are computed at once.
  static int64_t columns_served(int64_t offset) {
    int64_t served = 1;
    while (2 * served <= -offset) served *= 2;
    return served;
  }
  int64_t most_served() const { return num_current > 0 ? columns_served(first_current) : 1; }
  int64_t left() const {
    const int64_t first = first_column < first_current ? first_column : first_current;
    return first < 0 ? -first : 0;
  }
  int64_t right() const {
    const int64_t last = first_column + num_columns - 1;
    return last > 0 ? last : 0;
  }
};

struct Stem {
  std::vector<std::pair<int64_t, int64_t>> above_offsets;
  const float* above = nullptr;  // [taps, K, channels]
  int64_t num_left = 0;          // columns -num_left .. -1
  const float* left = nullptr;   // [num_left, K, channels]
  const float* bias = nullptr;   // [H * W, channels]
};

struct Attention {
  int64_t num_heads = 0, head_dim = 0;
  PointwiseLayers key, query, out;
  Matrices query_weight, key_value_weight;
};

// The conditioning stack: stems of all maps, then residual layers at the finest map's size.
struct Condition {
  struct Map {
    int64_t height, width;
    const float* stem;  // [kernel * kernel, K, channels]
    const float* bias;  // [channels]
  };
  std::vector<Map> maps;
  int64_t kernel = 0, channels = 0, num_layers = 0;
  int64_t down = 1, right = 1;  // code rows and columns per row and column of the features
  Matrices first, second;       // inputs = kernel * kernel * channels, taps in raster order
};

// Where a tensor lies among a plan's words.
struct Place {
  int64_t start = 0, size = 0;
};

struct Plan {
  // Allocates its own memory, whose pages `threads` threads touch first.
  explicit Plan(const Description& description, int threads = 1);

  int64_t height, width, num_embeddings;
  int64_t num_classes;  // label num_classes is "no class"
  int64_t num_labels;
  int64_t channels;  // padded
  int64_t num_layers, layers_per_block, num_blocks, num_output_layers;
  Stem stem;
  const float* background;  // [H * W, 2]
  Taps taps;
  Convolutions conv1, conv2;
  const float* classes = nullptr;  // [layers, num_labels, conv2.outputs()] or null
  Matrices layer_condition;        // [layers]; weights null without a condition
  Attention attention;             // num_heads 0 without
  Matrices merge;                  // [blocks] without attention
  PointwiseLayers output;
  Matrices head;
  Condition condition;

  // How many columns to the right a position looks in the rows above.
  int64_t reach() const;
  // Channels of [x, y, coordinates], padded.
  int64_t joined() const { return 2 * channels + kPanel; }
  int64_t weight_bytes() const { return memory_.size() * static_cast<int64_t>(sizeof(float)); }
  // Where a tensor is kept. Throws std::out_of_range for a name that the plan does not read.
  float* memory(const std::string& name) const;
  // The same, of at least `size` words. Throws std::invalid_argument if there are fewer.
  float* memory(const std::string& name, int64_t size) const;
  int64_t size(const std::string& name) const { return places_.at(name).size; }

 private:
  void read(const Description& description);

  Buffer memory_;
  std::map<std::string, Place> places_;
};

}  // namespace vqvae2_fast::cpu::sampler
