#define VQ_LEVEL_TABLE kScalarKernels
#define VQ_LEVEL_NAME "scalar"
#include "../simd/scalar.h"

#include "level-inl.h"
