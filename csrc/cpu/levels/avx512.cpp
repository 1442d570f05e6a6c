#define VQ_LEVEL_TABLE kAvx512Kernels
#define VQ_LEVEL_NAME "avx512"
#include "../simd/avx512.h"

#include "level-inl.h"
