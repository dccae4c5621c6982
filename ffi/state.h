// The arrays of all slots, and where a slot's part of them is.
#pragma once

#include <cstdint>

#include "slot.h"

namespace jax_sa {

// Bits of a slot's status; `jax_sa.Status` documents them.
constexpr int32_t kFull = 1;
constexpr int32_t kConflict = 2;
constexpr int32_t kOutOfRange = 4;

// The leaves of a `jax_sa.State`, in the order of its fields.
constexpr int32_t kNumLeaves = 3;

struct State {
  int32_t* numbers;  // [num_slots, kNumNumbers]
  int32_t* tokens;   // [num_slots, max_seq_len]
  int32_t* index;    // [num_slots, index_words]
  int32_t num_slots;
  int32_t max_seq_len;
  int32_t num_entries;
  int64_t index_words;  // a multiple of 4, so that every slot's edges are aligned

  JAX_SA_FN Slot slot(int64_t i) const {
    Slot slot;
    int32_t* array = numbers + i * kNumNumbers;
#define JAX_SA_PLACE(type, name, size)        \
  slot.name = reinterpret_cast<type*>(array); \
  array += int64_t{sizeof(type) / sizeof(int32_t)} * (size);
    JAX_SA_NUMBERS(JAX_SA_PLACE)
    array = index + i * index_words;
    JAX_SA_INDEX(JAX_SA_PLACE)
#undef JAX_SA_PLACE
    slot.tokens = tokens + i * max_seq_len;
    slot.max_seq_len = max_seq_len;
    slot.num_entries = num_entries;
    return slot;
  }
};

// The entries of the edge table, which has what the others leave of a slot's part of `index`.
inline int32_t num_entries_in(int64_t index_words, int64_t max_seq_len) {
  int64_t others = 0;
#define JAX_SA_ADD(type, name, size) others += int64_t{sizeof(type) / sizeof(int32_t)} * (size);
  JAX_SA_INDEX_BEHIND_EDGES(JAX_SA_ADD)
#undef JAX_SA_ADD
  return static_cast<int32_t>((index_words - others) / (sizeof(Edge) / sizeof(int32_t)));
}

}  // namespace jax_sa
