// `prefill`, of CUDA alone: builds the texts of long rows in parallel, where that is faster, before
// an op appends what is left of them.
#pragma once

#include <cstdint>

#include "automaton_handlers.h"
#include "prefill.h"

namespace jax_sa {

template <class Runner>
struct PrefillHandlers {
  using Context = typename Runner::Context;

  static ffi::Error prefill(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                            Ints<1> slots, ffi::RemainingArgs leaves, IntsOut<1> left,
                            IntsOut<2> lines, IntsOut<1> header, ffi::RemainingRets updated) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    const Workspace workspace{lines->typed_data(), header->typed_data(),
                              static_cast<int32_t>(lines->dimensions()[1])};
    if (lines->dimensions()[0] < lines_for(state->max_seq_len) ||
        header->dimensions()[0] < kHeaderWords + int64_t{kRowWords} * rows.count) {
      return ffi::Error::InvalidArgument("workspace: too small");
    }
    const Text text = text_from(tokens, lengths);
    return Runner{context}(Prefill{*state, rows, text, left->typed_data(), workspace, {}});
  }
  static auto bind_prefill() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .template Ret<Ints<1>>()  // lengths of what is left to append
        .template Ret<Ints<2>>()  // workspace: lines
        .template Ret<Ints<1>>()  // workspace: header
        .RemainingRets();         // state
  }
};

}  // namespace jax_sa
