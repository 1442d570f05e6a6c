// The part of the C interface that launches kernels.
#include <algorithm>

#include "../launch.h"
#include "chain.cuh"
#include "packed_program.h"
#include "pixel_phase.cuh"
#include "row_phase.cuh"
#include "sampler.h"
#include "stem.cuh"

namespace vqvae2_fast::cuda::sampler {
namespace {

template <typename Mode, typename Tile>
const char* launch_products(const RowProduct& first, const RowProduct& second, void* stream) {
  const auto tiles = [](int a, int b, int tile) {
    return static_cast<unsigned>(((a > b ? a : b) + tile - 1) / tile);
  };
  LaunchShape shape;
  shape.grid = dim3(tiles(first.rows, second.rows, Tile::kRows),
                    tiles(first.outputs, second.outputs, Tile::kColumns),
                    static_cast<unsigned>(first.layers + second.layers));
  shape.block = dim3(static_cast<unsigned>(kRowThreads));
  shape.stream = stream;
  return launch("sampler row phase", row_phase_kernel<Mode, Tile>, shape, first, second);
}

template <typename Mode>
const char* launch_products(const RowTile& tile, const RowProduct& first, const RowProduct& second,
                            void* stream) {
  switch (tile.columns) {
    case 32:
      return launch_products<Mode, Tile<32, 32, 32>>(first, second, stream);
    case 64:
      return launch_products<Mode, Tile<32, 64, 32>>(first, second, stream);
    default:
      return launch_products<Mode, Tile<64, 128, 64>>(first, second, stream);
  }
}

const char* launch_products(RowMode mode, const RowTile& tile, const RowProduct& first,
                            const RowProduct& second, void* stream) {
  switch (mode) {
    case RowMode::kFloat32:
      return launch_products<Float32>(tile, first, second, stream);
    case RowMode::kTensorFloat32:
      return launch_products<TensorFloat32>(tile, first, second, stream);
    default:
      return launch_products<BFloat16Pair>(tile, first, second, stream);
  }
}

const char* row_phase(const PackedProgram& packed, int i, void* stream) {
  const Network& net = packed.program.network;
  const RowPhase& phase = packed.row_phase;
  if (phase.condition.layers > 0 && i % phase.down == 0) {
    RowProduct condition = phase.condition, none = {};
    condition.segments[0] = static_cast<int64_t>(i / phase.down) * phase.condition_row;
    if (const char* error =
            launch_products(phase.mode, phase.condition_tile, condition, none, stream)) {
      return error;
    }
  }
  LaunchShape shape;
  const int64_t count = static_cast<int64_t>(net.batch) * net.width * net.channels;
  constexpr int64_t kMaxBlocks = 1024;  // enough to fill any card; the kernel strides over the rest
  const int64_t blocks = (count + kStemThreads - 1) / kStemThreads;
  shape.grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
  shape.block = dim3(kStemThreads);
  shape.stream = stream;
  if (const char* error = launch("sampler stem", stem_row_kernel, shape, net, i)) return error;
  return launch_products(phase.mode, phase.tile, phase.at_row(phase.conv1, net.slots, net.ring1, i),
                         phase.at_row(phase.conv2, net.slots, net.ring2, i), stream);
}

template <typename Weight>
const char* pixel_phase(const PackedProgram& packed, const void* on_card, int i, void* stream) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(packed.program.grid));
  shape.block = dim3(static_cast<unsigned>(packed.program.threads));
  shape.shared_bytes = packed.program.shared_bytes;
  shape.stream = stream;
  shape.cooperative = true;
  return launch("sampler pixel phase", pixel_phase_kernel<Weight>, shape, packed.program,
                static_cast<const unsigned char*>(on_card), i);
}

LaunchShape cluster_shape(int grid, int cluster, int threads, size_t shared_bytes) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(grid));
  shape.block = dim3(static_cast<unsigned>(threads));
  shape.shared_bytes = shared_bytes;
  shape.cooperative = true;
  shape.cluster = static_cast<unsigned>(cluster);
  return shape;
}

// How many clusters the current device holds at once, of either kernel.
int clusters_of(int size, int shared_bytes) {
  const LaunchShape shape = cluster_shape(size, size, kMaxThreads, shared_bytes);
  return std::min(co_resident_clusters(pixel_cluster_kernel<float>, shape),
                  co_resident_clusters(pixel_cluster_kernel<BFloat16>, shape));
}

template <typename Weight>
const char* pixel_phase_on_clusters(const PackedProgram& packed, const void* on_card, int i,
                                    void* stream) {
  const Program& program = packed.program;
  LaunchShape shape =
      cluster_shape(program.grid, program.chain.blocks, program.threads, program.shared_bytes);
  shape.stream = stream;
  return launch("sampler pixel phase on clusters", pixel_cluster_kernel<Weight>, shape, program,
                static_cast<const unsigned char*>(on_card), i);
}

}  // namespace
}  // namespace vqvae2_fast::cuda::sampler

using namespace vqvae2_fast::cuda::sampler;

const char* vq_sampler_row(const void* program, const void* on_card, int32_t i, void* stream) {
  const PackedProgram& packed = *static_cast<const PackedProgram*>(program);
  if (const char* error = row_phase(packed, i, stream)) return error;
  if (packed.program.chain.blocks > 0) {
    return packed.weight_bytes == 4 ? pixel_phase_on_clusters<float>(packed, on_card, i, stream)
                                    : pixel_phase_on_clusters<BFloat16>(packed, on_card, i, stream);
  }
  return packed.weight_bytes == 4 ? pixel_phase<float>(packed, on_card, i, stream)
                                  : pixel_phase<BFloat16>(packed, on_card, i, stream);
}

const char* vq_sampler_card(int64_t card[4]) {
  const auto kernel = pixel_phase_kernel<float>;
  if (const char* reason = vqvae2_fast::cuda::why_not_runnable(kernel)) return reason;
  int device = 0, multiprocessors = 0, shared_bytes = 0, cooperative = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  read(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(&cooperative, cudaDevAttrCooperativeLaunch);
  if (error == cudaSuccess) {
    error = vqvae2_fast::cuda::multiprocessors_of_context(&multiprocessors);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  if (!cooperative) return "the card launches no cooperative kernels";
  const int resident = vqvae2_fast::cuda::co_resident_blocks(
      kernel, kMaxThreads, static_cast<size_t>(shared_bytes - kSharedMargin));
  if (resident < multiprocessors) {
    return "a multiprocessor cannot hold a block of the persistent kernel";
  }
  card[0] = multiprocessors;
  card[1] = shared_bytes;
  card[2] = clusters_of(16, shared_bytes - kSharedMargin);
  card[3] = clusters_of(8, shared_bytes - kSharedMargin);
  return nullptr;
}
