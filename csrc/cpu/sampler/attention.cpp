// Attention of one position: the thread's heads look at the positions before, then join the cache.
#include <string.h>

#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {

void attention_heads(State& state, int thread, int64_t block, int64_t position) {
  const Attention& attention = state.plan.attention;
  const int64_t heads = attention.num_heads, dim = attention.head_dim, all = heads * dim;
  const int64_t value_width = state.value_width();
  const int64_t scores_size = state.scores.size() / state.team.size();
  std::vector<float>& attended = state.attended[thread];
  for (int64_t item = state.of_heads[thread].begin; item < state.of_heads[thread].end; ++item) {
    const int64_t n = item / heads, head = item % heads;
    const int64_t cached = (block * state.rows + n) * heads + head;
    float* keys = state.keys.data() + cached * state.key_stride();
    float* values = state.values.data() + cached * state.value_stride();
    float* out = attended.data();
    if (position == 0) {
      memset(out, 0, value_width * sizeof(float));
    } else {
      state.kernels.attend({state.query.data() + n * attention.query_weight.outputs() + head * dim,
                            keys, values, position, dim, value_width,
                            state.scores.data() + thread * scores_size, out,
                            keys + state.key_stride()});
    }
    state.kernels.elu(out, out, value_width);
    memcpy(
        state.out_inputs.data() + n * attention.out.first.inputs + state.plan.channels + head * dim,
        out, dim * sizeof(float));

    const float* pair = state.key_value.data() + n * attention.key_value_weight.outputs();
    float* key = keys + position / kPanel * dim * kPanel + position % kPanel;
    for (int64_t c = 0; c < dim; ++c) key[c * kPanel] = pair[head * dim + c];
    memcpy(values + position * value_width, pair + all + head * dim, dim * sizeof(float));
  }
}

}  // namespace vqvae2_fast::cpu::sampler
