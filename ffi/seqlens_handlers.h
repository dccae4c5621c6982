// expand_seqlens from XLA's buffers; `automaton_handlers.h` says how a platform uses it.
#pragma once

#include <cstdint>

#include "buffers.h"
#include "seqlens.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

template <class Runner>
struct SeqlensHandlers {
  // Offsets and row ids without elements were not asked for.
  static ffi::Error expand(typename Runner::Value context, Ints<1> kv_lens, Ints<1> q_lens,
                           IntsOut<1> values, IntsOut<0> required, IntsOut<1> offsets,
                           IntsOut<1> row_ids, int64_t fill) {
    const auto data_or_null = [](IntsOut<1>& buffer) {
      return buffer->element_count() > 0 ? buffer->typed_data() : nullptr;
    };
    return Runner{context}(
        ExpandSeqlens{kv_lens.typed_data(), q_lens.typed_data(), values->typed_data(),
                      required->typed_data(), data_or_null(offsets), data_or_null(row_ids),
                      static_cast<uint32_t>(kv_lens.element_count()),
                      static_cast<uint32_t>(values->element_count()), static_cast<int32_t>(fill)});
  }
  static auto bind_expand() {
    return ffi::Ffi::Bind()
        .Ctx<typename Runner::Context>()
        .template Arg<Ints<1>>()  // kv_lens
        .template Arg<Ints<1>>()  // q_lens
        .template Ret<Ints<1>>()  // values
        .template Ret<Ints<0>>()  // required
        .template Ret<Ints<1>>()  // offsets
        .template Ret<Ints<1>>()  // row_ids
        .template Attr<int64_t>("fill");
  }
};

}  // namespace jax_sa
