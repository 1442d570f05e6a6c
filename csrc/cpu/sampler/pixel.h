// One thread's work at a few positions (pixel_phase.cpp, pixel_convolutions.cpp, pixel_integers.cpp
// and pixel_draw.cpp). All threads run it in parallel, each on its own panels of outputs, channels,
// heads or positions, and meet at a barrier wherever the outputs of one become the inputs of
// another.
//
// A step computes `positions` positions of each sample, from (i, j) on. They are either one column
// in each of several rows (schedule.h), and everything that they read is final. Or, with a window
// (State::window > 1), they are neighbouring columns of one row. Then codes[j..] hold guesses. Each
// column is computed as if the guesses before it were right, and the codes drawn replace them. The
// first column is always right, and column k is if the guesses before it were drawn again.
// Everything after the last right column is computed again in the next step. Network row r = k *
// rows + n is position k of row n of the batch.
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
  int64_t row_of(int64_t k) const { return in_window ? i : i + k; }
  int64_t column_of(int64_t k) const { return in_window ? j + k : s.schedule.column(i + k, time); }
  int64_t position_of(int64_t k) const { return row_of(k) * plan.width + column_of(k); }
  // Where position k lies in the segment: its column there, and the number of its row.
  int64_t offset_of(int64_t k) const { return time - segment_begin + (in_window ? k : 0); }
  int64_t segment_row_of(int64_t k) const { return row_of(k) - segment_first_row; }
  void go_to(int64_t time);
  void look_up_shares();  // of as many threads as are active
  // Waits until all threads have done this stage and can see its results.
  void meet(Stage stage);
  Range share_of(int64_t count) const;

  // pixel_integers.cpp: inputs that are rounded to int8, and what they have shown.
  void put(const Ring& ring, int64_t layer, int64_t r, int64_t begin, const float* x,
           int64_t count);
  void multiply_integers(const Matrices& m, int64_t n, Range panels, const float* a,
                         int64_t a_stride, float* c);
  void note(int64_t k, int64_t clamped);
  void settle(int64_t parity);

  // pixel_convolutions.cpp: the current taps, and the gates of the causal layers.
  void convolve_layers_at_once();
  void convolve_in_turn(int64_t block);
  void add_tap(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
               int64_t tap, Range panels);
  void add_taps(const Convolutions& convolutions, const Ring& ring, Buffer& row, Buffer& window,
                int64_t layer, Range panels);
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

  // pixel_draw.cpp: guesses, noise and the draw.
  void guess_row(int64_t row);
  void make_noise(int64_t b, int64_t position, float* noise);
  const float* logits_of(int64_t item) const;
  void draw_codes();
  int64_t num_right() const;
  void record(int64_t count);

  State& s;
  const Plan& plan;
  const Kernels& kernels;
  const int thread;
  const Range times;
  const bool in_window;
  const Shares* shares = nullptr;
  int64_t time = 0, segment_begin = 0, segment_first_row = 0;
  int64_t i = 0, j = 0, positions = 1;
  int64_t parity = 0;                          // of the step
  int64_t last_positions = 0, last_right = 0;  // of the step before
  StageClock clock;
};

}  // namespace vqvae2_fast::cpu::sampler
