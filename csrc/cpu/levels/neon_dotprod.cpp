#define VQ_LEVEL_TABLE kNeonDotprodKernels
#define VQ_LEVEL_NAME "neon_dotprod"
#include "../simd/neon_dotprod.h"

#include "level-inl.h"
