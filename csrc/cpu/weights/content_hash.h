// 64-bit hashes of memory, as fast as reading it, which show that weights have changed.
//
// Each bit and its position counts, so that swaps, permutations and changes of sign are seen. A
// change escapes with a probability of about 2^-64. They do not protect against an attacker, and
// they are not for files: another version may give the same bytes another hash.
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
