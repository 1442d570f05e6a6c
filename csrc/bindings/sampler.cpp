// The Python side of the sampler: an object that holds a plan's packed weights, and the draw.
//
// Tensors come as addresses of contiguous memory that the caller keeps until the call returns.
// Python has checked shapes, ranges and dtypes of a draw.
#include "../cpu/sampler/sampler.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/sampler/pack.h"
#include "../cpu/weights/content_hash.h"
#include "../cpu/weights/weight_norms.h"

namespace py = pybind11;
namespace sampler = vqvae2_fast::cpu::sampler;

namespace {

using Address = uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

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
py::memoryview memory_of(const sampler::Plan& plan, const std::string& name, int64_t size) {
  return py::memoryview::from_memory(plan.memory(name), size * sizeof(float));
}

// A tensor, the word of it where the first panel begins, first and number of taps, and the strides
// of matrices and panels.
using PackedBlock = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t>;

// Packs matrices into the memory of a plan's tensors, which holds zeros: see pack.h. Without a name
// of scales, none are written.
void pack(const sampler::Plan& plan, int64_t format, const std::vector<Address>& weights,
          const std::vector<Address>& factors, int64_t output_stride,
          const std::vector<int64_t>& outputs, const std::vector<int64_t>& inputs,
          const std::vector<int64_t>& taps, Address input_scales, const std::string& scales,
          const std::vector<PackedBlock>& blocks, int threads) {
  sampler::Packing packing;
  packing.format = static_cast<sampler::Format>(format);
  for (const Address weight : weights) packing.weights.push_back(pointer<const float>(weight));
  for (const Address factor : factors) packing.factors.push_back(pointer<const float>(factor));
  packing.output_stride = output_stride;
  packing.outputs = outputs;
  packing.inputs = inputs;
  packing.taps = taps;
  packing.input_scales = pointer<const float>(input_scales);
  if (!scales.empty()) packing.scales = plan.memory(scales);
  for (const auto& [name, start, first_tap, num_taps, matrix_stride, panel_stride] : blocks) {
    packing.blocks.push_back(
        {plan.memory(name) + start, first_tap, num_taps, matrix_stride, panel_stride});
  }
  if (!factors.empty() && factors.size() != weights.size()) {
    throw py::value_error("sampler: the factors do not fit the weights.");
  }
  const py::gil_scoped_release no_gil;
  sampler::pack(packing, threads);
}

std::vector<vqvae2_fast::cpu::Block> blocks_of(
    const std::vector<std::pair<Address, int64_t>>& addresses) {
  std::vector<vqvae2_fast::cpu::Block> blocks;
  for (const auto& [address, bytes] : addresses) {
    blocks.push_back({pointer<const unsigned char>(address), bytes});
  }
  return blocks;
}

std::vector<uint64_t> content_hashes(const std::vector<std::pair<Address, int64_t>>& blocks,
                                     int threads) {
  const py::gil_scoped_release no_gil;
  return vqvae2_fast::cpu::content_hashes(blocks_of(blocks), threads);
}

bool within(const std::vector<std::pair<Address, int64_t>>& blocks, float bound, int threads) {
  const py::gil_scoped_release no_gil;
  return vqvae2_fast::cpu::within(blocks_of(blocks), bound, threads);
}

// Values, outputs, inputs, taps, how many of these count, and where the norms go.
using NormedWeight = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, Address>;

void weight_norms(const std::vector<NormedWeight>& weights, int threads) {
  std::vector<vqvae2_fast::cpu::NormedWeight> normed;
  for (const auto& [values, outputs, inputs, taps, live, norms] : weights) {
    normed.push_back({.values = pointer<const float>(values),
                      .outputs = outputs,
                      .inputs = inputs,
                      .taps = taps,
                      .live = live,
                      .norms = pointer<float>(norms)});
  }
  const py::gil_scoped_release no_gil;
  vqvae2_fast::cpu::weight_norms(normed, threads);
}

py::tuple draw(const sampler::Plan& plan, int64_t batch, Address labels,
               const std::vector<Address>& maps, Address known, Address noise, uint64_t seed,
               int64_t first_sample, Address rows, uint32_t stream, float temperature,
               int64_t top_k, float top_p, float guidance, bool guided, float largest_logit,
               Address codes, Address log_prob, Address logits, Address profile, Address intervals,
               const std::vector<std::pair<Address, int64_t>>& streams, int64_t columns,
               int threads, const py::object& progress) {
  sampler::Request request;
  request.batch = batch;
  request.guided = guided;
  request.labels = pointer<const int64_t>(labels);
  for (const Address map : maps) request.maps.push_back(pointer<const int64_t>(map));
  request.known = pointer<const int64_t>(known);
  request.noise = pointer<const float>(noise);
  request.seed = seed;
  request.first_sample = first_sample;
  request.rows = pointer<const int64_t>(rows);
  request.stream = stream;
  request.rule = {.temperature = temperature,
                  .top_k = top_k,
                  .top_p = top_p,
                  .guidance = guidance,
                  .largest_logit = largest_logit};
  request.codes = pointer<int64_t>(codes);
  request.log_prob = pointer<float>(log_prob);
  request.logits = pointer<float>(logits);
  request.profile = pointer<float>(profile);
  request.intervals = pointer<vqvae2_fast::Interval>(intervals);
  std::vector<vqvae2_fast::RangeDecoder> decoders;
  for (const auto& [words, count] : streams) {
    decoders.emplace_back(pointer<const uint32_t>(words), count);
  }
  if (!decoders.empty()) request.decoders = decoders.data();
  request.columns = columns;
  request.threads = threads;
  if (request.maps.size() != plan.condition.maps.size() ||
      (plan.num_classes > 0) != (labels != 0) || !codes || columns < 1 || threads < 1 ||
      (columns > 1 && !known) ||
      (request.decoders && (static_cast<int64_t>(decoders.size()) != batch || columns > 1))) {
    throw py::value_error("sampler: the request does not fit the plan.");
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

// Encodes the intervals of n codes, [n, 2], as one stream.
py::bytes encode_intervals(Address intervals, int64_t n) {
  vqvae2_fast::RangeEncoder encoder;
  {
    const py::gil_scoped_release no_gil;
    for (int64_t i = 0; i < n; ++i) {
      encoder.encode(pointer<const vqvae2_fast::Interval>(intervals)[i]);
    }
    encoder.finish();
  }
  const std::vector<uint32_t>& words = encoder.words();
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)};
}

}  // namespace

