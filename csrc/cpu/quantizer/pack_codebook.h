// Builds a PackedCodebook and keeps the last few, so that a codebook that does not change is packed
// once.
#pragma once

#include <memory>
#include <vector>

#include "../aligned.h"
#include "../kernels.h"
#include "../threads/run_parts.h"

namespace vqvae2_fast::cpu {

struct PackedCodebookStorage {
  Aligned<float> codes;  // as given, if they are owned
  int64_t num_given = 0;
  // Where codes are equal: what is packed, which is the first of each, and its number as given. A
  // tie is the longest way through the search, so a codebook that has collapsed to a few values
  // would cost many times what a small one does.
  Aligned<float> distinct;
  std::vector<int64_t> numbers;
  Aligned<float> center, half_norms, panels, pair_units, tile_half_norms;
  Aligned<uint32_t> pair_panels;
  Aligned<int8_t> byte_panels, byte_half_norms, byte_offsets;
  Aligned<uint16_t> tile_panels;
  PackedCodebook view;
  const char* level;  // name of the kernel table

  // Replaces what the search of `view` found by indices of the codebook as given.
  void renumber(int64_t* indices, int64_t count, int64_t stride = 1) const {
    if (numbers.empty()) return;
    for (int64_t i = 0; i < count; ++i) indices[i * stride] = numbers[indices[i * stride]];
  }
};

// The packed form of these values. An earlier one is used again if all values are equal, bit for
// bit; comparing with a copy takes a tenth of the time of packing. A call that packs `num_together`
// codebooks keeps them only if all fit. What is not kept has no copy of its codes if they are
// contiguous float32 already, and these must outlive it.
std::shared_ptr<const PackedCodebookStorage> packed_codebook(const Rows& codebook,
                                                             int64_t num_codes, int64_t dim,
                                                             int64_t num_together,
                                                             const KernelTable& kernels,
                                                             const RunParts& run_parts);

// Only the codes as contiguous float32, for so few rows that packing does not pay. A codebook that
// is contiguous float32 already is not copied and must outlive the result.
PackedCodebookStorage unpacked_codebook(const Rows& codebook, int64_t num_codes, int64_t dim);

}  // namespace vqvae2_fast::cpu
