// Attention of a step's positions: the keys and values of the thread's heads join the cache, then
// each position looks at those before it.
#include <string.h>

#include "../../common/bounds.h"
#include "../kernels.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Where one head of one sample keeps its keys and values.
struct CachedHead {
  float *keys, *values;
};

void join(const Attention& attention, const CachedHead& cached, const float* pair, int64_t head,
          int64_t position, int64_t value_width) {
  const int64_t dim = attention.head_dim, all = attention.num_heads * dim;
  float* key = cached.keys + position / kPanel * dim * kPanel + position % kPanel;
  for (int64_t c = 0; c < dim; ++c) key[c * kPanel] = within_bound(pair[head * dim + c]);
  memcpy(cached.values + position * value_width, pair + all + head * dim, dim * sizeof(float));
}

}  // namespace

void attention_heads(State& state, int thread, Range of_heads, int64_t block, int64_t position,
                     int64_t columns) {
  const Attention& attention = state.plan.attention;
  const int64_t heads = attention.num_heads, dim = attention.head_dim;
  const int64_t value_width = state.value_width();
  const int64_t scores_size = state.scores.size() / state.team.size();
  float* scores = state.scores.data() + thread * scores_size;
  float* out = state.attended[thread].data();
  for (int64_t item = of_heads.begin; item < of_heads.end; ++item) {
    const int64_t n = item / heads, head = item % heads;
    const int64_t index = (block * state.rows + n) * heads + head;
    const CachedHead cached = {state.keys.data() + index * state.key_stride(),
                               state.values.data() + index * state.value_stride()};
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t r = k * state.rows + n, before = position + k;
      // A position sees only those before it, so its own keys and values may join first.
      join(attention, cached, state.key_value.data() + r * attention.key_value_weight.outputs(),
           head, before, value_width);
      if (before == 0) {
        memset(out, 0, value_width * sizeof(float));
      } else {
        state.kernels.attend(
            {.query = state.query.data() + r * attention.query_weight.outputs() + head * dim,
             .keys = cached.keys,
             .values = cached.values,
             .positions = before,
             .dim = dim,
             .value_width = value_width,
             .scores = scores,
             .out = out,
             .next_keys = cached.keys + state.key_stride()});
      }
      state.kernels.elu(out, out, value_width);
      memcpy(state.out_inputs.data() + r * attention.out.first.inputs + state.plan.channels +
                 head * dim,
             out, dim * sizeof(float));
    }
  }
}

}  // namespace vqvae2_fast::cpu::sampler
