// The CUDA sampler's C interface: Python calls it through ctypes, tests through a build that runs
// the kernels on the CPU.
//
// For a draw, `vq_sampler_sizes` says how much memory it takes, and the caller provides it.
// `vq_sampler_program` writes the program into host memory, and the caller copies it to the card.
// `vq_sampler_row` then launches row after row. What is passed by name stands in values.h and
// vqvae2_fast/sampling/engines/cuda.py. Everything returns null or an error's text, which lives
// until the thread's next error.
#pragma once

#include <stdint.h>

#define VQ_API extern "C" __attribute__((visibility("default")))

// sizes: bytes of the zeroed workspace, of the program, blocks of the grid, stages, shared memory.
VQ_API const char* vq_sampler_sizes(const char* const* names, const int64_t* values, int64_t count,
                                    int64_t sizes[5]);
VQ_API const char* vq_sampler_program(const char* const* names, const int64_t* values,
                                      int64_t count, void* program);

// Draws row i on `stream`. `program` is the host's copy, `on_card` the card's.
VQ_API const char* vq_sampler_row(const void* program, const void* on_card, int32_t i,
                                  void* stream);
// Blocks of the persistent launch that the current context holds at once, one per multiprocessor,
// bytes of shared memory that a block may have, and how many clusters of 16 and of 8 such blocks it
// holds at once; or why it runs no such launch.
VQ_API const char* vq_sampler_card(int64_t card[4]);
#if defined(VQ_STAGE_TIMES)
// In such a build the value "stage_times" may be the address of zeroed memory of the device, 8-byte
// words [width, blocks, stages, moments] as vq_sampler_sizes and vq_sampler_moments say, to which
// each row writes when a block's step began, was computed and was told (stage_times.cuh), in
// nanoseconds.
VQ_API int32_t vq_sampler_moments();
// The plan's stages as a table with a head, separated by semicolons, zero-terminated, to `text`,
// which has `size` bytes.
VQ_API const char* vq_sampler_stages(const char* const* names, const int64_t* values, int64_t count,
                                     char* text, int64_t size);
#endif
