// expand_seqlens on the host: one row after the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "seqlens.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

inline void run(const ExpandSeqlens& op, xla::ffi::ThreadPool) {
  uint32_t begin = 0;
  for (uint32_t row = 0; row < op.num_rows; ++row) {
    const uint32_t queries = count_queries(op.q_lens[row]);
    const uint32_t shift = row_shift(op.kv_lens[row], queries, begin);
    const uint32_t end = add_counts(begin, queries);
    const uint32_t written = std::min(end, op.total);
    for (uint32_t place = begin; place < written; ++place) {
      op.values[place] = value_at(place, shift);
      if (op.row_ids != nullptr) op.row_ids[place] = static_cast<int32_t>(row);
    }
    if (op.offsets != nullptr) op.offsets[row] = static_cast<int32_t>(begin);
    begin = end;
  }
  const auto num_rows = static_cast<int32_t>(op.num_rows);
  if (op.offsets != nullptr) op.offsets[op.num_rows] = static_cast<int32_t>(begin);
  *op.required = static_cast<int32_t>(begin);
  for (uint32_t place = begin; place < op.total; ++place) {
    op.values[place] = op.fill;
    if (op.row_ids != nullptr) op.row_ids[place] = num_rows;
  }
}

}  // namespace jax_sa
