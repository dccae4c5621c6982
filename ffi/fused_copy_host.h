// fused_copy on the host: a memcpy for each row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fused_copy.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// Sets bytes [begin, end) of a row.
inline void fill_row(const Tensor& tensor, char* row, int64_t begin, int64_t end) {
  constexpr int64_t kFillBytes = sizeof(tensor.fill);
  for (int64_t done = begin; done < end; done += kFillBytes) {
    std::memcpy(row + done, tensor.fill, std::min(end - done, kFillBytes));
  }
}

inline void run(const FusedCopy& op, xla::ffi::ThreadPool) {
  for (int32_t i = 0; i < op.count; ++i) {
    const Tensor& tensor = op.tensors[i];
    const Part part = copied_part(tensor);
    *tensor.clamped = tensor.is_clamped();
    for (int64_t row = 0; row < written_part(tensor, part).rows; ++row) {
      char* const to = tensor.destination + row * tensor.destination_stride;
      const int64_t copied = row < part.rows ? part.row_bytes : 0;
      if (copied > 0) std::memcpy(to, tensor.source + row * tensor.source_stride, copied);
      if (tensor.fills) fill_row(tensor, to, copied, tensor.destination_stride);
    }
  }
}

}  // namespace jax_sa
