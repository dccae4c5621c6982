// reset, insert and copy_slots on the host: a memset or memcpy for each array.
#pragma once

#include <cstdint>
#include <cstring>

#include "whole_slots.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

inline void run(const Reset& op, xla::ffi::ThreadPool) {
  for (int32_t row = 0; row < op.count; ++row) {
    const int32_t slot = op.slots[row];
    if (!op.leaves.is_slot(slot)) continue;
    for (int32_t i = 0; i < kNumNumbers; ++i) op.clear_number(slot, i);
    for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
      std::memset(op.leaves.slot(leaf, slot), 0, op.leaves.slot_bytes[leaf]);
    }
  }
}

inline void run(const Insert& op, xla::ffi::ThreadPool) {
  for (int32_t row = 0; row < op.count; ++row) {
    if (!op.copies(row)) continue;
    for (int32_t i = 0; i < kNumNumbers; ++i) op.copy_number(row, i);
    for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
      std::memcpy(op.leaves.slot(leaf, op.slots[row]), op.source.slot(leaf, row),
                  op.leaves.slot_bytes[leaf]);
    }
  }
}

inline void run(const CopySlots& op, xla::ffi::ThreadPool) {
  for (int32_t row = 0; row < op.count; ++row) {
    const CopySlots::Action action = op.action(row);
    if (!action.copies && action.status == 0) continue;
    for (int32_t i = 0; i < kNumNumbers; ++i) op.write_number(row, action, i);
    if (!action.copies || op.sources[row] == op.destinations[row]) continue;
    for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
      std::memcpy(op.leaves.slot(leaf, op.destinations[row]), op.leaves.slot(leaf, op.sources[row]),
                  op.leaves.slot_bytes[leaf]);
    }
  }
}

}  // namespace jax_sa
