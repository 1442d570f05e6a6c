// The Python side of the compiled module: SIMD levels and build facts. The operators register
// themselves with torch (ops.cpp).
#include "../cpu/kernels.h"
#include "python.h"
#include "sampler.h"

#if defined(VQ_WITH_CUDA)
extern "C" const char* vq_why_not_cuda();  // ../cuda/gumbel_noise.h
#endif

namespace {

using namespace vqvae2_fast::python;
namespace cpu = vqvae2_fast::cpu;

Object tuple_of(const char* const* names) {
  std::vector<const char*> all;
  for (; *names; ++names) all.push_back(*names);
  return owned(PyList_AsTuple(list_of(all, text).get()));
}

Object simd_level(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {});
  return text(cpu::kernels().name);
}

Object set_simd_level(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {"name"});
  cpu::set_simd_level(as_text(arguments["name"]).c_str());
  return none();
}

Object simd_levels(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {});
  return tuple_of(cpu::simd_levels());
}

Object build_info(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {});
  Object info = owned(PyDict_New());
  set(info, "compiler", text(VQ_COMPILER));
  set(info, "cuda", boolean(VQ_CUDA_ARCHITECTURES[0] != '\0'));
  set(info, "cuda_architectures", text(VQ_CUDA_ARCHITECTURES));
  set(info, "torch_abi", text(VQ_TORCH_ABI));
  set(info, "simd_levels", tuple_of(cpu::simd_levels()));
  // Levels that are compiled but that this CPU cannot run.
  set(info, "missing_simd_levels", tuple_of(cpu::missing_simd_levels()));
  return info;
}

// Why the CUDA kernels of this build cannot run on the current device; None if they can.
Object why_not_cuda(PyObject*, PyObject* positional, PyObject* by_name) {
  const Arguments arguments(positional, by_name, {});
#if defined(VQ_WITH_CUDA)
  const char* reason = vq_why_not_cuda();
#else
  const char* reason = "the compiled module was built without CUDA";
#endif
  return reason ? text(reason) : none();
}

PyMethodDef methods[] = {
    method<simd_level>("simd_level"),     method<set_simd_level>("set_simd_level"),
    method<simd_levels>("simd_levels"),   method<build_info>("build_info"),
    method<why_not_cuda>("why_not_cuda"), {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return guarded([] {
    Object module = owned(PyModule_Create(&definition));
    define_sampler(module.get());
    return module;
  });
}
