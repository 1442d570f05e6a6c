// How torch-free code gets its threads: the caller passes a function that hands out parts.
#pragma once

#include <stdint.h>

#include <functional>

namespace vqvae2_fast::cpu {

// Runs a function on parts of 0..count, in parallel or not.
using RunParts =
    std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& part)>;

}  // namespace vqvae2_fast::cpu
