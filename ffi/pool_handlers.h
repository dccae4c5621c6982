// Inserts into a pool from XLA's buffers; `automaton_handlers.h` says how a platform uses it.
#pragma once

#include <cstdint>

#include "automaton_handlers.h"
#include "buffers.h"
#include "pool_insert.h"
#include "state_buffers.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// The pool whose arrays, in the order of `jax_sa.Pool`'s fields, are the results `updated`.
inline ffi::ErrorOr<Pool> pool_from(ffi::RemainingArgs leaves, ffi::RemainingRets updated) {
  if (leaves.size() != 4) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("pool: wrong number of leaves"));
  }
  if (ffi::Error error = check_in_place(leaves, updated); error.failure()) {
    return ffi::Unexpected(error);
  }
  int32_t* data[4];
  ffi::Span<const int64_t> dims[4];
  for (int i = 0; i < 4; ++i) {
    const ffi::ErrorOr<ffi::AnyBuffer> leaf = leaves.get<ffi::AnyBuffer>(i);
    if (leaf.has_error()) return ffi::Unexpected(leaf.error());
    data[i] = static_cast<int32_t*>(leaf->untyped_data());
    dims[i] = leaf->dimensions();
  }
  return Pool{data[0], data[1],        data[2],
              data[3], count(dims[1]), static_cast<int32_t>(dims[0].back())};
}

inline const int32_t* data_or_null(const Ints<1>& buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.typed_data();
}

template <class Runner>
struct PoolHandlers {
  using Context = typename Runner::Context;

  static ffi::Error insert(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                           Ints<1> groups, ffi::RemainingArgs leaves, IntsOut<1> behind,
                           IntsOut<1> shifts, ffi::RemainingRets updated) {
    const ffi::ErrorOr<Pool> pool = pool_from(leaves, updated);
    if (pool.has_error()) return pool.error();
    const BlockTexts texts{text_from(tokens, lengths)};
    return Runner{context}(PoolInsert<BlockTexts>{
        *pool, texts, data_or_null(groups), static_cast<int32_t>(tokens.dimensions()[0]),
        texts.text.width, behind->typed_data(), shifts->typed_data()});
  }
  static auto bind_insert() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // groups
        .RemainingArgs()          // pool
        .template Ret<Ints<1>>()  // scratch: behind
        .template Ret<Ints<1>>()  // scratch: shifts
        .RemainingRets();         // pool
  }

  static ffi::Error insert_slots(typename Runner::Value context, Ints<1> slots, Ints<1> starts,
                                 Ints<1> counts, Ints<1> groups, Ints<2> tokens, Ints<1> lengths,
                                 Ints<1> status, ffi::RemainingArgs leaves, IntsOut<1> behind,
                                 IntsOut<1> shifts, ffi::RemainingRets updated) {
    const ffi::ErrorOr<Pool> pool = pool_from(leaves, updated);
    if (pool.has_error()) return pool.error();
    const auto max_seq_len = static_cast<int32_t>(tokens.dimensions()[1]);
    const SlotTexts texts{tokens.typed_data(),  lengths.typed_data(),
                          status.typed_data(),  static_cast<int32_t>(tokens.dimensions()[0]),
                          max_seq_len,          slots.typed_data(),
                          data_or_null(starts), data_or_null(counts)};
    return Runner{context}(PoolInsert<SlotTexts>{
        *pool, texts, data_or_null(groups), static_cast<int32_t>(slots.element_count()),
        max_seq_len, behind->typed_data(), shifts->typed_data()});
  }
  static auto bind_insert_slots() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // starts
        .template Arg<Ints<1>>()  // counts
        .template Arg<Ints<1>>()  // groups
        .template Arg<Ints<2>>()  // state: tokens
        .template Arg<Ints<1>>()  // state: length
        .template Arg<Ints<1>>()  // state: status
        .RemainingArgs()          // pool
        .template Ret<Ints<1>>()  // scratch: behind
        .template Ret<Ints<1>>()  // scratch: shifts
        .RemainingRets();         // pool
  }
};

}  // namespace jax_sa
