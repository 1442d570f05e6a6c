// The Python side of the sampler: an object that holds a plan's packed weights, and the draw.
//
// memory.h checks dtype, device and layout of each tensor, and each call the sizes: all that would
// be unsafe. Python has checked the values of a draw.
#include "../cpu/sampler/sampler.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/sampler/pack.h"
#include "../cpu/weights/content_hash.h"
#include "../cpu/weights/weight_norms.h"
#include "memory.h"

namespace py = pybind11;
namespace sampler = vqvae2_fast::cpu::sampler;

namespace {

using vqvae2_fast::bindings::Memory;
using Bytes = Memory<const unsigned char>;
using Floats = Memory<const float>;
using Integers = Memory<const int64_t>;

// A plan whose memory holds zeros, to be packed into.
std::unique_ptr<sampler::Plan> make_plan(
    const std::map<std::string, std::vector<int64_t>>& integers,
    const std::map<std::string, int64_t>& sizes, int threads) {
  sampler::Description description;
  description.integers = integers;
  for (const auto& [name, size] : sizes) description.tensors[name] = {nullptr, size};
  const py::gil_scoped_release no_gil;
  return std::make_unique<sampler::Plan>(description, threads);
}

// The memory of one of a plan's tensors, to be written.
py::memoryview memory_of(const sampler::Plan& plan, const std::string& name) {
  return py::memoryview::from_memory(plan.memory(name), plan.size(name) * sizeof(float));
}

// A tensor, the word of it where the first panel begins, first and number of taps, and the strides
// of matrices and panels.
using PackedBlock = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t>;

int64_t largest(const std::vector<int64_t>& places) {
  return places.empty() ? 0 : std::max<int64_t>(0, *std::max_element(places.begin(), places.end()));
}

// Packs matrices into the memory of a plan's tensors, which holds zeros: see pack.h. Without a name
// of scales, none are written.
void pack(const sampler::Plan& plan, int64_t format, const std::vector<Floats>& weights,
          const std::vector<Floats>& factors, int64_t output_stride,
          const std::vector<int64_t>& outputs, const std::vector<int64_t>& inputs,
          const std::vector<int64_t>& taps, const Floats& input_scales, const std::string& scales,
          const std::vector<PackedBlock>& blocks, int threads) {
  const auto count = static_cast<int64_t>(weights.size());
  const auto num_outputs = static_cast<int64_t>(outputs.size());
  const auto num_inputs = static_cast<int64_t>(inputs.size());
  const int64_t output = largest(outputs);
  sampler::Packing packing;
  packing.format = static_cast<sampler::Format>(format);
  for (const Floats& weight : weights) {
    const int64_t last = output * output_stride + largest(taps) + largest(inputs);
    packing.weights.push_back(weight.of(last + 1, "a weight"));
  }
  for (const Floats& factor : factors) packing.factors.push_back(factor.of(output + 1, "factors"));
  packing.output_stride = output_stride;
  packing.outputs = outputs;
  packing.inputs = inputs;
  packing.taps = taps;
  packing.input_scales = input_scales.of_some(count * num_inputs, "input scales");
  if (!scales.empty()) packing.scales = plan.memory(scales, count * num_outputs);
  for (const auto& [name, start, first_tap, num_taps, matrix_stride, panel_stride] : blocks) {
    const int64_t end = start + (count - 1) * matrix_stride +
                        (num_outputs / sampler::kPanel - 1) * panel_stride +
                        sampler::panel_words(packing.format, num_taps * num_inputs);
    packing.blocks.push_back(
        {plan.memory(name, end) + start, first_tap, num_taps, matrix_stride, panel_stride});
  }
  if (!factors.empty() && factors.size() != weights.size()) {
    throw py::value_error("expected as many factors as weights.");
  }
  const py::gil_scoped_release no_gil;
  sampler::pack(packing, threads);
}

std::vector<vqvae2_fast::cpu::Block> blocks_of(const std::vector<Bytes>& tensors) {
  std::vector<vqvae2_fast::cpu::Block> blocks;
  for (const Bytes& tensor : tensors) blocks.push_back({tensor.data, tensor.size});
  return blocks;
}

std::vector<uint64_t> content_hashes(const std::vector<Bytes>& tensors, int threads) {
  const py::gil_scoped_release no_gil;
  return vqvae2_fast::cpu::content_hashes(blocks_of(tensors), threads);
}

bool within(const std::vector<Floats>& tensors, float bound, int threads) {
  std::vector<vqvae2_fast::cpu::Block> blocks;
  for (const Floats& tensor : tensors) {
    blocks.push_back({tensor.data, tensor.size * static_cast<int64_t>(sizeof(float))});
  }
  const py::gil_scoped_release no_gil;
  return vqvae2_fast::cpu::within(blocks, bound, threads);
}

// Values [outputs, inputs, taps], these three, how many taps count, and where the norms go.
using NormedWeight = std::tuple<Floats, int64_t, int64_t, int64_t, int64_t, Memory<float>>;

void weight_norms(const std::vector<NormedWeight>& weights, int threads) {
  std::vector<vqvae2_fast::cpu::NormedWeight> normed;
  for (const auto& [values, outputs, inputs, taps, live, norms] : weights) {
    normed.push_back({.values = values.of(outputs * inputs * taps, "a weight"),
                      .outputs = outputs,
                      .inputs = inputs,
                      .taps = taps,
                      .live = live,
                      .norms = norms.of(outputs, "norms")});
  }
  const py::gil_scoped_release no_gil;
  vqvae2_fast::cpu::weight_norms(normed, threads);
}

py::tuple draw(const sampler::Plan& plan, int64_t batch, const Integers& labels,
               const Floats& classes, int64_t num_rows, const std::vector<Integers>& maps,
               const Integers& known, const Floats& noise, uint64_t seed, int64_t first_sample,
               const Integers& rows, uint32_t stream, float temperature, int64_t top_k, float top_p,
               float guidance, bool guided, float largest_logit, const Memory<int64_t>& codes,
               const Memory<float>& log_prob, const Memory<float>& logits,
               const Memory<float>& profile, const Memory<int32_t>& intervals,
               const std::vector<Memory<const int32_t>>& streams, int64_t columns, int threads,
               const py::object& progress) {
  const int64_t positions = batch * plan.height * plan.width;
  sampler::Request request;
  request.batch = batch;
  request.guided = guided;
  if (plan.num_classes > 0) request.labels = labels.of(batch, "labels");
  request.classes = classes.of_some(plan.num_layers * num_rows * plan.conv2.outputs(), "classes");
  request.num_rows = num_rows;
  if (maps.size() != plan.condition.maps.size()) {
    throw py::value_error("expected as many maps as the plan has.");
  }
  for (size_t n = 0; n < maps.size(); ++n) {
    const auto& map = plan.condition.maps[n];
    request.maps.push_back(maps[n].of(batch * map.height * map.width, "a map"));
  }
  request.known = known.of_some(positions, "known");
  request.noise = noise.of_some(positions * plan.num_embeddings, "noise");
  request.seed = seed;
  request.first_sample = first_sample;
  request.rows = rows.of_some(2 * batch, "rows");
  request.stream = stream;
  request.rule = {.temperature = temperature,
                  .top_k = top_k,
                  .top_p = top_p,
                  .guidance = guidance,
                  .largest_logit = largest_logit};
  request.codes = codes.of(positions, "codes");
  request.log_prob = log_prob.of_some(positions, "log_prob");
  request.logits = logits.of_some(positions * plan.num_embeddings, "logits");
  request.profile = profile.of_some(
      2 * plan.height * plan.width * std::size(sampler::kStageNames) * threads, "profile");
  static_assert(sizeof(vqvae2_fast::Interval) == 2 * sizeof(int32_t));
  request.intervals =
      reinterpret_cast<vqvae2_fast::Interval*>(intervals.of_some(2 * positions, "intervals"));
  std::vector<vqvae2_fast::RangeDecoder> decoders;
  for (const auto& words : streams) {
    decoders.emplace_back(reinterpret_cast<const uint32_t*>(words.data), words.size);
  }
  if (!decoders.empty()) request.decoders = decoders.data();
  request.columns = columns;
  request.threads = threads;
  if (columns < 1 || threads < 1 || (columns > 1 && !request.known) ||
      (request.decoders && (static_cast<int64_t>(decoders.size()) != batch || columns > 1))) {
    throw py::value_error("expected a request that fits the plan.");
  }

  sampler::Timing timing;
  std::exception_ptr raised;
  const auto after_row = [&](int64_t rows_done) {
    const py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress.is_none()) progress(rows_done, plan.height);
    } catch (...) {
      raised = std::current_exception();
      return false;
    }
    return true;
  };
  {
    const py::gil_scoped_release no_gil;
    timing = sampler::draw_map(plan, request, after_row);
  }
  if (raised) std::rethrow_exception(raised);
  py::dict took;  // seconds, and the number of steps
  took["condition"] = timing.condition;
  took["rows"] = timing.rows;
  took["pixels"] = timing.pixels;
  took["steps"] = static_cast<double>(timing.steps);
  std::vector<bool> finished;
  for (const auto& decoder : decoders) finished.push_back(decoder.finished());
  return py::make_tuple(took, finished, timing.too_large, timing.clamped);
}

