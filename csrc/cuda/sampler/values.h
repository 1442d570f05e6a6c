// What Python passes: integers, numbers and addresses by name.
#pragma once

#include <stdint.h>
#include <string.h>

#include <map>
#include <stdexcept>
#include <string>

namespace vqvae2_fast::cuda::sampler {

class Values {
 public:
  Values(const char* const* names, const int64_t* values, int64_t count) {
    for (int64_t n = 0; n < count; ++n) values_[names[n]] = values[n];
  }

  int64_t integer(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::invalid_argument("sampler: no value '" + name + "'.");
    return found->second;
  }

  int32_t small(const std::string& name) const {
    const int64_t value = integer(name);
    if (value != static_cast<int32_t>(value)) {
      throw std::invalid_argument("sampler: '" + name + "' is out of range.");
    }
    return static_cast<int32_t>(value);
  }

  // The bits of a double.
  double number(const std::string& name) const {
    const int64_t bits = integer(name);
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }

  // Address of device memory; null if it is not given.
  template <typename T>
  T* pointer(const std::string& name) const {
    const auto found = values_.find(name);
    const int64_t address = found == values_.end() ? 0 : found->second;
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
  }

 private:
  std::map<std::string, int64_t> values_;
};

}  // namespace vqvae2_fast::cuda::sampler
