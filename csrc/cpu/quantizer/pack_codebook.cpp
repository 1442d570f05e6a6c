#include "pack_codebook.h"

#include <string.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

namespace vqvae2_fast::cpu {
namespace {

// The number of codes from which the centre is computed.
constexpr int64_t kMaxSample = 256;
// Below this, waking a thread costs more than it saves.
constexpr int64_t kParallelFloats = 16 << 10;

bool is_contiguous_float(const Rows& rows, int64_t dim) {
  return rows.dtype == Dtype::kFloat32 && rows.stride_col == 1 && rows.stride_row == dim;
}

Aligned<float> as_float(const Rows& rows, int64_t num_rows, int64_t dim) {
  Aligned<float> copy = aligned<float>(num_rows * dim);
  if (is_contiguous_float(rows, dim)) {
    memcpy(copy.get(), rows.data, static_cast<size_t>(num_rows * dim) * sizeof(float));
    return copy;
  }
  for (int64_t k = 0; k < num_rows; ++k) {
    float* row = copy.get() + k * dim;
    const float* source = row_as_float(rows, k, dim, row);
    if (source != row) memcpy(row, source, static_cast<size_t>(dim) * sizeof(float));
  }
  return copy;
}

// The bits of a number, of -0 as of 0, which no distance tells apart.
uint32_t value_bits(float value) { return bits_of(value + 0.0f); }

// Eight numbers, which the compiler keeps in vectors.
typedef uint32_t Words __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
constexpr int64_t kChains = 8;

// Calls use(Floats) for a code in parts, the last one filled up with zeros.
template <class Use>
void for_each_part(const float* code, int64_t dim, const Use& use) {
  Floats part;
  int64_t d = 0;
  for (; d + kChains <= dim; d += kChains) {
    memcpy(&part, code + d, sizeof(part));
    use(part);
  }
  if (d == dim) return;
  part = Floats{};
  memcpy(&part, code + d, static_cast<size_t>(dim - d) * sizeof(float));
  use(part);
}

double square_norm(const float* code, int64_t dim) {
  Doubles squares = {};
  for_each_part(code, dim, [&](const Floats& part) {
    const Doubles wide = __builtin_convertvector(part, Doubles);
    squares += wide * wide;
  });
  double sum = 0;
  for (int64_t i = 0; i < kChains; ++i) sum += squares[i];
  return sum;
}

uint32_t hash_of(const float* code, int64_t dim) {
  Words chains = {};
  for_each_part(code, dim, [&](const Floats& part) {
    const Floats values = part + 0.0f;
    Words bits;
    memcpy(&bits, &values, sizeof(bits));
    chains = (chains << 7 | chains >> 25) + bits;
  });
  uint32_t hash = 0;
  for (int64_t i = 0; i < kChains; ++i) {
    hash = (hash ^ chains[i]) * 0x9E3779B1u;
    hash ^= hash >> 15;
  }
  return hash;
}

bool are_equal(const float* code, const float* other, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    if (value_bits(code[d]) != value_bits(other[d])) return false;
  }
  return true;
}

// The codes that equal none before them, in their order.
std::vector<int64_t> distinct_codes(const float* codes, int64_t num_codes, int64_t dim) {
  struct Slot {
    uint32_t hash;
    int64_t code = -1;
  };
  size_t size = 4;
  while (size < 2 * static_cast<size_t>(num_codes)) size *= 2;
  std::vector<Slot> slots(size);
  std::vector<int64_t> distinct;
  for (int64_t k = 0; k < num_codes; ++k) {
    const uint32_t hash = hash_of(codes + k * dim, dim);
    size_t at = hash & (size - 1);
    const auto is_other = [&](const Slot& slot) {
      return slot.hash != hash || !are_equal(codes + slot.code * dim, codes + k * dim, dim);
    };
    while (slots[at].code >= 0 && is_other(slots[at])) at = (at + 1) & (size - 1);
    if (slots[at].code >= 0) continue;
    slots[at] = {hash, k};
    distinct.push_back(k);
  }
  return distinct;
}

// The mean of the codes that are not far out. Any centre is correct, but one near the data makes
// the band narrow. Unused codes of the widely used port grow to 10^5 times their length, and there
// may be many, so the scale is taken from the shortest tenth.
void fill_center(const float* codes, int64_t num_codes, int64_t dim, float* center) {
  const int64_t step = (num_codes + kMaxSample - 1) / kMaxSample;
  std::vector<double> norms;
  for (int64_t k = 0; k < num_codes; k += step) {
    const double square = square_norm(codes + k * dim, dim);
    norms.push_back(std::isfinite(square) ? square : INFINITY);
  }
  std::vector<double> sorted(norms);
  const auto tenth = sorted.begin() + static_cast<int64_t>(sorted.size()) / 10;
  std::nth_element(sorted.begin(), tenth, sorted.end());
  const double limit = 64 * *tenth;  // eight times its length

  std::vector<double> sum(dim, 0.0);
  int64_t count = 0;
  for (size_t i = 0; i < norms.size(); ++i) {
    if (!(norms[i] <= limit) || norms[i] == INFINITY) continue;
    const float* code = codes + static_cast<int64_t>(i) * step * dim;
    for (int64_t d = 0; d < dim; ++d) sum[d] += static_cast<double>(code[d]);
    ++count;
  }
  for (int64_t d = 0; d < dim; ++d) {
    center[d] = count ? static_cast<float>(sum[d] / static_cast<double>(count)) : 0.0f;
  }
}

// Fills the bytes of a codebook whose panels are filled, unless its values do not suit them.
void pack_bytes(PackedCodebookStorage& packed, float largest_component, float largest_pair,
                const ByteLayout& layout, const RunParts& run_parts) {
  PackedCodebook& view = packed.view;
  // An infinite component stands for a code that is not screened.
  if (!(view.max_norm > 1e-12 && view.max_norm < 1e12 && std::isfinite(largest_component))) return;
  const int64_t num_blocks = (view.num_codes + layout.block - 1) / layout.block;
  const int64_t num_codes = num_blocks * layout.block;  // with padding
  packed.byte_panels = aligned<int8_t>(num_codes * layout.words * layout.word_bytes);
  packed.byte_half_norms = aligned<int8_t>(num_codes * layout.score_bytes);
  packed.byte_offsets = aligned<int8_t>(num_codes * layout.score_bytes);
  const ByteBuffers buffers = {.panels = packed.byte_panels.get(),
                               .half_norms = packed.byte_half_norms.get(),
                               .offsets = packed.byte_offsets.get()};
  ByteCodes& bytes = view.bytes;
  bytes.unit = largest_component / layout.most_component * 1.0001f;
  // The integers of a pair add up to one more at most, because both are rounded.
  const float pair = layout.most_pair > 0 ? largest_pair / layout.most_pair * 1.0001f : 0;
  bytes.unit = std::max(bytes.unit, pair);
  // Rounding moves each component by half a unit at most.
  const double norm = view.max_norm + 0.5 * std::sqrt(static_cast<double>(view.dim)) *
                                          static_cast<double>(bytes.unit);
  const float largest_half = static_cast<float>(0.5 * norm * norm);
  bytes.half_unit = largest_half / layout.most_half * 1.0001f;
  std::mutex mutex;
  run_parts(num_blocks, [&](int64_t first, int64_t last) {
    const ByteNorms norms = layout.fill(view, first, last, buffers);
    const std::lock_guard<std::mutex> lock(mutex);
    bytes.norm = std::max(bytes.norm, norms.norm);
    bytes.section_norm = std::max(bytes.section_norm, norms.section_norm);
    bytes.residual = std::max(bytes.residual, norms.residual);
  });
  bytes.panels = buffers.panels;
  bytes.half_norms = buffers.half_norms;
  bytes.offsets = buffers.offsets;
}

// `owned` holds the codes, or nothing if they are kept elsewhere.
std::shared_ptr<const PackedCodebookStorage> pack(const float* codes, Aligned<float> owned,
                                                  int64_t num_codes, int64_t dim,
                                                  const KernelTable& kernels,
                                                  const RunParts& run_parts) {
  auto packed = std::make_shared<PackedCodebookStorage>();
  packed->num_given = num_codes;
  std::vector<int64_t> numbers = distinct_codes(codes, num_codes, dim);
  if (const auto count = static_cast<int64_t>(numbers.size()); count < num_codes) {
    packed->distinct = aligned<float>(count * dim);
    for (int64_t k = 0; k < count; ++k) {
      memcpy(packed->distinct.get() + k * dim, codes + numbers[k] * dim,
             static_cast<size_t>(dim) * sizeof(float));
    }
    codes = packed->distinct.get();
    num_codes = count;
    packed->numbers = std::move(numbers);
  }
  const int64_t width = kernels.panel_width, num_panels = (num_codes + width - 1) / width;
  packed->level = kernels.name;
  packed->codes = std::move(owned);
  packed->center = aligned<float>(dim);
  packed->half_norms = aligned<float>(num_panels * width);
  packed->panels = aligned<float>(num_panels * dim * width);
  if (kernels.has_pairs) {
    packed->pair_panels = aligned<uint32_t>(num_panels * ((dim + 1) / 2) * width);
    packed->pair_units = aligned<float>(num_panels * width);
  }
  if (kernels.has_tiles && suit_tiles(num_codes, dim)) {
    const int64_t tiled = tiled_codes(num_codes), size = tiled * tile_chunks(dim) * kTileDims;
    packed->tile_panels = aligned<uint16_t>(size);
    memset(packed->tile_panels.get(), 0, static_cast<size_t>(size) * sizeof(uint16_t));
    packed->tile_half_norms = aligned<float>(tiled);
    std::fill_n(packed->tile_half_norms.get(), tiled, kEmptyScore);
  }
  fill_center(codes, num_codes, dim, packed->center.get());
  packed->view = {
      .num_codes = num_codes,
      .dim = dim,
      .codes = codes,
      .num_panels = num_panels,
      .center = packed->center.get(),
      .half_norms = packed->half_norms.get(),
      .panels = packed->panels.get(),
      .pair_panels = packed->pair_panels.get(),
      .pair_units = packed->pair_units.get(),
      .tiles = {.panels = packed->tile_panels.get(), .half_norms = packed->tile_half_norms.get()}};
  ByteLayout layout = {};
  const bool has_bytes = kernels.byte_layout(num_codes, dim, layout);
  if (has_bytes || packed->tile_panels) {
    packed->view.halves_of_stored = kernels.codes_lie_close(packed->view);
  }
  std::mutex mutex;
  float largest_component = 0, largest_pair = 0;
  const auto fill = [&](int64_t first, int64_t last) {
    const PanelNorms norms =
        kernels.fill_panels(packed->view, first, last,
                            {.panels = packed->panels.get(),
                             .half_norms = packed->half_norms.get(),
                             .pair_panels = packed->pair_panels.get(),
                             .pair_units = packed->pair_units.get(),
                             .tile_panels = packed->tile_panels.get(),
                             .tile_half_norms = packed->tile_half_norms.get()});
    const std::lock_guard<std::mutex> lock(mutex);
    packed->view.max_norm = std::max(packed->view.max_norm, norms.max_norm);
    packed->view.pair_residual = std::max(packed->view.pair_residual, norms.pair_residual);
    packed->view.tiles.residual = std::max(packed->view.tiles.residual, norms.tile_residual);
    largest_component = std::max(largest_component, norms.largest_component);
    largest_pair = std::max(largest_pair, norms.largest_pair);
  };
  if (num_codes * dim < kParallelFloats) {
    fill(0, num_panels);
  } else {
    run_parts(num_panels, fill);
  }
  if (has_bytes) {
    pack_bytes(*packed, largest_component, largest_pair, layout, run_parts);
  }
  return packed;
}

// The last codebooks that were packed, most recent first. The limit keeps them below 20 MiB in all,
// panels included: a residual quantiser of 8 x 1,024 x 128 fits.
class Cache {
 public:
  static constexpr int64_t kMaxFloats = 1536 << 10;
  using Entry = std::shared_ptr<const PackedCodebookStorage>;

