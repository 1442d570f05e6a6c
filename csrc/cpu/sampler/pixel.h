// One thread's work at a few positions (pixel_phase.cpp, pixel_convolutions.cpp, pixel_integers.cpp
// and pixel_draw.cpp). All threads run it in parallel, each on its own panels of outputs, channels,
// heads or positions, and meet at a barrier wherever the outputs of one become the inputs of
// another.
//
// A step computes `positions` positions of each sample, from (i, j) on: one column in each of
// several rows (schedule.h) or, where all codes are known (State::columns > 1), neighbouring
// columns of one row. Network row r = k * rows + n is position k of row n of the batch.
#pragma once

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {

class Pixel {
 public:
  Pixel(State& state, int thread, Range times);

  bool draw();  // as pixel_phase

 private:
  int64_t num_rows() const { return s.rows * positions; }
  int64_t row_of(int64_t k) const { return along_row ? i : i + k; }
  int64_t column_of(int64_t k) const { return along_row ? j + k : s.schedule.column(i + k, time); }
  int64_t position_of(int64_t k) const { return row_of(k) * plan.width + column_of(k); }
  // Where position k lies in the segment: its column there, and the number of its row.
  int64_t offset_of(int64_t k) const { return time - segment_begin + (along_row ? k : 0); }
  int64_t segment_row_of(int64_t k) const { return row_of(k) - segment_first_row; }
  void go_to(int64_t time);
  void look_up_shares();  // of as many threads as are active
  // Waits until all threads have done this stage and can see its results.
  void meet(Stage stage);
  Range share_of(int64_t count) const;

  // pixel_integers.cpp: inputs that are rounded to int8.
  void put(const Ring& ring, int64_t layer, int64_t r, int64_t begin, const float* x,
           int64_t count);
  void multiply_integers(const Matrices& m, int64_t n, Range panels, const float* a,
                         int64_t a_stride, float* c);
  void note(int64_t clamped);

  // pixel_convolutions.cpp: the current taps, and the gates of the causal layers.
  void convolve_layers_at_once();
  void convolve_in_turn(int64_t block);
  void add_tap(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
               int64_t tap, Range panels);
  void add_taps(const Convolutions& convolutions, const Ring& ring, Buffer& out, int64_t layer,
                Range panels);
  const float* output_at(bool gates, int64_t layer, int64_t r, Range panels) const;
  const void* gather(const Ring& ring, int64_t layer, int64_t offset, int64_t served);
  void activate_first(int64_t layer, Range panels);

  // pixel_phase.cpp: the order of the stages, the pointwise layers and the attention.
  void multiply(const Matrices& m, int64_t n, Range panels, const float* a, int64_t a_stride,
                float* c);
  void activate(const Matrices& m, Range panels, float* c);
  void gate(const Matrices& m, Range panels, const float* gates, const float* residual,
            int64_t residual_stride, float* out, float* activated);
  void add_stem(Range channels);
  void begin_block(int64_t block, Range channels);
  void end_layers(int64_t block, Range channels);
  void end_block(int64_t block, Range channels);
  void merge(int64_t block);
  void attend(int64_t block);
  void finish();

  // pixel_draw.cpp: noise and the draw.
  void make_noise(int64_t b, int64_t position, float* noise);
  const float* logits_of(int64_t item) const;
  void draw_codes();
  void record();

  State& s;
  const Plan& plan;
  const Kernels& kernels;
  const int thread;
  const Range times;
  const bool along_row;
  const Shares* shares = nullptr;
  int64_t time = 0, segment_begin = 0, segment_first_row = 0;
  int64_t i = 0, j = 0, positions = 1;
  StageClock clock;
};

}  // namespace vqvae2_fast::cpu::sampler
