// AVX-512 of processors that multiply and add small integers in one instruction: bytes and int16
// pairs in the search, int8 in engine `cpu_w8a8`.
#pragma once

#include "avx512.h"
