// The ops on rows on the host: a loop for each row's lanes, rows side by side on XLA's threads.
#pragma once

#include <cstdint>

#include "host_warp.h"
#include "parallel_rows.h"
#include "rows.h"

namespace jax_sa {

template <class RowOp>
void run(const RowOp& op, xla::ffi::ThreadPool pool) {
  parallel_rows(pool, op.rows.count, op.num_tokens(), [&](int32_t row) { op(HostWarp{}, row); });
}

}  // namespace jax_sa
