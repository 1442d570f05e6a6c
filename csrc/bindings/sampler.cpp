// The Python side of the sampler: an object that holds a plan's packed weights, and the draw.
//
// Tensors come as addresses of contiguous memory that the caller keeps until the call returns; the
// weights are copied. Python has checked shapes, ranges and dtypes of a draw.
#include "../cpu/sampler/sampler.h"

#include "../cpu/content_hash.h"
#include "python.h"
#include "sampler.h"

namespace {

using namespace vqvae2_fast::python;
namespace sampler = vqvae2_fast::cpu::sampler;

struct PlanObject {
  PyObject_HEAD sampler::Plan* plan;
};

const sampler::Plan& plan_of(PyObject* self) { return *reinterpret_cast<PlanObject*>(self)->plan; }

PyObject* new_plan(PyTypeObject* type, PyObject* positional, PyObject* by_name) {
  return guarded([&] {
    const Arguments arguments(positional, by_name, {"integers", "sizes", "threads"});
    sampler::Description description;
    for_each_entry(arguments["integers"], [&](const std::string& name, PyObject* values) {
      std::vector<int64_t>& integers = description.integers[name];
      for_each(values, [&](PyObject* value) { integers.push_back(as_integer(value)); });
    });
    for_each_entry(arguments["sizes"], [&](const std::string& name, PyObject* size) {
      description.tensors[name] = {nullptr, as_integer(size)};
    });
    const int threads = static_cast<int>(as_integer(arguments["threads"]));
    std::unique_ptr<sampler::Plan> plan;
    {
      const WithoutLock without_lock;
      plan = std::make_unique<sampler::Plan>(description, threads);
    }
    Object self = owned(PyType_GenericAlloc(type, 0));
    reinterpret_cast<PlanObject*>(self.get())->plan = plan.release();
    return self;
  });
}

void delete_plan(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<PlanObject*>(self)->plan;
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

// PyBUF_WRITE, which the limited API of 3.10 takes and does not name.
constexpr int kWritable = 0x200;

// The memory of one of a plan's tensors, to be written while the plan lives.
Object memory(PyObject* self, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {"name", "size"});
  char* address = reinterpret_cast<char*>(plan_of(self).memory(as_text(arguments["name"])));
  const Py_ssize_t bytes = as_integer(arguments["size"]) * sizeof(float);
  return owned(PyMemoryView_FromMemory(address, bytes, kWritable));
}

PyObject* weight_bytes(PyObject* self, void*) {
  return guarded([&] { return integer(plan_of(self).weight_bytes()); });
}

Object cache_bytes(PyObject* self, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {"batch", "guided"});
  return integer(sampler::cache_bytes(plan_of(self), as_integer(arguments["batch"]),
                                      as_boolean(arguments["guided"])));
}

Object content_hashes(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {"blocks", "threads"});
  std::vector<vqvae2_fast::cpu::Block> blocks;
  for_each(arguments["blocks"], [&](PyObject* block) {
    const auto [address, bytes] = as_pair(block);
    blocks.push_back({as_pointer<const unsigned char>(address.get()), as_integer(bytes.get())});
  });
  const int threads = static_cast<int>(as_integer(arguments["threads"]));
  std::vector<uint64_t> hashes;
  {
    const WithoutLock without_lock;
    hashes = vqvae2_fast::cpu::content_hashes(blocks, threads);
  }
  return list_of(hashes, [](uint64_t hash) { return owned(PyLong_FromUnsignedLongLong(hash)); });
}

// Calls progress(rows done, rows in all) unless it is None; false if that or a signal raised.
bool tell(PyObject* progress, int64_t rows_done, int64_t rows) {
  const WithLock with_lock;
  if (PyErr_CheckSignals() != 0) return false;
  if (progress == Py_None) return true;
  const Object answer(PyObject_CallFunction(progress, "LL", static_cast<long long>(rows_done),
                                            static_cast<long long>(rows)));
  return answer != nullptr;
}

