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

  JAX_SA_SHARED_FN int64_t count() const {
    if (asked == nullptr) return most;
    const int64_t wanted = (*asked > 0 ? *asked : 0) + extra;
    return wanted < most ? wanted : most;
  }
  JAX_SA_SHARED_FN bool is_clamped() const {
    return asked != nullptr && (*asked < 0 || *asked + extra > most);
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
  bool fills;
  alignas(16) char fill[16];  // what lies beyond the copied part, as often as it fits

  JAX_SA_SHARED_FN bool is_dynamic() const {
    return rows.asked != nullptr || columns.asked != nullptr;
  }
  JAX_SA_SHARED_FN bool is_clamped() const { return rows.is_clamped() || columns.is_clamped(); }
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

// The part of a tensor that is copied.
struct Part {
  int64_t rows;
  int64_t row_bytes;
};

JAX_SA_SHARED_FN Part most_copied(const Tensor& tensor) {
  return {tensor.rows.most, tensor.columns.most * tensor.item_bytes};
}

JAX_SA_SHARED_FN Part copied_part(const Tensor& tensor) {
  return {tensor.rows.count(), tensor.columns.count() * tensor.item_bytes};
}

// The part of it that is written to: `copied`, or all of it.
JAX_SA_SHARED_FN Part written_part(const Tensor& tensor, const Part& copied) {
  return tensor.fills ? Part{tensor.destination_rows, tensor.destination_stride} : copied;
}

}  // namespace jax_sa
