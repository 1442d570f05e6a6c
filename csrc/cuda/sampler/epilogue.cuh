// What follows a sum, channel by channel: activations, gates, the chain of a block's layers.
#pragma once

#include "../../common/counter_noise.h"
#include "math.cuh"
#include "memory.cuh"
#include "program.h"

namespace vqvae2_fast::cuda::sampler {

// Puts ELU(x), an input of a layer's convolution, into the ring.
__device__ __forceinline__ void put_activated(const Network& net, const Ring& ring, int layer,
                                              Place at, int c, float x) {
  ring.values[ring_index(net, ring, layer, at.n, at.i, at.j) + c] = elu(x);
}

// Once y, the output of a block's layers, is known in channel c, puts it where the rest of the
// block reads it.
template <class To>
__device__ __forceinline__ void end_layers(const Network& net, Place at, int block, int c, float x,
                                           float y, const To& to) {
  const float* background = net.background + (at.i * net.width + at.j) * 2;
  if (net.num_heads == 0) {
    float* merged = net.merged[block % 2] + at.n * net.merged_stride;
    to.put(merged + c, within_bound(y));
    if (c < 2) to.put(merged + net.channels + c, background[c]);
    return;
  }
  float* joined = net.joined + at.n * net.joined_stride;
  float* activated = net.joined_activated + at.n * net.joined_stride;
  const float activated_y = elu(y);
  to.put(joined + c, x);
  to.put(joined + net.channels + c, y);
  to.put(activated + c, elu(x));
  to.put(activated + net.channels + c, activated_y);
  to.put(net.out_inputs + at.n * net.out_stride + c, activated_y);
  if (c < 2) {
    to.put(joined + 2 * net.channels + c, background[c]);
    to.put(activated + 2 * net.channels + c, elu(background[c]));
  }
}

// Once x, a block's input, is known in channel c, computes what depends only on this channel.
template <class To>
__device__ __forceinline__ void begin_block(const Network& net, Place at, int block, int c, float x,
                                            const To& to) {
  const int channel = at.n * net.channels + c;
  // In a cluster another block may be a stage ahead, and only the last block's x is read.
  if (!To::kCluster || block == net.num_blocks) to.put(net.x + channel, x);
  if (block == net.num_blocks) {
    to.put(net.activated + channel, elu(x));
    return;
  }
  const int first = block * net.layers_per_block;
  float y = x;
  if (net.side_by_side) {
#pragma unroll 4
    for (int layer = first; layer < first + net.layers_per_block; ++layer) {
      if (to.writes_global()) put_activated(net, net.ring1, layer, at, c, y);
      y += to.get(net.gated + layer * net.rows * net.channels + channel);
    }
    end_layers(net, at, block, c, x, y, to);
  } else {
    net.y[channel] = y;
    put_activated(net, net.ring1, first, at, c, y);
  }
}

// Called when y after a layer that reads its own position is known in channel c.
__device__ __forceinline__ void end_layer(const Network& net, Place at, int layer, int c, float y) {
  const int channel = at.n * net.channels + c;
  net.y[channel] = y;
  if ((layer + 1) % net.layers_per_block != 0) {
    put_activated(net, net.ring1, layer + 1, at, c, y);
  } else {
    end_layers(net, at, layer / net.layers_per_block, c, fresh(net.x + channel), y, GlobalMemory());
  }
}

// The key or value `value` of output o joins the caches of a block.
template <class To>
__device__ __forceinline__ void cache_key_value(const Network& net, Place at, int block, int o,
                                                float value, const To& to) {
  const int all = net.num_heads * net.head_dim, of = o % all;
  // The blocks of a cluster learn from it that the sum has been computed.
  if constexpr (To::kCluster) to.put(net.key_value + at.n * 2 * all + o, value);
  if (!to.writes_global()) return;
  const int64_t positions = (net.height * net.width + kLanes - 1) / kLanes * kLanes;
  const int64_t position = at.i * net.width + at.j;
  const int64_t head =
      (static_cast<int64_t>(block) * net.rows + at.n) * net.num_heads + of / net.head_dim;
  const int c = of % net.head_dim;
  if (o < all) {
    const int64_t group =
        head * positions * net.head_dim + position / kLanes * kLanes * net.head_dim;
    to.put_cached(net.keys + group + c * kLanes + position % kLanes, within_bound(value));
  } else {
    to.put_cached(net.values + (head * positions + position) * net.head_dim + c, value);
  }
}

// What a unit's sums are added to. It is loaded before they are computed, so that it has arrived
// from the L2 cache when they are ready.
struct Addends {
  float2 initial;
  float residual;  // if the epilogue has one
};

template <class To>
__device__ __forceinline__ Addends load_addends(const Network& net, const Operation& op, Place at,
                                                int unit, const To& to) {
  const float* initial = op.initial + at.n * op.initial_row + at.j * op.initial_column;
  Addends addends = {};
  addends.initial = *reinterpret_cast<const float2*>(initial + kUnit * unit);
  if (op.epilogue == Epilogue::kGateLayer) {
    addends.residual = to.get(net.y + at.n * net.channels + unit);
  } else if (op.epilogue > Epilogue::kGateLayer) {
    addends.residual = to.get(op.residual + at.n * op.residual_row + unit);
  }
  return addends;
}

// `sum`: those of a unit without what they are added to.
template <class To>
__device__ __forceinline__ void finish_unit(const Network& net, const Operation& op, Place at,
                                            int unit, float2 sum, const Addends& addends,
                                            const To& to) {
  float v0 = sum.x + addends.initial.x, v1 = sum.y + addends.initial.y;
  float* output = op.output + at.n * op.output_row + at.j * op.output_column +
                  at.i % net.slots * op.output_slot;
  if (op.epilogue >= Epilogue::kGate) {
    // It is rounded here, whether it is stored or added at once.
    const float gate = VQ_MUL(v0, sigmoid(v1));
    if (op.epilogue == Epilogue::kGate) {
      to.put(output + unit, gate);
    } else if (op.epilogue == Epilogue::kGateLayer) {
      end_layer(net, at, op.index, unit, addends.residual + gate);
    } else {
      const float value = addends.residual + gate;
      if (op.epilogue == Epilogue::kGateResidual) {
        to.put(output + unit, value);
      } else if (op.epilogue == Epilogue::kGateBlock) {
        begin_block(net, at, op.index + 1, unit, value, to);
      } else {
        to.put(net.x + at.n * net.channels + unit, value);
        to.put(net.activated + at.n * net.channels + unit, elu(value));
      }
    }
    return;
  }
#pragma unroll 1
  for (int o = kUnit * unit; o < kUnit * unit + kUnit && o < op.outputs; ++o, v0 = v1) {
    switch (op.epilogue) {
      case Epilogue::kStore:
        to.put(output + o, v0);
        break;
      case Epilogue::kActivate:
        to.put(output + o, elu(v0));
        break;
      case Epilogue::kKeyValue:
        cache_key_value(net, at, op.index, o, v0, to);
        break;
      default:  // kMerge
        begin_block(net, at, op.index + 1, o, v0, to);
    }
  }
}

}  // namespace vqvae2_fast::cuda::sampler
