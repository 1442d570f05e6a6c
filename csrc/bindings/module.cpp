// The Python side of the compiled module: SIMD levels and build facts. pybind11 only: torch's
// include folder carries another pybind11, which refuses the stable ABI, so it stays off this
// file's path.
#include <pybind11/pybind11.h>

#include <optional>

#include "../cpu/float_mode.h"
#include "../cpu/kernels.h"

namespace py = pybind11;

void define_sampler(py::module_& m);  // sampler.cpp
void lend_torch_threads();            // thread_pool.cpp, and the next
void forget_waits();

#if defined(VQ_WITH_CUDA)
extern "C" const char* vq_why_not_cuda();  // ../cuda/gumbel_noise.h
#endif

namespace {

py::tuple tuple_of(const char* const* names) {
  py::list list;
  for (; *names; ++names) list.append(*names);
  return py::tuple(list);
}

py::tuple simd_levels() { return tuple_of(vqvae2_fast::cpu::simd_levels()); }

// Why the CUDA kernels of this build cannot run on the current device; null if they can.
const char* why_not_cuda() {
#if defined(VQ_WITH_CUDA)
  return vq_why_not_cuda();
#else
  return "the compiled module was built without CUDA";
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = VQ_COMPILER;
  info["cuda"] = !py::str(VQ_CUDA_ARCHITECTURES).equal(py::str(""));
  info["cuda_architectures"] = VQ_CUDA_ARCHITECTURES;
  info["torch_abi"] = VQ_TORCH_ABI;
  info["simd_levels"] = simd_levels();
  // Levels that are compiled but that this CPU cannot run.
  info["missing_simd_levels"] = tuple_of(vqvae2_fast::cpu::missing_simd_levels());
  return info;
}

// `DefaultFloats` as a context of Python.
struct FloatMode {
  std::optional<vqvae2_fast::cpu::DefaultFloats> mode;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  lend_torch_threads();
  m.def("simd_level", [] { return vqvae2_fast::cpu::kernels().name; });
  m.def("has_tiles", [] { return vqvae2_fast::cpu::kernels().has_tiles; });
  m.def("set_simd_level", [](const char* name) { vqvae2_fast::cpu::set_simd_level(name); });
  m.def("simd_levels", &simd_levels);
  m.def("build_info", &build_info);
  m.def("forget_waits", &forget_waits);  // for tests: draws take PyTorch's threads again
  m.def("why_not_cuda", &why_not_cuda);
  py::class_<FloatMode>(m, "DefaultFloats")
      .def(py::init())
      .def("__enter__", [](FloatMode& self) { self.mode.emplace(); })
      .def("__exit__", [](FloatMode& self, const py::args&) { self.mode.reset(); });
  define_sampler(m);
}
