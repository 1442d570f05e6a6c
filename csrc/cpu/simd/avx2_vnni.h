// AVX2 of processors that have AVX-VNNI, which multiplies and adds int8 in one instruction, for
// engine `cpu_w8a8`: Alder Lake and later Intel processors without AVX-512, Zen 5.
#pragma once

#include "avx2.h"
