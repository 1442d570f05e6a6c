#define VQ_LEVEL_TABLE kNeonKernels
#define VQ_LEVEL_NAME "neon"
#include "../simd/neon.h"

#include "level-inl.h"
