// AVX2 of processors that have AVX-VNNI, the instructions of avx512_vnni.h for 32 bytes: Alder Lake
// and later Intel processors without AVX-512, Zen 5.
#pragma once

#include "avx2.h"
