// What csrc/cuda/portable.h includes instead of CUDA's headers when a host compiler builds it.
// README.md says what running a kernel here proves, and what it does not.
#pragma once

#include "async_copy.h"
#include "atomics.h"
#include "cluster.h"
#include "cooperative_groups.h"
#include "device_math.h"
#include "intrinsics.h"
#include "language.h"
#include "matrix.h"
#include "runtime.h"
#include "scheduler.h"
