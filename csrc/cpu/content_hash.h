// 64-bit hashes of memory, made at the speed of reading it: they tell that weights have changed.
//
// Each bit and its position counts, so that swaps, permutations and changes of sign are seen. A
// change escapes with a probability of about 2^-64. Not for use against an attacker, and not for
// files: the hash of the same bytes may be another one in another version.
#pragma once

#include <stdint.h>

#include <vector>

namespace vqvae2_fast::cpu {

struct Block {
  const void* data = nullptr;
  int64_t bytes = 0;
};

// One hash for each block, the same for any number of threads.
std::vector<uint64_t> content_hashes(const std::vector<Block>& blocks, int threads);

}  // namespace vqvae2_fast::cpu
