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

struct Reset {
  Leaves leaves;
  const int32_t* slots;  // [count]
  int32_t count;
};

struct CopySlots {
  Leaves leaves;
  const int32_t* sources;       // [count]
  const int32_t* destinations;  // [count]
  int32_t count;

  struct Action {
    bool copies;
    bool conflict;  // the destination's status says so
  };

  JAX_SA_FN bool is_valid(int32_t row) const {
    return leaves.is_slot(sources[row]) && leaves.is_slot(destinations[row]);
  }

  // The first row that names a destination has it. A row whose source is another row's
  // destination copies nothing: rows run side by side, so it could read either text.
  JAX_SA_FN Action action(int32_t row) const {
    if (!is_valid(row)) return {false, false};
    bool taken = false;
    bool shared = false;
    bool unsteady = false;
    for (int32_t other = 0; other < count; ++other) {
      if (other == row || !is_valid(other)) continue;
      const bool same = destinations[other] == destinations[row];
      taken |= same && other < row;
      shared |= same;
      unsteady |= destinations[other] == sources[row];
    }
    return {!taken && !unsteady, !taken && (shared || unsteady)};
  }

  // The destination's status after the row; the other leaves are bytes to copy.
  JAX_SA_FN void write_status(int32_t row, Action action) const {
    const int32_t to = destinations[row];
    leaves.status(to) =
        leaves.status(action.copies ? sources[row] : to) | (action.conflict ? kConflict : 0);
  }
};

}  // namespace jax_sa
