// The ops on rows of texts, from XLA's buffers to plain structs, the same for every platform.
//
// A platform's `Runner` is made of its context, a thread pool or a stream, whose type in a handler
// is `Runner::Value`; Runner{context}(op) starts the op there and returns an error.
#pragma once

#include <cstdint>
#include <random>

#include "buffers.h"
#include "pool.h"
#include "rows.h"
#include "state_buffers.h"
#include "validate.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// `slots` without elements says that row i is slot i.
inline Rows rows_from(const Ints<1>& slots, int64_t count) {
  return {slots.element_count() == 0 ? nullptr : slots.typed_data(), static_cast<int32_t>(count)};
}

inline Text text_from(const Ints<2>& tokens, const Ints<1>& lengths) {
  return {tokens.typed_data(), lengths.typed_data(), static_cast<int32_t>(tokens.dimensions()[1])};
}

// `limits` without elements are none.
inline LookupOptions options_from(const Ints<1>& limits, int64_t min_match, int64_t max_match,
                                  bool recent, bool periodic, double draft_factor) {
  return {limits.element_count() == 0 ? nullptr : limits.typed_data(),
          static_cast<int32_t>(min_match),
          static_cast<int32_t>(max_match),
          recent,
          periodic,
          draft_factor};
}

inline Drafts drafts_from(IntsOut<2> tokens, IntsOut<2> numbers) {
  return {tokens->typed_data(), numbers->typed_data(),
          static_cast<int32_t>(tokens->dimensions()[1])};
}

// A pool of no groups is none; `groups` without elements say that all rows see group 0.
inline PoolView pool_view_from(const Ints<1>& groups, const Ints<2>& ring, const Ints<1>& head,
                               const Ints<3>& table) {
  const Pool pool{ring.typed_data(),
                  head.typed_data(),
                  nullptr,
                  table.typed_data(),
                  static_cast<int32_t>(ring.dimensions()[0]),
                  static_cast<int32_t>(ring.dimensions()[1])};
  return {pool, groups.element_count() == 0 ? nullptr : groups.typed_data()};
}

template <class Runner>
struct AutomatonHandlers {
  using Context = typename Runner::Context;

  static ffi::Error extend(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                           Ints<1> slots, ffi::RemainingArgs leaves, ffi::RemainingRets updated) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    return Runner{context}(Extend{*state, rows, text_from(tokens, lengths)});
  }
  static auto bind_extend() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .RemainingRets();         // state
  }

  static ffi::Error lookup(typename Runner::Value context, Ints<1> slots, Ints<1> limits,
                           Ints<1> groups, Ints<2> ring, Ints<1> head, Ints<3> table,
                           ffi::RemainingArgs leaves, IntsOut<2> draft, IntsOut<2> numbers,
                           int64_t min_match, int64_t max_match, bool recent, bool periodic,
                           double draft_factor) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, draft->dimensions()[0]);
    return Runner{context}(
        Lookup{*state, rows, pool_view_from(groups, ring, head, table),
               options_from(limits, min_match, max_match, recent, periodic, draft_factor),
               drafts_from(draft, numbers)});
  }
  static auto bind_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // limits
        .template Arg<Ints<1>>()  // groups
        .template Arg<Ints<2>>()  // pool: ring
        .template Arg<Ints<1>>()  // pool: head
        .template Arg<Ints<3>>()  // pool: table
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // draft tokens
        .template Ret<Ints<2>>()  // draft numbers
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }

  static ffi::Error lookup_after(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                                 Ints<1> slots, Ints<1> limits, Ints<1> groups, Ints<2> ring,
                                 Ints<1> head, Ints<3> table, ffi::RemainingArgs leaves,
                                 IntsOut<2> draft, IntsOut<2> numbers, int64_t min_match,
                                 int64_t max_match, bool recent, bool periodic,
                                 double draft_factor) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, draft->dimensions()[0]);
    return Runner{context}(LookupAfter{
        *state, rows, pool_view_from(groups, ring, head, table), text_from(tokens, lengths),
        options_from(limits, min_match, max_match, recent, periodic, draft_factor),
        drafts_from(draft, numbers)});
  }
  static auto bind_lookup_after() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // limits
        .template Arg<Ints<1>>()  // groups
        .template Arg<Ints<2>>()  // pool: ring
        .template Arg<Ints<1>>()  // pool: head
        .template Arg<Ints<3>>()  // pool: table
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // draft tokens
        .template Ret<Ints<2>>()  // draft numbers
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }

  static ffi::Error extend_lookup(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                                  Ints<1> slots, Ints<1> limits, Ints<1> groups, Ints<2> ring,
                                  Ints<1> head, Ints<3> table, ffi::RemainingArgs leaves,
                                  IntsOut<2> draft, IntsOut<2> numbers, ffi::RemainingRets updated,
                                  int64_t min_match, int64_t max_match, bool recent, bool periodic,
                                  double draft_factor) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    return Runner{context}(ExtendLookup{
        *state, rows, pool_view_from(groups, ring, head, table), text_from(tokens, lengths),
        options_from(limits, min_match, max_match, recent, periodic, draft_factor),
        drafts_from(draft, numbers)});
  }
  static auto bind_extend_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // limits
        .template Arg<Ints<1>>()  // groups
        .template Arg<Ints<2>>()  // pool: ring
        .template Arg<Ints<1>>()  // pool: head
        .template Arg<Ints<3>>()  // pool: table
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // draft tokens
        .template Ret<Ints<2>>()  // draft numbers
        .RemainingRets()          // state
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }

  static ffi::Error read_tokens(typename Runner::Value context, Ints<1> starts, Ints<1> slots,
                                ffi::RemainingArgs leaves, IntsOut<2> tokens) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, tokens->dimensions()[0]);
    return Runner{context}(ReadTokens{*state, rows, starts.typed_data(), tokens->typed_data(),
                                      static_cast<int32_t>(tokens->dimensions()[1])});
  }
  static auto bind_read_tokens() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()   // starts
        .template Arg<Ints<1>>()   // slots
        .RemainingArgs()           // state
        .template Ret<Ints<2>>();  // tokens
  }

  static ffi::Error validate(typename Runner::Value context, ffi::RemainingArgs leaves,
                             IntsOut<1> invalid, ffi::RemainingRets scratch_leaves) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    // Of this process: no text can have been chosen for it.
    static const auto seed = static_cast<int32_t>(std::random_device{}());
    const ffi::ErrorOr<State> scratch = scratch_from(*state, scratch_leaves);
    if (scratch.has_error()) return scratch.error();
    return Runner{context}(
        Validate{*state, *scratch, Rows{nullptr, state->num_slots}, invalid->typed_data(), seed});
  }
  static auto bind_validate() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .RemainingArgs()          // state
        .template Ret<Ints<1>>()  // invalid
        .RemainingRets();         // scratch, like the state
  }
};

}  // namespace jax_sa
