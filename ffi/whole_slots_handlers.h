// reset, insert and copy_slots from XLA's buffers; `automaton_handlers.h` says how a platform uses
// it.
#pragma once

#include <cstdint>

#include "buffers.h"
#include "state_buffers.h"
#include "whole_slots.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

template <class Runner>
struct WholeSlotsHandlers {
  using Context = typename Runner::Context;

  static ffi::Error reset(typename Runner::Value context, Ints<1> slots, ffi::RemainingArgs args,
                          ffi::RemainingRets updated) {
    const ffi::ErrorOr<State> state = state_from(args);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(args, updated); error.failure()) return error;
    const auto count = static_cast<int32_t>(slots.element_count());
    return Runner{context}(Reset{leaves_of(*state), slots.typed_data(), count});
  }
  static auto bind_reset() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .RemainingRets();         // state
  }

  static ffi::Error insert(typename Runner::Value context, Ints<1> slots, ffi::RemainingArgs args,
                           ffi::RemainingRets updated) {
    const ffi::ErrorOr<State> source = state_from(args);
    if (source.has_error()) return source.error();
    const ffi::ErrorOr<State> state = state_from(args, kNumLeaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(args, updated, kNumLeaves); error.failure()) return error;
    const auto count = static_cast<int32_t>(slots.element_count());
    return Runner{context}(
        Insert{leaves_of(*state), leaves_of(*source), slots.typed_data(), count});
  }
  static auto bind_insert() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // source, a state of as many slots; state
        .RemainingRets();         // state
  }

  static ffi::Error copy_slots(typename Runner::Value context, Ints<1> sources,
                               Ints<1> destinations, ffi::RemainingArgs args,
                               ffi::RemainingRets updated) {
    const ffi::ErrorOr<State> state = state_from(args);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(args, updated); error.failure()) return error;
    const auto count = static_cast<int32_t>(sources.element_count());
    return Runner{context}(
        CopySlots{leaves_of(*state), sources.typed_data(), destinations.typed_data(), count});
  }
  static auto bind_copy_slots() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // sources
        .template Arg<Ints<1>>()  // destinations
        .RemainingArgs()          // state
        .RemainingRets();         // state
  }
};

}  // namespace jax_sa
