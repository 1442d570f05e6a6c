// AVX-512 of processors that have bfloat16 products, all of which have VNNI too: avx512.h, whose
// int16 products are one instruction then.
#pragma once

#include "avx512.h"
