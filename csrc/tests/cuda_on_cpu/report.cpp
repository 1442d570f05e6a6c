// What the harness says before it aborts.
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "scheduler_state.h"

namespace cuda_on_cpu {
namespace {

std::string describe(const Thread& thread) {
  char text[512] = "";
  const char* file = thread.where.file != nullptr ? thread.where.file : "?";
  switch (thread.state) {
    case State::kEnded:
      return "ended";
    case State::kRuns:
      return "running";
    case State::kSpins:
      if (thread.flag != nullptr) {
        snprintf(text, sizeof(text), "spinning at %s (%s:%d) on flag %p: wants %llu, saw %llu",
                 thread.what, file, thread.where.line, thread.flag,
                 static_cast<unsigned long long>(thread.wanted),
                 static_cast<unsigned long long>(thread.value));
      } else {
        snprintf(text, sizeof(text), "spinning at %s (%s:%d)", thread.what, file,
                 thread.where.line);
      }
      return text;
    case State::kWaits:
      if (thread.waits_at != nullptr) {
        snprintf(text, sizeof(text), "waiting at %s (%s:%d)", thread.what, file, thread.where.line);
      } else {
        snprintf(text, sizeof(text), "waiting at %s (%s:%d) for the lanes of mask 0x%08x",
                 thread.what, file, thread.where.line, thread.mask);
      }
      return text;
  }
  return text;
}

// Neighbours that wait for the same thing share a line.
void print_block(const Block& block) {
  fprintf(stderr, "  block (%u, %u, %u):\n", block.index.x, block.index.y, block.index.z);
  const size_t count = block.threads.size();
  for (size_t first = 0; first < count;) {
    const std::string text = describe(block.threads[first]);
    size_t last = first;
    while (last + 1 < count && describe(block.threads[last + 1]) == text) ++last;
    if (last == first) {
      fprintf(stderr, "    thread %zu: %s\n", first, text.c_str());
    } else {
      fprintf(stderr, "    threads %zu to %zu: %s\n", first, last, text.c_str());
    }
    first = last + 1;
  }
}

}  // namespace

void fail(const char* format, ...) {
  fprintf(stderr, "cuda_on_cpu: ");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (current != nullptr) {
    const uint3 block = current->block->index, thread = current->index;
    fprintf(stderr, " [block (%u, %u, %u), thread (%u, %u, %u)]", block.x, block.y, block.z,
            thread.x, thread.y, thread.z);
  }
  fprintf(stderr, "\n");
  abort();
}

void report_deadlock(const Grid& grid, const char* why) {
  // Several workers may find it at the same time; only one of them reports.
  if (const_cast<Grid&>(grid).reported.exchange(true)) {
    for (;;) sched_yield();
  }
  fprintf(stderr, "cuda_on_cpu: deadlock: %s\n", why);
  constexpr int kMostBlocks = 16;
  int printed = 0, left = 0;
  for (const auto& other : grid.workers) {
    for (const auto& block : other->resident) {
      if (block == nullptr || block->alive == 0) continue;
      if (printed < kMostBlocks) {
        print_block(*block);
        ++printed;
      } else {
        ++left;
      }
    }
  }
  if (left != 0) fprintf(stderr, "  and %d blocks more\n", left);
  abort();
}

}  // namespace cuda_on_cpu
