// The memory of one draw: everything that the two phases read and write.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "../threads/pace.h"
#include "../threads/team.h"
#include "draw.h"
#include "plan.h"
#include "schedule.h"
#include "shares.h"
#include "stage_clock.h"

namespace vqvae2_fast::cpu::sampler {

// One draw, checked by Python. Pointers are to contiguous memory.
struct Request {
  int64_t batch = 0;
  bool guided = false;
  const int64_t* labels = nullptr;   // [B], or null
  const float* classes = nullptr;    // [layers, num_rows, conv2.outputs()] in place of the plan's,
  int64_t num_rows = 0;              // the last of them "no class"; or null
  std::vector<const int64_t*> maps;  // [B, h, w] each
  const int64_t* known = nullptr;    // [B, H, W], -1 to draw; or null
  const float* noise = nullptr;      // [B, H, W, K]; null: counter-based
  uint64_t seed = 0;
  int64_t first_sample = 0;
  const int64_t* rows = nullptr;  // [B, 2]: the seed and the sample of each, in place of those
  uint32_t stream = 0;
  Rule rule;
  int64_t* codes = nullptr;          // [B, H, W]
  float* log_prob = nullptr;         // [B, H, W], or null
  float* logits = nullptr;           // [B, H, W, K], or null
  Interval* intervals = nullptr;     // [B, H, W] of the codes, to encode; or null
  RangeDecoder* decoders = nullptr;  // [B], to read codes in place of drawing; or null
  float* profile = nullptr;          // see StageClock, or null
  int64_t columns = 1;               // of a step; if more than 1, all codes are known
  int threads = 1;
};

// Inputs of n convolutions, activated: the rows being drawn and those above, in a ring. Columns
// outside the map stay zero. Values are float32, or bytes as in Product.
struct Ring {
  Buffer memory;
  const Convolutions& convolutions;
  int64_t samples, slots, columns, left, channels;

  Ring(const Convolutions& convolutions, const Taps& taps, int64_t layers, int64_t samples,
       const Schedule& schedule);
  int64_t row_stride() const { return columns * channels; }
  int64_t sample_stride() const { return slots * row_stride(); }
  // Where the input at (row, column) of a layer's sample lies; column may be outside by the taps'
  // reach.
  void* at(int64_t layer, int64_t sample, int64_t row, int64_t column) const {
    const int64_t index = (layer * samples + sample) * sample_stride() +
                          row % slots * row_stride() + (left + column) * channels;
    if (convolutions.integer()) return reinterpret_cast<uint8_t*>(memory.data()) + index;
    return memory.data() + index;
  }
};

// What a thread needs to multiply integers.
struct Integers {
  Buffer inputs;  // [step, stored inputs] bytes
  Buffer sums;    // [step, outputs] int32
  Buffer row;     // [outputs] of one convolution, float32
  Buffer start;   // [outputs], what is added to them
};

struct State {
  State(const Plan& plan, const Request& request, const KernelTable& table, Team& team);

  const Plan& plan;
  const Request& request;
  const KernelTable& table;
  const Kernels& kernels;
  Team& team;
  // Network rows: B, or 2B under guidance (with the class, then without).
  const int64_t batch, rows;
  // Whether weights that are not read again soon are prefetched as such (Product::once).
  const bool reads_once;
  const int64_t columns;  // of a step, at most the map's; 1 unless all codes are known
  const Schedule schedule;
  const int64_t segment_rows;  // the most map rows of a segment
  // The most positions of a step: columns, or map rows.
  const int64_t most_positions;
  int64_t steps = 0;
  std::atomic<int64_t> clamped{0};     // inputs, to int8
  std::atomic<bool> too_large{false};  // a logit was beyond the rule's largest, or NaN

  Ring ring1, ring2;
  // [layers, map rows, network rows, segment, outputs]: bias and taps above, then all taps. Of
  // integer convolutions these are int32 sums without bias.
  Buffer out1, out2;
  Buffer features;      // [B, h, w, condition channels]
  Buffer of_condition;  // [layers, coarse rows, B, w, conv2 outputs]
  Buffer stem_rows;     // [segment, map rows, B, channels]
  // Of a step, which has step = most_positions * rows network rows:
  Buffer gated;      // [layers, step, channels]: what each layer adds
  Buffer x, y;       // [step, channels]: a block's input, its layers' sum so far
  Buffer merged[2];  // [step, channels + kPanel]: y, coordinates; by parity of the block
  Buffer joined, joined_activated;           // [step, joined]: x, y, coordinates
  Buffer key_inner, query_inner, out_inner;  // [step, inner]
  Buffer key_gates, query_gates, out_gates;  // [step, 2 * channels out]
  Buffer key_features, query_features;       // [step, channels out]
  Buffer query, key_value;                   // [step, heads * dim], twice that; padded
  Buffer out_inputs;                         // [step, channels + heads * dim]: ELU of y, attended
  Buffer keys, values;                       // [blocks, rows, heads, positions]: attention.cpp
  Buffer activated;                          // [step, channels]: ELU(x) for the last layers
  Buffer logits;                             // [step, K padded]
  Buffer scores;                             // [threads, positions padded]
  Buffer zeros;                              // a row of biases where there are none
  std::vector<std::vector<float>> attended;  // [threads][head_dim padded]
  std::vector<Integers> integers;            // [threads], empty if nothing is integer
  std::vector<Buffer> gathered;              // [threads]: inputs of a tap in several rows
  std::vector<std::unique_ptr<Drawer>> drawers;

  // By the number of active threads: all, half of them, and so on to one.
  std::vector<Shares> shares;
  Pace pace;

  // Bias, class and condition of one position of a convolution's output, in some panels; `start` is
  // memory for them. conv2 has gates.
  const float* start_of(bool gates, int64_t layer, int64_t n, int64_t row, int64_t column,
                        Range panels, float* start) const;
  // The condition's part of a layer's gates [w, outputs], for the coarse row above a row.
  float* condition_row(int64_t layer, int64_t sample, int64_t row) const;
  // Where the outputs of a layer are in out1 or out2, in units of the outputs: those of network row
  // n at column `offset` of the segment, in its row `row`.
  int64_t place(int64_t layer, int64_t row, int64_t n, int64_t offset) const {
    return ((layer * segment_rows + row) * rows + n) * schedule.segment + offset;
  }
  float* stem_at(int64_t offset, int64_t row, int64_t sample) const {
    const int64_t at = (offset * segment_rows + row) * batch + sample;
    return stem_rows.data() + at * plan.channels;
  }
  // Whether the convolutions of all layers at a position run at once.
  bool layers_at_once() const { return columns == 1 && !plan.taps.reads_itself(); }
  int64_t key_stride() const;    // of one head
  int64_t value_stride() const;  // of one head
  int64_t value_width() const;   // of one position
};

// Every active thread calls this when a segment begins.
void row_phase(State& state, int64_t time);
// Draws the codes of these times; every active thread calls it. False if it has left the team
// before the end.
bool pixel_phase(State& state, int thread, Range times);
// Attention of block b at `columns` positions from `position` on, for some heads of the rows.
void attention_heads(State& state, int thread, Range heads, int64_t block, int64_t position,
                     int64_t columns);

}  // namespace vqvae2_fast::cpu::sampler
