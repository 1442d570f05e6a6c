#include "plan.h"

#include <string.h>

#include <algorithm>
#include <stdexcept>

#include "../threads/team.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

constexpr int64_t kLineBytes = 64;

// Finds the description's tensors in one block, one after another, and checks each size, because
// the kernels trust them.
class Reader {
 public:
  Reader(const Description& description, const float* words, std::map<std::string, Place>& places)
      : description_(description), words_(words), places_(places) {}

  static int64_t size_of(const Description& description) {
    int64_t size = 0;
    for (const auto& [name, tensor] : description.tensors) size += padded(tensor.size);
    return size;
  }

  const std::vector<int64_t>& list(const std::string& name) const {
    const auto found = description_.integers.find(name);
    if (found == description_.integers.end()) fail("no '" + name + "'");
    return found->second;
  }

  int64_t integer(const std::string& name) const {
    if (list(name).size() != 1) fail("'" + name + "' is not one integer");
    return list(name)[0];
  }

  const float* tensor(const std::string& name, int64_t size) {
    const auto found = description_.tensors.find(name);
    if (found == description_.tensors.end()) fail("no tensor '" + name + "'");
    if (found->second.size != size) {
      fail("tensor '" + name + "': expected " + std::to_string(size) + " values, got " +
           std::to_string(found->second.size));
    }
    const int64_t start = next_;
    places_[name] = {start, size};
    next_ += padded(size);
    return words_ + start;
  }

  // Of all but the conditioning stack, which is float32.
  Format format() const {
    const auto format = static_cast<Format>(integer("format"));
    if (format != Format::kFloat32 && format != Format::kQuads) fail("unknown format");
    return format;
  }

  Matrices matrices(const std::string& name, Format format, int64_t count, int64_t inputs,
                    int64_t outputs, bool with_bias = true) {
    Matrices m;
    m.inputs = inputs;
    m.panels = panels_of(name, outputs);
    m.format = format;
    m.weights = tensor(name + ".weight", count * m.panels * m.panel_stride());
    if (with_bias) m.biases = tensor(name + ".bias", count * m.outputs());
    m.scales = scales(name, format, count * m.outputs());
    m.input_scales = input_scales(name, format, count * scaled_inputs(inputs));
    return m;
  }

  Convolutions convolutions(const std::string& name, Format format, const Taps& taps, int64_t count,
                            int64_t channels, int64_t outputs) {
    Convolutions c;
    c.channels = channels;
    c.panels = panels_of(name, outputs);
    c.format = format;
    c.above = tensor(name + ".above", count * c.panels * taps.rows_above *
                                          panel_words(c.format, taps.num_columns * channels));
    c.current = tensor(name + ".current",
                       count * taps.num_current * c.panels * panel_words(c.format, channels));
    c.biases = tensor(name + ".bias", count * c.outputs());
    c.scales = scales(name, format, count * c.outputs());
    c.input_scales = input_scales(name, format, count * channels);
    return c;
  }

  PointwiseLayers pointwise(const std::string& name, Format format, int64_t count, int64_t inputs,
                            int64_t inner, int64_t out_channels) {
    return {matrices(name + ".first", format, count, inputs, inner),
            matrices(name + ".second", format, count, inner, 2 * out_channels)};
  }

 private:
  const float* scales(const std::string& name, Format format, int64_t size) {
    return format == Format::kQuads ? tensor(name + ".scale", size) : nullptr;
  }

  const float* input_scales(const std::string& name, Format format, int64_t size) {
    return format == Format::kQuads ? tensor(name + ".input_scale", size) : nullptr;
  }

  [[noreturn]] static void fail(const std::string& what) {
    throw std::invalid_argument("sampler: bad plan: " + what + ".");
  }

  static int64_t panels_of(const std::string& name, int64_t outputs) {
    if (outputs < kPanel || outputs % kPanel) fail("'" + name + "' has no whole panels");
    return outputs / kPanel;
  }

  // Each tensor starts a cache line.
  static int64_t padded(int64_t size) { return rounded_up(size, kLineBytes / sizeof(float)); }

  const Description& description_;
  const float* words_;
  int64_t next_ = 0;
  std::map<std::string, Place>& places_;
};

}  // namespace

Plan::Plan(const Description& description, int threads) : memory_(Reader::size_of(description)) {
  Team(threads).run([&](int thread) { memory_.populate(thread, threads); });
  memory_.merge_pages();
  read(description);
  for (const auto& [name, tensor] : description.tensors) {
    if (tensor.data && places_.count(name)) {
      memcpy(memory(name), tensor.data, tensor.size * sizeof(float));
    }
  }
}

int64_t Plan::reach() const {
  int64_t columns = taps.right();
  for (const auto& [row, column] : stem.above_offsets) columns = std::max(columns, column);
  return columns;
}

float* Plan::memory(const std::string& name) const {
  return memory_.data() + places_.at(name).start;
}

