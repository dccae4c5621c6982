// Notes followers on the host: places side by side on XLA's threads.
#pragma once

#include <cstdint>
#include <utility>

#include "followers.h"
#include "parallel_rows.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

inline void note_place(const NoteFollowers& op, int32_t place) {
  int32_t* const entry = op.entry(place);
  if (entry == nullptr) return;
  for (int32_t later = place + 1; later < op.places; ++later) {
    if (op.is_same(place, later)) return;
  }
  uint64_t best[kNumFollowers] = {};
  const float* const logits = op.logits_of(place);
  for (int32_t token = 0; token < op.followers.vocabulary; ++token) {
    uint64_t next = rated(logits[token], token);
    if (next <= best[kNumFollowers - 1]) continue;
    for (uint64_t& known : best) {
      if (next > known) std::swap(next, known);
    }
  }
  for (int32_t rank = 0; rank < kNumFollowers; ++rank) entry[rank] = token_of(best[rank]);
}

inline void run(const NoteFollowers& op, xla::ffi::ThreadPool pool) {
  parallel_rows(pool, op.places, int64_t{op.places} * op.followers.vocabulary,
                [&](int32_t place) { note_place(op, place); });
}

}  // namespace jax_sa
