// Whole slots: which rows of a reset or a copy take effect, and the bytes they touch. The same on
// host and device.
#pragma once

#include <cstdint>

#include "state.h"

namespace jax_sa {

// The numbers of all slots, and their texts and indexes as bytes.
struct Leaves {
  static constexpr int32_t kLarge = 2;

  int32_t* numbers;
  char* data[kLarge];
  int64_t slot_bytes[kLarge];
  int32_t num_slots;

  JAX_SA_FN int32_t& number(int64_t i, int32_t which) const {
    return numbers[i * kNumNumbers + which];
  }
  JAX_SA_FN char* slot(int32_t leaf, int64_t i) const { return data[leaf] + i * slot_bytes[leaf]; }
  JAX_SA_FN bool is_slot(int32_t i) const { return i >= 0 && i < num_slots; }
};

inline Leaves leaves_of(const State& state) {
  constexpr int64_t kWord = sizeof(int32_t);
  return {state.numbers,
          {reinterpret_cast<char*>(state.tokens), reinterpret_cast<char*>(state.index)},
          {kWord * state.max_seq_len, kWord * state.index_words},
          state.num_slots};
}

// Sets slots to zeros, all but their seed.
struct Reset {
  Leaves leaves;
  const int32_t* slots;  // [count]
  int32_t count;

  JAX_SA_FN void clear_number(int32_t slot, int32_t which) const {
    if (which != number_seed) leaves.number(slot, which) = 0;
  }
};

// Copies every slot of another state; no two into the same one.
struct Insert {
  Leaves leaves;
  Leaves source;         // of `count` slots
  const int32_t* slots;  // [count]
  int32_t count;

  JAX_SA_FN bool copies(int32_t row) const { return leaves.is_slot(slots[row]); }
  JAX_SA_FN void copy_number(int32_t row, int32_t which) const {
    leaves.number(slots[row], which) = source.number(row, which);
  }
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

  // One of the destination's numbers after the row.
  JAX_SA_FN void write_number(int32_t row, Action action, int32_t which) const {
    int32_t& to = leaves.number(destinations[row], which);
    if (action.copies) to = leaves.number(sources[row], which);
    if (which == number_status && action.status != 0) to |= action.status;
  }
};

}  // namespace jax_sa
