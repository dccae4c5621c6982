// Whole slots: which rows of a reset or a copy take effect, and the bytes they touch. The same on
// host and device.
#pragma once

#include <cstdint>

#include "state.h"

namespace jax_sa {

// The arrays of all slots as bytes.
struct Leaves {
  char* data[kNumLeaves];
  int64_t slot_bytes[kNumLeaves];
  int32_t num_slots;

  JAX_SA_FN int32_t& status(int64_t i) const {
    return reinterpret_cast<int32_t*>(data[leaf_status])[i];
  }
  JAX_SA_FN char* slot(int32_t leaf, int64_t i) const { return data[leaf] + i * slot_bytes[leaf]; }
  JAX_SA_FN bool is_slot(int32_t i) const { return i >= 0 && i < num_slots; }
};

inline Leaves leaves_of(const State& state) {
  Leaves leaves;
  leaves.num_slots = state.num_slots;
  const int64_t max_seq_len = state.max_seq_len;
  const int64_t num_entries = state.num_entries;
#define JAX_SA_BYTES(type, name, size)                            \
  leaves.data[leaf_##name] = reinterpret_cast<char*>(state.name); \
  leaves.slot_bytes[leaf_##name] = int64_t{sizeof(type)} * (size);
  JAX_SA_LEAVES(JAX_SA_BYTES)
#undef JAX_SA_BYTES
  return leaves;
}

// Sets slots to zeros, all but their seed.
struct Reset {
  Leaves leaves;
  const int32_t* slots;  // [count]
  int32_t count;
};

// Copies every slot of another state; no two into the same one.
struct Insert {
  Leaves leaves;
  Leaves source;         // of `count` slots
  const int32_t* slots;  // [count]
  int32_t count;

  JAX_SA_FN bool copies(int32_t row) const { return leaves.is_slot(slots[row]); }
};

struct CopySlots {
  Leaves leaves;
  const int32_t* sources;       // [count]
  const int32_t* destinations;  // [count]
  int32_t count;

  struct Action {
    bool copies;
    int32_t status;  // bits to set in the destination's
  };

  // Whether the row has a destination and, unless it is to be skipped, a source for it.
  JAX_SA_FN bool names_slots(int32_t row) const {
    return sources[row] != -1 && leaves.is_slot(destinations[row]);
  }

  // The first row that names a destination has it. A row whose source is another row's
  // destination copies nothing: rows run side by side, so it could read either text.
  JAX_SA_FN Action action(int32_t row) const {
    if (!names_slots(row)) return {false, 0};
    const bool in_range = leaves.is_slot(sources[row]);
    bool shared = false;
    bool unsteady = false;
    for (int32_t other = 0; other < count; ++other) {
      if (other == row || !names_slots(other)) continue;
      const bool same = destinations[other] == destinations[row];
      if (same && other < row) return {false, 0};
      shared |= same;
      unsteady |= destinations[other] == sources[row];
    }
    return {in_range && !unsteady,
            (in_range ? 0 : kOutOfRange) | (shared || unsteady ? kConflict : 0)};
  }

  // The destination's status after the row; the other leaves are bytes to copy.
  JAX_SA_FN void write_status(int32_t row, Action action) const {
    const int32_t to = destinations[row];
    leaves.status(to) = leaves.status(action.copies ? sources[row] : to) | action.status;
  }
};

}  // namespace jax_sa