Object draw(PyObject* self, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(
      positional, by_name,
      {"batch",        "labels",    "maps",          "known",       "noise",    "seed",
       "first_sample", "rows",      "stream",        "temperature", "top_k",    "top_p",
       "guidance",     "guided",    "largest_logit", "codes",       "log_prob", "logits",
       "profile",      "intervals", "streams",       "window",      "threads",  "progress"});
  const sampler::Plan& plan = plan_of(self);
  sampler::Request request;
  request.batch = as_integer(arguments["batch"]);
  request.guided = as_boolean(arguments["guided"]);
  request.labels = as_pointer<const int64_t>(arguments["labels"]);
  for_each(arguments["maps"],
           [&](PyObject* map) { request.maps.push_back(as_pointer<const int64_t>(map)); });
  request.known = as_pointer<const int64_t>(arguments["known"]);
  request.noise = as_pointer<const float>(arguments["noise"]);
  request.seed = as_unsigned(arguments["seed"]);
  request.first_sample = as_integer(arguments["first_sample"]);
  request.rows = as_pointer<const int64_t>(arguments["rows"]);
  request.stream = static_cast<uint32_t>(as_unsigned(arguments["stream"]));
  request.rule = {.temperature = static_cast<float>(as_number(arguments["temperature"])),
                  .top_k = as_integer(arguments["top_k"]),
                  .top_p = static_cast<float>(as_number(arguments["top_p"])),
                  .guidance = static_cast<float>(as_number(arguments["guidance"])),
                  .largest_logit = static_cast<float>(as_number(arguments["largest_logit"]))};
  request.codes = as_pointer<int64_t>(arguments["codes"]);
  request.log_prob = as_pointer<float>(arguments["log_prob"]);
  request.logits = as_pointer<float>(arguments["logits"]);
  request.profile = as_pointer<float>(arguments["profile"]);
  request.intervals = as_pointer<vqvae2_fast::Interval>(arguments["intervals"]);
  std::vector<vqvae2_fast::RangeDecoder> decoders;
  for_each(arguments["streams"], [&](PyObject* stream) {
    const auto [words, count] = as_pair(stream);
    decoders.emplace_back(as_pointer<const uint32_t>(words.get()), as_integer(count.get()));
  });
  if (!decoders.empty()) request.decoders = decoders.data();
  request.window = as_integer(arguments["window"]);
  request.threads = static_cast<int>(as_integer(arguments["threads"]));
  if (request.maps.size() != plan.condition.maps.size() ||
      (plan.num_classes > 0) != (request.labels != nullptr) || !request.codes ||
      request.window < 1 || request.threads < 1 ||
      (request.decoders &&
       (static_cast<int64_t>(decoders.size()) != request.batch || request.window > 1))) {
    throw std::invalid_argument("sampler: the request does not fit the plan.");
  }

  sampler::Timing timing;
  bool raised = false;
  {
    const WithoutLock without_lock;
    timing = sampler::draw_map(plan, request, [&](int64_t rows_done) {
      raised = !tell(arguments["progress"], rows_done, plan.height);
      return !raised;
    });
  }
  check(!raised);
  Object seconds = owned(PyDict_New());
  set(seconds, "condition", number(timing.condition));
  set(seconds, "rows", number(timing.rows));
  set(seconds, "pixels", number(timing.pixels));
  set(seconds, "steps", number(static_cast<double>(timing.steps)));
  set(seconds, "rounded", number(static_cast<double>(timing.rounded.inputs)));
  set(seconds, "clamped", number(static_cast<double>(timing.rounded.clamped)));
  const Object finished =
      list_of(decoders, [](const auto& decoder) { return boolean(decoder.finished()); });
  const Object too_large = boolean(timing.too_large);
  return owned(PyTuple_Pack(3, seconds.get(), finished.get(), too_large.get()));
}

// Encodes the intervals of n codes, [n, 2], as one stream.
Object encode_intervals(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {"intervals", "n"});
  const auto* intervals = as_pointer<const vqvae2_fast::Interval>(arguments["intervals"]);
  const int64_t n = as_integer(arguments["n"]);
  vqvae2_fast::RangeEncoder encoder;
  {
    const WithoutLock without_lock;
    for (int64_t i = 0; i < n; ++i) encoder.encode(intervals[i]);
    encoder.finish();
  }
  const std::vector<uint32_t>& words = encoder.words();
  return owned(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(words.data()),
                                         words.size() * sizeof(uint32_t)));
}

PyMethodDef functions[] = {method<content_hashes>("content_hashes"),
                           method<encode_intervals>("encode_intervals"),
                           {nullptr, nullptr, 0, nullptr}};
PyMethodDef methods[] = {method<memory>("memory"),
                         method<cache_bytes>("cache_bytes"),
                         method<draw>("draw"),
                         {nullptr, nullptr, 0, nullptr}};
PyGetSetDef properties[] = {{"weight_bytes", weight_bytes, nullptr, nullptr, nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_plan)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(delete_plan)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, properties},
                       {0, nullptr}};
PyType_Spec plan_type = {"vqvae2_fast._C.SamplerPlan", sizeof(PlanObject), 0, Py_TPFLAGS_DEFAULT,
                         slots};

}  // namespace

void define_sampler(PyObject* module) {
  const auto add = [&](const char* name, const Object& value) {
    check(PyModule_AddObjectRef(module, name, value.get()) == 0);
  };
  add("SAMPLER_PANEL", integer(sampler::kPanel));
  add("SAMPLER_STAGES", list_of(sampler::kStageNames, text));
  add("SamplerPlan", owned(PyType_FromSpec(&plan_type)));
  check(PyModule_AddFunctions(module, functions) == 0);
}
