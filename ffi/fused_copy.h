// fused_copy: which bytes of which tensor are copied and which are filled. The same on host and
// device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace jax_sa {

// How much of one axis is copied: what the device asks for, at most what both arrays have.
struct Axis {
  const int32_t* asked;  // [], or null for `most`
  int64_t extra;         // beyond what is asked for
  int64_t most;

  struct Count {
    int64_t value;
    bool clamped;
  };

  JAX_SA_FN Count count() const {
    if (asked == nullptr) return {most, false};
    const int32_t given = *asked;
    const int64_t wanted = (given > 0 ? given : 0) + extra;
    return {wanted < most ? wanted : most, given < 0 || wanted > most};
  }
};

// One source and the prefix of its destination, both as rows of items.
struct Tensor {
  char* destination;
  const char* source;
  bool* clamped;  // [] whether less or more was asked for than there is
  Axis rows;
  Axis columns;
  int64_t item_bytes;
  int64_t destination_rows;
  int64_t destination_stride;  // bytes from row to row
  int64_t source_stride;
  alignas(16) char fill[16];  // what lies beyond the copied part, as often as it fits
  bool fills;
};

// The same for a tensor whose whole rows are copied: they lie end to end, so they are one row, of
// items that were rows.
inline Tensor as_one_row(Tensor tensor) {
  tensor.item_bytes = tensor.destination_stride;
  tensor.columns = tensor.rows;
  tensor.rows = {nullptr, 0, 1};
  tensor.destination_stride *= tensor.destination_rows;
  tensor.destination_rows = 1;
  return tensor;
}

constexpr int32_t kMaxTensors = 24;  // as kernel parameters they must fit 4 KB

struct FusedCopy {
  Tensor tensors[kMaxTensors];
  int32_t count;
};

// What of a tensor is copied.
struct Part {
  int64_t rows;
  int64_t row_bytes;
  bool clamped;
};

JAX_SA_FN Part copied_part(const Tensor& tensor) {
  const Axis::Count rows = tensor.rows.count();
  const Axis::Count columns = tensor.columns.count();
  return {rows.value, columns.value * tensor.item_bytes, rows.clamped || columns.clamped};
}

}  // namespace jax_sa
