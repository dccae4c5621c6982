// Inserts into a pool on the host: rows side by side on XLA's threads.
#pragma once

#include <cstdint>

#include "host_warp.h"
#include "parallel_rows.h"
#include "pool_insert.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

template <class Texts>
void run(const PoolInsert<Texts>& op, xla::ffi::ThreadPool pool) {
  for (int32_t group = 0; group < op.pool.num_groups; ++group) {
    op.place(HostWarp{}, group);
    const int32_t shift = op.shifts[group];
    if (shift == 0) continue;
    int32_t* const entries = op.pool.table + op.pool.table_size() * group;
    for (int64_t i = 0; i < op.pool.table_size(); ++i) op.rebase(entries[i], shift);
  }
  parallel_rows(pool, op.count, int64_t{op.count} * op.width, [&](int32_t row) {
    if (!op.writes(row)) return;
    const PoolText text = op.texts(row);
    for (int64_t i = 0; i <= text.length; ++i) op.write(row, text, static_cast<int32_t>(i));
  });
}

}  // namespace jax_sa
