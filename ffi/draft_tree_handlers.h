// The lookups of trees, from XLA's buffers to plain structs, the same for every platform.
#pragma once

#include <cstdint>

#include "automaton_handlers.h"
#include "draft_tree.h"
#include "followers_handlers.h"

namespace jax_sa {

inline Trees trees_from(IntsOut<2> tokens, IntsOut<2> parents, IntsOut<2> depth,
                        IntsOut<2> match_length, IntsOut<2> source, IntsOut<1> length) {
  return {tokens->typed_data(),
          parents->typed_data(),
          depth->typed_data(),
          match_length->typed_data(),
          source->typed_data(),
          length->typed_data(),
          static_cast<int32_t>(tokens->dimensions()[1])};
}

inline NeuralDrafts neural_from(const Ints<2>& neural, int64_t threshold) {
  return {neural.typed_data(), static_cast<int32_t>(neural.dimensions()[1]),
          static_cast<int32_t>(threshold)};
}

inline Growing growing_from(const Ints<1>& groups, const Ints<3>& followers) {
  static const Growth growth = make_growth();
  return {followers_view_from(groups, followers), growth};
}

template <class Runner>
struct DraftTreeHandlers {
  using Context = typename Runner::Context;

  static ffi::Error lookup(typename Runner::Value context, Ints<1> slots, Ints<1> limits,
                           Ints<1> groups, Ints<2> ring, Ints<1> head, Ints<3> table,
                           Ints<3> followers, Ints<2> neural, ffi::RemainingArgs leaves,
                           IntsOut<2> tokens, IntsOut<2> parents, IntsOut<2> depth,
                           IntsOut<2> match_length, IntsOut<2> source, IntsOut<1> length,
                           int64_t max_draft, int64_t min_match, int64_t max_match, bool recent,
                           bool periodic, double draft_factor, int64_t threshold) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, tokens->dimensions()[0]);
    return Runner{context}(
        LookupTree{*state, rows, pool_view_from(groups, ring, head, table),
                   neural_from(neural, threshold), growing_from(groups, followers),
                   options_from(limits, min_match, max_match, recent, periodic, draft_factor),
                   trees_from(tokens, parents, depth, match_length, source, length),
                   static_cast<int32_t>(max_draft)});
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
        .template Arg<Ints<3>>()  // followers
        .template Arg<Ints<2>>()  // neural drafts
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // tokens
        .template Ret<Ints<2>>()  // parents
        .template Ret<Ints<2>>()  // depth
        .template Ret<Ints<2>>()  // match length
        .template Ret<Ints<2>>()  // source
        .template Ret<Ints<1>>()  // length
        .template Attr<int64_t>("max_draft")
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor")
        .template Attr<int64_t>("threshold");
  }

  static ffi::Error extend_lookup(typename Runner::Value context, Ints<2> text, Ints<1> lengths,
                                  Ints<1> slots, Ints<1> limits, Ints<1> groups, Ints<2> ring,
                                  Ints<1> head, Ints<3> table, Ints<3> followers, Ints<2> neural,
                                  ffi::RemainingArgs leaves, IntsOut<2> tokens, IntsOut<2> parents,
                                  IntsOut<2> depth, IntsOut<2> match_length, IntsOut<2> source,
                                  IntsOut<1> length, ffi::RemainingRets updated, int64_t max_draft,
                                  int64_t min_match, int64_t max_match, bool recent, bool periodic,
                                  double draft_factor, int64_t threshold) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens->dimensions()[0]);
    return Runner{context}(ExtendLookupTree{
        *state, rows, pool_view_from(groups, ring, head, table), neural_from(neural, threshold),
        growing_from(groups, followers), text_from(text, lengths),
        options_from(limits, min_match, max_match, recent, periodic, draft_factor),
        trees_from(tokens, parents, depth, match_length, source, length),
        static_cast<int32_t>(max_draft)});
  }
  static auto bind_extend_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // text
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .template Arg<Ints<1>>()  // limits
        .template Arg<Ints<1>>()  // groups
        .template Arg<Ints<2>>()  // pool: ring
        .template Arg<Ints<1>>()  // pool: head
        .template Arg<Ints<3>>()  // pool: table
        .template Arg<Ints<3>>()  // followers
        .template Arg<Ints<2>>()  // neural drafts
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // tokens
        .template Ret<Ints<2>>()  // parents
        .template Ret<Ints<2>>()  // depth
        .template Ret<Ints<2>>()  // match length
        .template Ret<Ints<2>>()  // source
        .template Ret<Ints<1>>()  // length
        .RemainingRets()          // state
        .template Attr<int64_t>("max_draft")
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor")
        .template Attr<int64_t>("threshold");
  }
};

}  // namespace jax_sa
