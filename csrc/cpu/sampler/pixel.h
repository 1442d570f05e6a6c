// One thread's work at a few neighbouring columns of the current row, implemented in
// pixel_phase.cpp. All threads run it in parallel, each on its own panels of outputs, channels,
// heads or positions, and meet at a barrier wherever the outputs of one become the inputs of
// another.
//
// A step computes `columns` columns from j. With one column, everything that it reads is final.
// With a window (State::window > 1), codes[j..] hold guesses. Each column is computed as if the
// guesses before it were right, and the codes drawn replace them. The first column is always right,
// and column k is if the guesses before it were drawn again. Everything after the last right column
// is computed again in the next step. Network row r = n * columns + k is column j + k of row n of
// the batch.
#pragma once

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {

class Pixel {
 public:
  Pixel(State& state, int thread, int64_t i);

  bool draw_row();  // as pixel_phase

 private:
  int64_t num_rows() const { return s.rows * columns; }
  void look_up_shares();  // of as many threads as are active
  // Waits until all threads have done this stage and can see its results.
  void meet(Stage stage);
  Range share_of(int64_t count) const;

  // pixel_integers.cpp: inputs that are rounded to int8, and what they have shown.
  void put(const Ring& ring, int64_t layer, int64_t n, int64_t column, int64_t begin,
           const float* x, int64_t count);
  void multiply_integers(const Matrices& m, int64_t n, Range panels, const float* a,
                         int64_t a_stride, float* c);
  void note(int64_t column, int64_t clamped);
  void settle(int64_t first, int64_t parity);

  // pixel_convolutions.cpp: the current taps, and the gates of the causal layers.
  void convolve_side_by_side();
  void convolve_in_turn(int64_t block);
  void add_tap(const Convolutions& convolutions, const Ring& ring, float* out, int64_t layer,
               int64_t tap, Range panels);
  void add_taps(const Convolutions& convolutions, const Ring& ring, Buffer& row, Buffer& window,
                int64_t layer, Range panels);
  const float* output_at(bool gates, int64_t layer, int64_t n, int64_t k, Range panels) const;
  void activate_first(int64_t layer, Range panels);

  // pixel_phase.cpp: the pointwise layers, attention, and the draw.
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

  // pixel_draw.cpp
  void guess_row();
  void make_noise(int64_t b, int64_t position, float* noise);
  void draw_codes();
  int64_t num_right() const;
  void record(int64_t count);

  State& s;
  const Plan& plan;
  const Kernels& kernels;
  const int thread;
  const int64_t i;
  const Shares* shares = nullptr;
  int64_t j = 0, columns = 1;
  int64_t parity = 0;  // of the row's step
  StageClock clock;
};

}  // namespace vqvae2_fast::cpu::sampler
