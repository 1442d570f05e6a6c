#define VQ_LEVEL_TABLE kAvx2VnniKernels
#define VQ_LEVEL_NAME "avx2_vnni"
#include "../simd/avx2_vnni.h"

#include "level-inl.h"