  Entry find(const float* codes, int64_t num_codes, int64_t dim, const char* level) {
    std::vector<Entry> entries;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      entries = entries_;
    }
    for (const Entry& entry : entries) {
      if (entry->level == level && entry->num_given == num_codes && entry->view.dim == dim &&
          memcmp(entry->codes.get(), codes, static_cast<size_t>(num_codes * dim) * sizeof(float)) ==
              0) {
        return entry;
      }
    }
    return nullptr;
  }

  void keep(const Entry& entry) {
    std::vector<Entry> dropped;  // freed after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.insert(entries_.begin(), entry);
    int64_t floats = 0;
    size_t kept = 0;
    while (kept < entries_.size()) {
      floats += entries_[kept]->num_given * entries_[kept]->view.dim;
      if (floats > kMaxFloats) break;
      ++kept;
    }
    dropped.assign(entries_.begin() + static_cast<int64_t>(kept), entries_.end());
    entries_.resize(kept);
  }

 private:
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

Cache& cache() {
  static Cache instance;
  return instance;
}

}  // namespace

std::shared_ptr<const PackedCodebookStorage> packed_codebook(const Rows& codebook,
                                                             int64_t num_codes, int64_t dim,
                                                             int64_t num_together,
                                                             const KernelTable& kernels,
                                                             const RunParts& run_parts) {
  const bool as_is = is_contiguous_float(codebook, dim);
  const bool is_kept = num_codes * dim * num_together <= Cache::kMaxFloats;
  Aligned<float> copy;
  if (!as_is) copy = as_float(codebook, num_codes, dim);
  const float* codes = as_is ? static_cast<const float*>(codebook.data) : copy.get();
  if (!is_kept) return pack(codes, std::move(copy), num_codes, dim, kernels, run_parts);
  if (auto found = cache().find(codes, num_codes, dim, kernels.name)) return found;
  if (as_is) copy = as_float(codebook, num_codes, dim);
  codes = copy.get();
  auto packed = pack(codes, std::move(copy), num_codes, dim, kernels, run_parts);
  cache().keep(packed);
  return packed;
}

PackedCodebookStorage unpacked_codebook(const Rows& codebook, int64_t num_codes, int64_t dim) {
  PackedCodebookStorage storage;
  if (!is_contiguous_float(codebook, dim)) storage.codes = as_float(codebook, num_codes, dim);
  storage.view = {
      .num_codes = num_codes,
      .dim = dim,
      .codes = storage.codes ? storage.codes.get() : static_cast<const float*>(codebook.data)};
  return storage;
}

}  // namespace vqvae2_fast::cpu