void define_sampler(py::module_& m) {
  m.attr("SAMPLER_STAGES") =
      std::vector<std::string>(std::begin(sampler::kStageNames), std::end(sampler::kStageNames));
  m.def("content_hashes", &content_hashes, py::arg("blocks"), py::arg("threads"));
  m.def("within", &within, py::arg("blocks"), py::arg("bound"), py::arg("threads"));
  m.def("weight_norms", &weight_norms, py::arg("weights"), py::arg("threads"));
  py::class_<sampler::Plan>(m, "SamplerPlan")
      .def(py::init(&make_plan), py::arg("integers"), py::arg("sizes"), py::arg("threads") = 1)
      .def("memory", &memory_of, py::arg("name"), py::arg("size"), py::keep_alive<0, 1>())
      .def("pack", &pack, py::kw_only(), py::arg("format"), py::arg("weights"), py::arg("factors"),
           py::arg("output_stride"), py::arg("outputs"), py::arg("inputs"), py::arg("taps"),
           py::arg("input_scales"), py::arg("scales"), py::arg("blocks"), py::arg("threads"))
      .def_property_readonly("weight_bytes", &sampler::Plan::weight_bytes)
      .def("schedule", &schedule_of, py::arg("rows"))
      .def("cache_bytes", &sampler::cache_bytes, py::arg("batch"), py::arg("guided"))
      .def("draw", &draw, py::kw_only(), py::arg("batch"), py::arg("labels"), py::arg("maps"),
           py::arg("known"), py::arg("noise"), py::arg("seed"), py::arg("first_sample"),
           py::arg("rows"), py::arg("stream"), py::arg("temperature"), py::arg("top_k"),
           py::arg("top_p"), py::arg("guidance"), py::arg("guided"), py::arg("largest_logit"),
           py::arg("codes"), py::arg("log_prob"), py::arg("logits"), py::arg("profile"),
           py::arg("intervals"), py::arg("streams"), py::arg("columns"), py::arg("threads"),
           py::arg("progress"));
  m.def("encode_intervals", &encode_intervals, py::arg("intervals"), py::arg("n"));
}
