// `extend` and `extend_lookup` with room to build long rows in parallel, for CUDA: they build,
// then append as the ops without that room do.
#pragma once

#include <cstdint>

#include "automaton_handlers.h"
#include "prefill.h"

namespace jax_sa {

template <class Runner>
struct PrefillHandlers {
  using Context = typename Runner::Context;

  static constexpr size_t kNumResults = 2;  // of the workspace: the last ones

  static ffi::ErrorOr<Prefill> prefill_from(const Ints<2>& tokens, const Ints<1>& lengths,
                                            const Ints<1>& slots, ffi::RemainingArgs leaves,
                                            ffi::RemainingRets results) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return ffi::Unexpected(state.error());
    if (ffi::Error error = check_in_place(leaves, results, 0, kNumResults); error.failure()) {
      return ffi::Unexpected(error);
    }
    ffi::ErrorOr<IntsOut<2>> lines = results.get<Ints<2>>(kNumLeaves);
    ffi::ErrorOr<IntsOut<1>> header = results.get<Ints<1>>(kNumLeaves + 1);
    if (lines.has_error()) return ffi::Unexpected(lines.error());
    if (header.has_error()) return ffi::Unexpected(header.error());
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    const Workspace workspace{(*lines)->typed_data(), (*header)->typed_data(),
                              static_cast<int32_t>((*lines)->dimensions()[0]),
                              static_cast<int32_t>((*lines)->dimensions()[1])};
    if (workspace.num_lines < lines_for(state->max_seq_len) ||
        (*header)->dimensions()[0] < kHeaderWords + int64_t{kRowWords} * rows.count) {
      return ffi::Unexpected(ffi::Error::InvalidArgument("workspace: too small"));
    }
    return Prefill{*state, rows, text_from(tokens, lengths), workspace, {}};
  }

  static ffi::Error extend(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                           Ints<1> slots, ffi::RemainingArgs leaves, ffi::RemainingRets results) {
    const ffi::ErrorOr<Prefill> op = prefill_from(tokens, lengths, slots, leaves, results);
    if (op.has_error()) return op.error();
    if (ffi::Error error = Runner{context}(*op); error.failure()) return error;
    return Runner{context}(Extend{op->state, op->rows, op->text_left()});
  }
  static auto bind_extend() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .RemainingRets();         // state, workspace
  }

  static ffi::Error extend_lookup(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                                  Ints<1> slots, Ints<1> limits, ffi::RemainingArgs leaves,
                                  IntsOut<2> draft, IntsOut<1> length, IntsOut<1> match_length,
                                  IntsOut<1> match_end, ffi::RemainingRets results,
                                  int64_t min_match, int64_t max_match, bool recent, bool periodic,
                                  double draft_factor) {
    const ffi::ErrorOr<Prefill> op = prefill_from(tokens, lengths, slots, leaves, results);
    if (op.has_error()) return op.error();
    if (ffi::Error error = Runner{context}(*op); error.failure()) return error;
    return Runner{context}(
        ExtendLookup{op->state, op->rows, op->text_left(),
                     options_from(limits, min_match, max_match, recent, periodic, draft_factor),
                     drafts_from(draft, length, match_length, match_end)});
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
        .template Ret<Ints<1>>()  // draft length
        .template Ret<Ints<1>>()  // match length
        .template Ret<Ints<1>>()  // match end
        .RemainingRets()          // state, workspace
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }
};

}  // namespace jax_sa
