// Advanced SIMD of processors that multiply and add four int8 in one instruction, for engine
// `cpu_w8a8`: all of Apple's, and servers' from Neoverse N1 on.
#pragma once

#include "neon.h"
