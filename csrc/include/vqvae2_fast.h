/* The exact CPU kernels of vqvae2_fast for programs without PyTorch or Python, in C99.
 *
 * Sizes: N vectors, D numbers of a vector, K codes of a codebook, Q codebooks in a row. Memory is
 * the caller's, contiguous, and row after row; it may begin at any address that suits its type.
 * Results may not overlap with arguments.
 *
 * Every result has the bits of the operator in vqvae2_fast.ops on float32 tensors (vq2_lookup: of
 * ResidualVQ.lookup), at every SIMD level. The first call chooses the level, the highest that the
 * processor has, or VQVAE2_FAST_SIMD.
 *
 * A function returns VQ2_OK, or else another status; then vq2_last_error() says why, and what the
 * results hold is not defined. With N = 0 nothing is read or written, and pointers to vectors and
 * results may be NULL. NaN and infinity are no errors.
 *
 * Threads: a call uses only the thread that makes it. Any number of threads may call at once: to
 * use several, give each a part of the vectors; the bits stay the same. The library keeps copies of
 * the last codebooks that it has searched, some 20 MiB at most for all threads, so that a codebook
 * that does not change is prepared once.
 */
#ifndef VQVAE2_FAST_H
#define VQVAE2_FAST_H

#include <stdint.h>

#if defined(__GNUC__)
#define VQ2_API __attribute__((visibility("default")))
#else
#define VQ2_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { VQ2_OK = 0, VQ2_INVALID_ARGUMENT = 1, VQ2_OUT_OF_MEMORY = 2 };

/* Why the last call of this thread that failed did so; "" if none has. Valid until the next call
 * that fails. */
VQ2_API const char* vq2_last_error(void);

/* The SIMD level in use, such as "avx512"; NULL if VQVAE2_FAST_SIMD names one that is not there. */
VQ2_API const char* vq2_simd_level(void);

/* The nearest code of each vector: indices[n] = argmin_k sum_d (z[n, d] - codebook[k, d])^2, the
 * sum in float64 in the order of d; ties take the lowest index. NaN never wins, and a vector
 * without a finite distance gets index 0.
 *   z [N, D], codebook [K, D]; K, D >= 1
 *   indices [N]
 *   sqdist [N]: the distances, rounded once; may be NULL */
VQ2_API int vq2_nearest_code(const float* z, int64_t num_vectors, const float* codebook,
                             int64_t num_codes, int64_t dim, int64_t* indices, float* sqdist);

/* Residual quantisation: codebook q takes the code nearest to what those before it have left over,
 * r_0 = z and r_{q+1} = r_q - code in float32. To use fewer quantisers, pass a lower Q. A codebook
 * with fewer codes is filled up with NaN.
 *   z [N, D], codebooks [Q, K, D]; Q, K, D >= 1
 *   indices [N, Q], z_q [N, D]: the sums of the codes */
VQ2_API int vq2_residual_nearest_code(const float* z, int64_t num_vectors, const float* codebooks,
                                      int64_t num_quantizers, int64_t num_codes, int64_t dim,
                                      int64_t* indices, float* z_q);

/* The codes of indices, in sums over q; of one codebook, with Q = 1, its rows.
 *   indices [N, Q] from 0 to below K: others are refused; codebooks [Q, K, D]; Q, K, D >= 1
 *   z_q [N, D] */
VQ2_API int vq2_lookup(const int64_t* indices, int64_t num_vectors, const float* codebooks,
                       int64_t num_quantizers, int64_t num_codes, int64_t dim, float* z_q);

/* Finite scalar quantisation: each number goes through a bound and is rounded to one of the values
 * of its grid. symmetric: the grid from -1 to 1. hard: bound by clamping instead of by tanh. The
 * formulas: https://arxiv.org/abs/2309.15505, appendix A.1; symmetric:
 * https://arxiv.org/abs/2411.19842, eq. 4.
 *   z [N, D]; levels [D], how many values each number has, from 2 to 2^22; D >= 1
 *   indices [N]: sum_i digit_i * prod_{j<i} levels_j modulo 2^64; digit 0 is the least value, and
 *   that of NaN
 *   values [N, D]: NaN where z is */
VQ2_API int vq2_scalar_quantize(const float* z, int64_t num_vectors, const int64_t* levels,
                                int64_t dim, int symmetric, int hard, int64_t* indices,
                                float* values);

#ifdef __cplusplus
}
#endif

#endif
