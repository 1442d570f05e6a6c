#define VQ_LEVEL_TABLE kAvx2Kernels
#define VQ_LEVEL_NAME "avx2"
#include "../simd/avx2.h"

#include "level-inl.h"
