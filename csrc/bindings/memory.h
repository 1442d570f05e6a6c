// The memory of tensors that Python hands over: the one place where it is checked.
//
// pybind11 converts a tensor by its DLPack capsule (https://dmlc.github.io/dlpack), so that dtype,
// device, layout and size are the tensor's own word and no claim of the caller.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>

#include <string>
#include <type_traits>

namespace vqvae2_fast::bindings {

// The head of DLPack's DLManagedTensor, version 0.
struct DlTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t num_dims;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

// A contiguous tensor on the CPU, or nothing for None. Memory<const unsigned char> is one of any
// dtype, its size in bytes. The caller keeps the tensor until its call returns.
template <typename T>
struct Memory {
  T* data = nullptr;
  int64_t size = 0;
  bool is_none = true;

  // The data, of at least `expected` values.
  T* of(int64_t expected, const char* name) const {
    if (is_none || size < expected) {
      throw pybind11::value_error("expected " + std::string(name) + " of " +
                                  std::to_string(expected) + " values, got " +
                                  (is_none ? "None" : std::to_string(size)) + ".");
    }
    return data;
  }
  // The same, or null for None.
  T* of_some(int64_t expected, const char* name) const {
    return is_none ? nullptr : of(expected, name);
  }
};

}  // namespace vqvae2_fast::bindings

namespace pybind11::detail {

template <typename T>
struct type_caster<vqvae2_fast::bindings::Memory<T>> {
  using Tensor = vqvae2_fast::bindings::DlTensor;
  PYBIND11_TYPE_CASTER(vqvae2_fast::bindings::Memory<T>, const_name("torch.Tensor | None"));

  bool load(handle tensor, bool) {
    if (tensor.is_none()) return true;
    using Value = std::remove_const_t<T>;
    constexpr bool kBytes = std::is_same_v<Value, unsigned char>;
    constexpr int kCode = std::is_floating_point_v<Value> ? 2 : 0;  // kDLFloat, kDLInt
    const object capsule = to_dlpack()(tensor);
    const auto* dl = static_cast<const Tensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!dl) throw error_already_set();
    const bool fits = kBytes || (dl->dtype.code == kCode && dl->dtype.bits == 8 * sizeof(Value) &&
                                 dl->dtype.lanes == 1);
    int64_t count = 1, stride = 1;
    bool contiguous = true;
    for (int32_t d = dl->num_dims - 1; d >= 0; --d) count *= dl->shape[d];
    for (int32_t d = dl->num_dims - 1; d >= 0 && count && dl->strides; --d) {
      contiguous = contiguous && (dl->shape[d] == 1 || dl->strides[d] == stride);
      stride *= dl->shape[d];
    }
    if (!fits || dl->device.type != 1 || !contiguous) {  // kDLCPU
      const std::string wanted = kBytes ? "" : kCode == 2 ? "float" : "int";
      const std::string dtype = kBytes ? "" : wanted + std::to_string(8 * sizeof(Value)) + " ";
      throw type_error("expected a contiguous " + dtype + "tensor on the CPU, got " +
                       std::string(str(tensor.attr("dtype"))) + " on " +
                       std::string(str(tensor.attr("device"))) +
                       (contiguous ? "." : ", not contiguous."));
    }
    value.data = reinterpret_cast<T*>(static_cast<char*>(dl->data) + dl->byte_offset);
    value.size = kBytes ? count * dl->dtype.bits * dl->dtype.lanes / 8 : count;
    value.is_none = false;
    return true;
  }

 private:
  static const object& to_dlpack() {
    PYBIND11_CONSTINIT static gil_safe_call_once_and_store<object> found;
    return found
        .call_once_and_store_result(
            [] { return module_::import("torch.utils.dlpack").attr("to_dlpack"); })
        .get_stored();
  }
};

}  // namespace pybind11::detail
