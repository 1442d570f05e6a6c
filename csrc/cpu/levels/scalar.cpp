#define VQ_LEVEL_TABLE kScalarKernels
#define VQ_LEVEL_NAME "scalar"
#if defined(VQ_EMULATED_TILES)  // tests of what runs on tiles, without AMX
#include "../simd/scalar_tiles.h"
#else
#include "../simd/scalar.h"
#endif

#include "level-inl.h"
