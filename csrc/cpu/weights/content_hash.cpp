#include "content_hash.h"

#include <string.h>

#include <algorithm>

#include "../threads/pieces.h"

namespace vqvae2_fast::cpu {
namespace {

// What one thread hashes at a time. The hash depends on it, so it must not depend on the number of
// threads.
constexpr int64_t kPieceBytes = 1 << 20;
constexpr int64_t kLanes = 4, kStepBytes = 16 * kLanes;
// Constants without a pattern: the fractional parts of the square roots of 2, 3, 5, 7 and 11, made
// odd.
constexpr uint64_t kKeys[kLanes] = {0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                    0xa54ff53a5f1d36f1};
constexpr uint64_t kLengthKey = 0x510e527fade682d1;

// Uses both halves of the product, so that each bit of the inputs affects all bits of the result.
inline uint64_t mixed(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t piece_hash(const unsigned char* data, int64_t bytes) {
  uint64_t state[kLanes] = {kKeys[1], kKeys[2], kKeys[3], kKeys[0]};
  // Four chains of multiplications, because a single one would wait for each product.
  const auto step = [&](const unsigned char* from) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      uint64_t words[2];
      memcpy(words, from + 16 * lane, sizeof(words));
      state[lane] = mixed(words[0] ^ kKeys[lane], words[1] ^ state[lane]);
    }
  };
  int64_t done = 0;
  for (; done + kStepBytes <= bytes; done += kStepBytes) step(data + done);
  if (done < bytes) {
    unsigned char rest[kStepBytes] = {};
    memcpy(rest, data + done, static_cast<size_t>(bytes - done));
    step(rest);
  }
  uint64_t hash = mixed(static_cast<uint64_t>(bytes) ^ kLengthKey, kKeys[0]);
  for (int64_t lane = 0; lane < kLanes; ++lane) hash = mixed(hash ^ kKeys[lane], state[lane]);
  return hash;
}

struct Piece {
  const unsigned char* data;
  int64_t bytes;
};

}  // namespace

std::vector<uint64_t> content_hashes(const std::vector<Block>& blocks, int threads) {
  std::vector<Piece> pieces;
  std::vector<size_t> first;  // piece of each block
  for (const Block& block : blocks) {
    first.push_back(pieces.size());
    const auto* data = static_cast<const unsigned char*>(block.data);
    for (int64_t start = 0; start < block.bytes; start += kPieceBytes) {
      pieces.push_back({data + start, std::min(kPieceBytes, block.bytes - start)});
    }
  }
  first.push_back(pieces.size());

  std::vector<uint64_t> of_piece(pieces.size());
  for_each_piece(pieces.size(), threads,
                 [&](size_t n) { of_piece[n] = piece_hash(pieces[n].data, pieces[n].bytes); });

  std::vector<uint64_t> hashes;
  for (size_t n = 0; n < blocks.size(); ++n) {
    const auto* own = reinterpret_cast<const unsigned char*>(of_piece.data() + first[n]);
    hashes.push_back(piece_hash(own, static_cast<int64_t>(8 * (first[n + 1] - first[n]))));
  }
  return hashes;
}

}  // namespace vqvae2_fast::cpu
