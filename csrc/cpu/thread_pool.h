// Threads that the process has anyway. A team (sampler/team.h) takes them before it starts its own,
// because OpenMP's threads spin for some milliseconds after their last work, on the cores that new
// threads would need.
#pragma once

#include <functional>

#include "run_parts.h"

namespace vqvae2_fast::cpu {

struct ThreadPool {
  std::function<int()> size;  // how many threads the calling one may use, itself included
  RunParts run_parts;         // the first part runs on the calling thread
};

// Empty until a binding fills it. Set before any other thread calls into the library.
inline ThreadPool& thread_pool() {
  static ThreadPool pool;
  return pool;
}

}  // namespace vqvae2_fast::cpu