// Columns of a segment, the steps that a row is behind the one above, and rows of a segment.
std::tuple<int64_t, int64_t, int64_t> schedule_of(const sampler::Plan& plan, int64_t rows) {
  const auto schedule = sampler::Schedule::of(plan, rows);
  return {schedule.segment, schedule.lag, schedule.rows_of_segment()};
}

// Encodes the intervals of codes, [n, 2], as one stream.
py::bytes encode_intervals(const Memory<const int32_t>& intervals) {
  vqvae2_fast::RangeEncoder encoder;
  {
    const py::gil_scoped_release no_gil;
    const auto* interval = reinterpret_cast<const vqvae2_fast::Interval*>(intervals.data);
    for (int64_t i = 0; i < intervals.size / 2; ++i) encoder.encode(interval[i]);
    encoder.finish();
  }
  const std::vector<uint32_t>& words = encoder.words();
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)};
}

}  // namespace

void define_sampler(py::module_& m) {
  m.attr("SAMPLER_STAGES") =
      std::vector<std::string>(std::begin(sampler::kStageNames), std::end(sampler::kStageNames));
  m.def("content_hashes", &content_hashes, py::arg("tensors"), py::arg("threads"));
  m.def("within", &within, py::arg("tensors"), py::arg("bound"), py::arg("threads"));
  m.def("weight_norms", &weight_norms, py::arg("weights"), py::arg("threads"));
  py::class_<sampler::Plan>(m, "SamplerPlan")
      .def(py::init(&make_plan), py::arg("integers"), py::arg("sizes"), py::arg("threads") = 1)
      .def("memory", &memory_of, py::arg("name"), py::keep_alive<0, 1>())
      .def("pack", &pack, py::kw_only(), py::arg("format"), py::arg("weights"), py::arg("factors"),
           py::arg("output_stride"), py::arg("outputs"), py::arg("inputs"), py::arg("taps"),
           py::arg("input_scales"), py::arg("scales"), py::arg("blocks"), py::arg("threads"))
      .def("schedule", &schedule_of, py::arg("rows"))
      .def("cache_bytes", &sampler::cache_bytes, py::arg("batch"), py::arg("guided"))
      .def("draw", &draw, py::kw_only(), py::arg("batch"), py::arg("labels"), py::arg("classes"),
           py::arg("num_rows"), py::arg("maps"), py::arg("known"), py::arg("noise"),
           py::arg("seed"), py::arg("first_sample"), py::arg("rows"), py::arg("stream"),
           py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("guidance"),
           py::arg("guided"), py::arg("largest_logit"), py::arg("codes"), py::arg("log_prob"),
           py::arg("logits"), py::arg("profile"), py::arg("intervals"), py::arg("streams"),
           py::arg("columns"), py::arg("threads"), py::arg("progress"));
  m.def("encode_intervals", &encode_intervals, py::arg("intervals"));
}
