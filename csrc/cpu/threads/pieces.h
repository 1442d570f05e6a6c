// Work in pieces that take tens of microseconds each.
#pragma once

#include <stddef.h>

#include <algorithm>
#include <atomic>

#include "team.h"

namespace vqvae2_fast::cpu {

// Runs visit(n) for every n < count, on as many threads as are worth starting. Throws as Team::run.
template <class Visit>
void for_each_piece(size_t count, int threads, const Visit& visit) {
  constexpr size_t kPiecesPerThread = 8;
  const auto useful = static_cast<int>(std::min<size_t>(count / kPiecesPerThread + 1, 1 << 16));
  std::atomic<size_t> next{0};
  Team(std::max(1, std::min(threads, useful))).run([&](int) {
    for (size_t n = next++; n < count; n = next++) visit(n);
  });
}

}  // namespace vqvae2_fast::cpu
