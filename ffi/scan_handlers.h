// The ops on a scan from XLA's buffers; `automaton_handlers.h` says how a platform uses it.
#pragma once

#include <cstdint>

#include "automaton_handlers.h"
#include "buffers.h"
#include "scan.h"
#include "state_buffers.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// Axes before that of the slots count slots too, as in `state_from`.
inline ffi::ErrorOr<ScanState> scan_state_from(ffi::RemainingArgs leaves) {
  constexpr size_t kLeaves = 4;
  constexpr size_t kTokens = 2;
  int32_t* data[kLeaves];
  ScanState state{};
  if (leaves.size() != kLeaves) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("state: wrong number of leaves"));
  }
  for (size_t i = 0; i < kLeaves; ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> leaf = leaves.get<ffi::AnyBuffer>(i);
    if (leaf.has_error()) return ffi::Unexpected(leaf.error());
    data[i] = static_cast<int32_t*>(leaf->untyped_data());
    if (i != kTokens) continue;
    state.max_seq_len = static_cast<int32_t>(leaf->dimensions().back());
    state.num_slots = static_cast<int32_t>(leaf->element_count() / state.max_seq_len);
  }
  state.length = data[0];
  state.status = data[1];
  state.tokens = data[kTokens];
  state.match = data[3];
  return state;
}

template <class Runner>
struct ScanHandlers {
  using Context = typename Runner::Context;

  static ffi::Error extend(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                           Ints<1> slots, ffi::RemainingArgs leaves, ffi::RemainingRets updated) {
    const ffi::ErrorOr<ScanState> state = scan_state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    return Runner{context}(
        Scan{*state, rows, text_from(tokens, lengths), LookupOptions{}, Drafts{}});
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
                           ffi::RemainingArgs leaves, IntsOut<2> draft, IntsOut<2> numbers,
                           int64_t min_match, int64_t max_match, bool recent, bool periodic,
                           double draft_factor) {
    const ffi::ErrorOr<ScanState> state = scan_state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, draft->dimensions()[0]);
    return Runner{context}(
        Scan{*state, rows, Text{},
             options_from(limits, min_match, max_match, recent, periodic, draft_factor),
             drafts_from(draft, numbers)});
  }
  static auto bind_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // limits
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
                                  Ints<1> slots, Ints<1> limits, ffi::RemainingArgs leaves,
                                  IntsOut<2> draft, IntsOut<2> numbers, ffi::RemainingRets updated,
                                  int64_t min_match, int64_t max_match, bool recent, bool periodic,
                                  double draft_factor) {
    const ffi::ErrorOr<ScanState> state = scan_state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    return Runner{context}(
        Scan{*state, rows, text_from(tokens, lengths),
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
};

}  // namespace jax_sa
