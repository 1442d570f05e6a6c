#define VQ_LEVEL_TABLE kAvx512AmxKernels
#define VQ_LEVEL_NAME "avx512_amx"
#include "../simd/avx512_amx.h"

#include "level-inl.h"
