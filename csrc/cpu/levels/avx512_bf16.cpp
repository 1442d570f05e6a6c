#define VQ_LEVEL_TABLE kAvx512Bf16Kernels
#define VQ_LEVEL_NAME "avx512_bf16"
#include "../simd/avx512_bf16.h"

#include "level-inl.h"
