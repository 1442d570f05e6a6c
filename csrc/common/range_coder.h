// A range coder over integer frequencies that sum to 2^24: 64 bits of state, words of 32 bits.
//
// The streams are those of constriction's RangeEncoder (https://docs.rs/constriction), bit for bit.
// It is written out here since constriction's Python interface builds one model per symbol, which
// takes several times as long as the sampler takes for a code.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace vqvae2_fast {

constexpr int kFrequencyBits = 24;
constexpr uint32_t kFrequencyTotal = 1u << kFrequencyBits;

// A symbol's part of [0, 2^24): `size` values from `begin`.
struct Interval {
  uint32_t begin, size;
};

class RangeEncoder {
 public:
  // The stream so far, complete only after finish().
  const std::vector<uint32_t>& words() const { return words_; }

  void encode(Interval interval) {
    const uint64_t scale = range_ >> kFrequencyBits;
    const uint64_t lower = lower_ + scale * interval.begin;
    range_ = scale * interval.size;
    // While the range spans a carry, the words are not known. That may have just ended.
    if (num_held_ > 0 && lower + range_ > lower) write_held(lower < lower_);
    lower_ = lower;
    if (range_ >= uint64_t{1} << 32) return;
    const uint32_t word = static_cast<uint32_t>(lower_ >> 32);
    lower_ <<= 32;
    range_ <<= 32;
    if (num_held_ > 0) {
      ++num_held_;
    } else if (lower_ + range_ > lower_) {
      words_.push_back(word);
    } else {
      num_held_ = 1;
      first_held_ = word;
    }
  }

  // Writes the shortest end from which every symbol can be decoded; call once, at the end.
  void finish() {
    if (range_ == ~uint64_t{0}) return;  // nothing was encoded
    const uint64_t point = lower_ + 0xFFFFFFFFu;
    if (num_held_ > 0) write_held(point < lower_);
    const uint32_t point_word = static_cast<uint32_t>(point >> 32);
    words_.push_back(point_word);
    if (static_cast<uint32_t>((lower_ + range_) >> 32) == point_word) words_.push_back(0);
  }

 private:
  // The first held word plus the carry. The others are then all zeros with a carry, and all ones
  // without.
  void write_held(bool carry) {
    words_.push_back(first_held_ + (carry ? 1u : 0u));
    words_.insert(words_.end(), num_held_ - 1, carry ? 0u : ~0u);
    num_held_ = 0;
  }

  uint64_t lower_ = 0, range_ = ~uint64_t{0};
  size_t num_held_ = 0;
  uint32_t first_held_ = 0;
  std::vector<uint32_t> words_;
};

// Reads `num_words` words of a stream. A damaged stream gives other symbols or is not
// `finished`, and is never read beyond its end.
class RangeDecoder {
 public:
  RangeDecoder(const uint32_t* words, size_t num_words) : words_(words), end_(words + num_words) {
    point_ = uint64_t{next_word()} << 32;
    point_ |= next_word();
  }

  // Whether the stream ends where its encoder ended: after the last symbol of an intact stream.
  bool finished() const {
    if (failed_ || words_ != end_) return false;
    if (range_ == ~uint64_t{0}) return num_missing_ == 2;  // nothing was encoded
    // This is the point that finish() chose, with its second word only if that is needed.
    const uint64_t point_word = (lower_ + 0xFFFFFFFFu) >> 32;
    const bool needs_second = (lower_ + range_) >> 32 == point_word;
    return point_ >> 32 == point_word && num_missing_ == (needs_second ? 0u : 1u);
  }

  // Where in [0, 2^24) the next symbol's interval lies.
  uint32_t peek() {
    scale_ = range_ >> kFrequencyBits;
    const uint64_t quantile = (point_ - lower_) / scale_;
    if (quantile < kFrequencyTotal) return static_cast<uint32_t>(quantile);
    failed_ = true;
    return 0;
  }

  // Takes the symbol whose interval holds what peek() returned.
  void take(Interval interval) {
    lower_ += scale_ * interval.begin;
    range_ = scale_ * interval.size;
    if (range_ >= uint64_t{1} << 32) return;
    lower_ <<= 32;
    range_ <<= 32;
    point_ = point_ << 32 | next_word();
  }

 private:
  // Zeros after the end: any would do there.
  uint32_t next_word() {
    if (words_ != end_) return *words_++;
    ++num_missing_;
    return 0;
  }

  const uint32_t *words_, *end_;
  uint64_t lower_ = 0, range_ = ~uint64_t{0}, point_ = 0, scale_ = 0;
  size_t num_missing_ = 0;
  bool failed_ = false;
};

}  // namespace vqvae2_fast
