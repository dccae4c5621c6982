// fused_copy from XLA's buffers; `automaton_handlers.h` says how a platform uses it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "buffers.h"
#include "fused_copy.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// A number for each tensor; `jax_sa/fused_copy.py` decides them.
using PerTensor = ffi::Span<const int64_t>;

struct CopyOptions {
  PerTensor max_rows;
  PerTensor max_columns;
  PerTensor rows_scalar;     // index of the device scalar that says how many rows, or -1
  PerTensor columns_scalar;  // likewise
  PerTensor extra_rows;
  PerTensor fills;       // 1 or 0
  PerTensor fill_words;  // two, the 16 bytes of the fill

  size_t num_tensors() const { return max_rows.size(); }
};

// A matrix of items in memory; a list is one with a single column.
struct Matrix {
  char* data;
  int64_t rows;
  int64_t columns;
  int64_t item_bytes;

  explicit Matrix(const ffi::AnyBuffer& buffer)
      : data(static_cast<char*>(buffer.untyped_data())),
        rows(buffer.dimensions()[0]),
        columns(buffer.dimensions().size() == 2 ? buffer.dimensions()[1] : 1),
        item_bytes(static_cast<int64_t>(ffi::ByteWidth(buffer.element_type()))) {}
};

// Tensor i. The arguments are device scalars, then sources, then destinations.
inline ffi::ErrorOr<Tensor> tensor_from(const CopyOptions& options, size_t i,
                                        ffi::RemainingArgs args, ffi::RemainingRets updated) {
  const size_t first_source = args.size() - 2 * options.num_tensors();
  const auto source_buffer = args.get<ffi::AnyBuffer>(first_source + i);
  const auto buffer = args.get<ffi::AnyBuffer>(first_source + options.num_tensors() + i);
  auto result = updated.get<ffi::AnyBuffer>(i);
  if (source_buffer.has_error()) return ffi::Unexpected(source_buffer.error());
  if (buffer.has_error()) return ffi::Unexpected(buffer.error());
  if (result.has_error()) return ffi::Unexpected(result.error());
  if (buffer->element_count() > 0 && buffer->untyped_data() != (*result)->untyped_data()) {
    return ffi::Unexpected(ffi::Error::Internal("fused_copy: a destination was not aliased"));
  }
  const auto scalar = [&](int64_t index) -> const int32_t* {
    if (index < 0) return nullptr;
    return static_cast<const int32_t*>(args.get<ffi::AnyBuffer>(index)->untyped_data());
  };
  const Matrix source(*source_buffer);
  const Matrix destination(*buffer);
  Tensor tensor{};
  tensor.destination = destination.data;
  tensor.source = source.data;
  tensor.rows = {scalar(options.rows_scalar[i]), options.extra_rows[i], options.max_rows[i]};
  tensor.columns = {scalar(options.columns_scalar[i]), 0, options.max_columns[i]};
  tensor.item_bytes = destination.item_bytes;
  tensor.destination_rows = destination.rows;
  tensor.destination_stride = destination.columns * destination.item_bytes;
  tensor.source_stride = source.columns * source.item_bytes;
  tensor.fills = options.fills[i] != 0;
  std::memcpy(tensor.fill, &options.fill_words[2 * i], sizeof(tensor.fill));
  const bool copies_whole_rows = tensor.columns.asked == nullptr &&
                                 tensor.columns.most == source.columns &&
                                 tensor.columns.most == destination.columns;
  return copies_whole_rows ? as_one_row(tensor) : tensor;
}

template <class Runner>
struct FusedCopyHandlers {
  static ffi::Error copy(typename Runner::Value context, ffi::RemainingArgs args,
                         ffi::RemainingRets updated, PerTensor max_rows, PerTensor max_columns,
                         PerTensor rows_scalar, PerTensor columns_scalar, PerTensor extra_rows,
                         PerTensor fills, PerTensor fill_words) {
    const CopyOptions options{max_rows,   max_columns, rows_scalar, columns_scalar,
                              extra_rows, fills,       fill_words};
    const size_t num_tensors = options.num_tensors();
    if (updated.size() != num_tensors + 1 || args.size() < 2 * num_tensors) {
      return ffi::Error::InvalidArgument("fused_copy: wrong number of buffers");
    }
    auto clamped = updated.get<ffi::Buffer<ffi::PRED, 1>>(num_tensors);
    if (clamped.has_error()) return clamped.error();
    for (size_t first = 0; first < num_tensors; first += kMaxTensors) {
      FusedCopy op;
      op.count = static_cast<int32_t>(std::min<size_t>(num_tensors - first, kMaxTensors));
      for (int32_t i = 0; i < op.count; ++i) {
        const ffi::ErrorOr<Tensor> tensor = tensor_from(options, first + i, args, updated);
        if (tensor.has_error()) return tensor.error();
        op.tensors[i] = *tensor;
        op.tensors[i].clamped = (*clamped)->typed_data() + first + i;
      }
      if (ffi::Error error = Runner{context}(op); error.failure()) return error;
    }
    return ffi::Error::Success();
  }
  static auto bind_copy() {
    return ffi::Ffi::Bind()
        .Ctx<typename Runner::Context>()
        .RemainingArgs()  // device scalars, sources, destinations
        .RemainingRets()  // destinations, clamped
        .template Attr<PerTensor>("max_rows")
        .template Attr<PerTensor>("max_columns")
        .template Attr<PerTensor>("rows_scalar")
        .template Attr<PerTensor>("columns_scalar")
        .template Attr<PerTensor>("extra_rows")
        .template Attr<PerTensor>("fills")
        .template Attr<PerTensor>("fill_words");
  }
};

}  // namespace jax_sa
