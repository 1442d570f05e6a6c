// The mistakes that planted_bugs.cu can plant. Each is one line of a kernel that is otherwise
// correct.
#pragma once

#include <string.h>

namespace planted {

enum class Bug {
  kNone,
  // Inside a block (block_kernels.cuh).
  kDivergentBarrier,
  kBarrierSkippedBySome,
  kLaneOutsideMask,
  kLanesMissing,
  kExitedLane,
  kShuffleFromOutside,
  kMissingSyncthreads,
  kMissingSyncwarp,
  kMissingBarrierInLoop,
  kUninitialisedShared,
  kMissingCopyWait,
  kCopyIntoBufferInUse,
  kCopyNeverAwaited,
  kCopySourceOverwritten,
  kDynamicSharedOverflow,
  kStaticSharedOverflow,
  kGlobalOverflow,
  kMisalignedVector,
  kPlainHistogram,
  kRaceBetweenBlocks,
  kSwappedFragments,
  // Between blocks (grid_kernels.cuh).
  kMissingGridBarrier,
  kRelaxedFlag,
  kRelaxedWait,
  kFlagBeforeBarrier,
  kNoBarrierAfterWait,
  kFlagNeverReached,
  kBufferReusedTooEarly,
  kReadOnlyCache,
  kMissingFence,
  kFenceTooEarly,
  kOrdinaryLaunch,
  kTooManyBlocks,
  kTooMuchShared,
  // In clusters (cluster_kernels.cuh).
  kMissingArrive,
  kWrongPhase,
  kReadBeforeLanding,
  kRefilledTooEarly,
  kStoreToWrongBlock,
  kMailToWrongBlock,
  kMailNotAwaited,
  kToldBeforeStored,
  kLastValuesNotAwaited,
  kLeavesWhileWrittenTo,
  kBarriersNotReady,
  kTooFewBytes,
  kArrivedTwice,
  kMisalignedBulkCopy,
  // Misused primitives, for the harness only (planted_misuse.cuh).
  kStackOverflow,
  kSharedOverLimit,
  kSharedNotResident,
  kMisalignedCopy,
  kShuffleWidth,
  kMisalignedMatrixRow,
  kMixedBarrierKinds,
  kBarrierOfOthers,
  kGridSyncOfGroups,
  kLanesOfNoThread,
  kMixedCollectives,
  kExitWhileAwaited,
};

constexpr const char* kNames[] = {
    "none",
    "divergent_barrier",
    "barrier_skipped_by_some",
    "lane_outside_mask",
    "lanes_missing",
    "exited_lane",
    "shuffle_from_outside",
    "missing_syncthreads",
    "missing_syncwarp",
    "missing_barrier_in_loop",
    "uninitialised_shared",
    "missing_copy_wait",
    "copy_into_buffer_in_use",
    "copy_never_awaited",
    "copy_source_overwritten",
    "dynamic_shared_overflow",
    "static_shared_overflow",
    "global_overflow",
    "misaligned_vector",
    "plain_histogram",
    "race_between_blocks",
    "swapped_fragments",
    "missing_grid_barrier",
    "relaxed_flag",
    "relaxed_wait",
    "flag_before_barrier",
    "no_barrier_after_wait",
    "flag_never_reached",
    "buffer_reused_too_early",
    "read_only_cache",
    "missing_fence",
    "fence_too_early",
    "ordinary_launch",
    "too_many_blocks",
    "too_much_shared",
    "missing_arrive",
    "wrong_phase",
    "read_before_landing",
    "refilled_too_early",
    "store_to_wrong_block",
    "mail_to_wrong_block",
    "mail_not_awaited",
    "told_before_stored",
    "last_values_not_awaited",
    "leaves_while_written_to",
    "barriers_not_ready",
    "too_few_bytes",
    "arrived_twice",
    "misaligned_bulk_copy",
    "stack_overflow",
    "shared_over_limit",
    "shared_not_resident",
    "misaligned_copy",
    "shuffle_width",
    "misaligned_matrix_row",
    "mixed_barrier_kinds",
    "barrier_of_others",
    "grid_sync_of_groups",
    "lanes_of_no_thread",
    "mixed_collectives",
    "exit_while_awaited",
};

// Finds the bug of that name; returns false if there is none.
inline bool find(const char* name, Bug& bug) {
  for (size_t i = 0; i < sizeof(kNames) / sizeof(*kNames); ++i) {
    if (strcmp(kNames[i], name) == 0) {
      bug = static_cast<Bug>(i);
      return true;
    }
  }
  return false;
}

}  // namespace planted
