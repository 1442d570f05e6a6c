// Lends torch's threads to teams (cpu/threads/team.h).
#include "../cpu/threads/thread_pool.h"

#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include "../cpu/threads/pace.h"
#include "parallel.h"

void lend_torch_threads() {
  using vqvae2_fast::cpu::thread_pool;
  thread_pool().size = [] { return static_cast<int>(torch::stable::get_num_threads()); };
  thread_pool().run_parts = vqvae2_fast::run_parts;
  // A forked process has none of them, and GNU OpenMP would wait for them forever.
  pthread_atfork(nullptr, nullptr, [] { thread_pool().run_parts = nullptr; });
}

void forget_waits() {
  vqvae2_fast::cpu::thread_pool().forget();
  vqvae2_fast::cpu::forget_pace();
}
