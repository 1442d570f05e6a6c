#define VQ_LEVEL_TABLE kAvx512VnniKernels
#define VQ_LEVEL_NAME "avx512_vnni"
#include "../simd/avx512_vnni.h"

#include "level-inl.h"