float* Plan::memory(const std::string& name, int64_t size) const {
  if (places_.at(name).size < size) {
    throw std::invalid_argument("sampler: tensor '" + name + "' has fewer than " +
                                std::to_string(size) + " words.");
  }
  return memory(name);
}

void Plan::read(const Description& description) {
  Reader read(description, memory_.data(), places_);
  const Format format = read.format();
  height = read.integer("height");
  width = read.integer("width");
  num_embeddings = read.integer("num_embeddings");
  num_classes = read.integer("num_classes");
  num_labels = read.integer("num_labels");
  channels = read.integer("channels");
  const int64_t inner = read.integer("inner_channels");
  num_layers = read.integer("num_layers");
  layers_per_block = read.integer("layers_per_block");
  num_blocks = num_layers / layers_per_block;
  num_output_layers = read.integer("num_output_layers");

  const std::vector<int64_t>& offsets = read.list("stem.above_offsets");
  for (size_t t = 0; t + 1 < offsets.size(); t += 2) {
    stem.above_offsets.emplace_back(offsets[t], offsets[t + 1]);
  }
  stem.num_left = read.integer("stem.num_left");
  const int64_t above_taps = static_cast<int64_t>(stem.above_offsets.size());
  stem.above = read.tensor("stem.above", above_taps * num_embeddings * channels);
  stem.left = read.tensor("stem.left", stem.num_left * num_embeddings * channels);
  stem.bias = read.tensor("stem.bias", height * width * channels);
  background = read.tensor("background", height * width * 2);

  taps.rows_above = read.integer("taps.rows_above");
  taps.first_column = read.integer("taps.first_column");
  taps.num_columns = read.integer("taps.num_columns");
  taps.first_current = read.integer("taps.first_current");
  taps.num_current = read.integer("taps.num_current");
  conv1 = read.convolutions("conv1", format, taps, num_layers, channels, inner);
  conv2 = read.convolutions("conv2", format, taps, num_layers, inner, 2 * channels);
  if (num_labels > 0) {
    classes = read.tensor("classes", num_layers * num_labels * conv2.outputs());
  }

  attention.num_heads = read.integer("attention.num_heads");
  if (attention.num_heads > 0) {
    attention.head_dim = read.integer("attention.head_dim");
    const int64_t all = attention.num_heads * attention.head_dim;
    const int64_t padded = rounded_up(all);
    const int64_t padded_pair = rounded_up(2 * all);
    const int64_t attention_inner = read.integer("attention.inner_channels");
    attention.key = read.pointwise("attention.key", format, num_blocks, 2 * channels + 2,
                                   attention_inner, joined());
    attention.query = read.pointwise("attention.query", format, num_blocks, channels + 2,
                                     attention_inner, joined() - channels);
    attention.out = read.pointwise("attention.out", format, num_blocks, channels + all,
                                   attention_inner, channels);
    attention.query_weight =
        read.matrices("attention.query_weight", format, num_blocks, channels + 2, padded);
    attention.key_value_weight = read.matrices("attention.key_value_weight", format, num_blocks,
                                               2 * channels + 2, padded_pair);
  } else {
    merge = read.matrices("merge", format, num_blocks, channels + 2, channels);
  }
  if (num_output_layers > 0) {
    output = read.pointwise("output", format, num_output_layers, channels,
                            read.integer("output.inner_channels"), channels);
  }
  head = read.matrices("head", format, 1, channels, rounded_up(num_embeddings));

  const std::vector<int64_t>& sizes = read.list("condition.sizes");
  if (sizes.empty()) return;
  condition.kernel = read.integer("condition.kernel");
  condition.channels = read.integer("condition.channels");
  condition.num_layers = read.integer("condition.num_layers");
  condition.down = read.integer("condition.down");
  condition.right = read.integer("condition.right");
  const int64_t condition_inner = read.integer("condition.inner_channels");
  const int64_t area = condition.kernel * condition.kernel;
  for (size_t m = 0; 2 * m + 1 < sizes.size(); ++m) {
    const std::string name = "condition.stem" + std::to_string(m);
    condition.maps.push_back(
        {.height = sizes[2 * m],
         .width = sizes[2 * m + 1],
         .stem = read.tensor(name + ".table", area * num_embeddings * condition.channels),
         .bias = read.tensor(name + ".bias", condition.channels)});
  }
  if (condition.num_layers > 0) {
    condition.first = read.matrices("condition.first", Format::kFloat32, condition.num_layers,
                                    area * condition.channels, condition_inner);
    condition.second = read.matrices("condition.second", Format::kFloat32, condition.num_layers,
                                     area * condition_inner, 2 * condition.channels);
  }
  layer_condition = read.matrices("layer_condition", Format::kFloat32, num_layers,
                                  condition.channels, conv2.outputs(), /*with_bias=*/false);
}

}  // namespace vqvae2_fast::cpu::sampler
