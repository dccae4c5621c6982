// expand_seqlens: rows of query tokens laid end to end, each with its position in its row's text.
// The value that a row and a position contribute, the same on host and device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace jax_sa {

struct ExpandSeqlens {
  const int32_t* kv_lens;  // [num_rows]
  const int32_t* q_lens;   // [num_rows]
  int32_t* values;         // [total]
  int32_t* required;       // []
  int32_t* offsets;        // [num_rows + 1], or null
  int32_t* row_ids;        // [total], or null
  uint32_t num_rows;
  uint32_t total;
  int32_t fill;
};

// Query tokens are counted up to this and no further: no result is longer.
constexpr uint32_t kMaxCount = INT32_MAX;

JAX_SA_FN uint32_t add_counts(uint32_t a, uint32_t b) {
  return a + b < kMaxCount ? a + b : kMaxCount;
}

JAX_SA_FN uint32_t count_queries(int32_t q_len) { return q_len > 0 ? q_len : 0; }

// Turns a place in the result into a value, for the row whose `queries` tokens start at place
// `begin`. Modulo 2^32: the value itself always fits.
JAX_SA_FN uint32_t row_shift(int32_t kv_len, uint32_t queries, uint32_t begin) {
  return count_queries(kv_len) - (queries - 1) - begin;
}

JAX_SA_FN int32_t value_at(uint32_t place, uint32_t shift) {
  const auto value = static_cast<int32_t>(place + shift);
  return value > 0 ? value : 0;
}

}  // namespace jax_sa
