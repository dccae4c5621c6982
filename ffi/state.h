// The arrays of all slots, and where a slot's part of them is.
#pragma once

#include <cstdint>

#include "slot.h"

namespace jax_sa {

// Bits of a slot's status; `jax_sa.Status` documents them.
constexpr int32_t kFull = 1;
constexpr int32_t kConflict = 2;
constexpr int32_t kOutOfRange = 4;

enum Leaf : int32_t {
#define JAX_SA_INDEX(type, name, size) leaf_##name,
  JAX_SA_LEAVES(JAX_SA_INDEX)
#undef JAX_SA_INDEX
      kNumLeaves
};

struct State {
#define JAX_SA_POINTER(type, name, size) type* name;
  JAX_SA_LEAVES(JAX_SA_POINTER)
#undef JAX_SA_POINTER
  int32_t num_slots;
  int32_t max_seq_len;
  int32_t num_entries;

  JAX_SA_FN Slot slot(int64_t i) const {
    Slot slot;
#define JAX_SA_OFFSET(type, name, size) slot.name = name + i * (size);
    JAX_SA_LEAVES(JAX_SA_OFFSET)
#undef JAX_SA_OFFSET
    slot.max_seq_len = max_seq_len;
    slot.num_entries = num_entries;
    return slot;
  }
};

}  // namespace jax_sa
