// AVX2 of processors that have AVX-VNNI, which multiplies and adds int8 or int16 in one
// instruction, for the search and for engine `cpu_w8a8`: Alder Lake and later Intel processors
// without AVX-512.
#pragma once

#include "avx2.h"
