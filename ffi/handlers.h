// From XLA's buffers to the ops' plain structs, the same for every platform: a platform adds its
// context (a thread pool, a stream) and a runner that takes an op and returns an error.
//
// Python has checked shapes, dtypes and attributes at trace time; here only what it cannot know is
// checked: that XLA gave the state's results the buffers of its arguments.
#pragma once

#include <cstdint>

#include "buffers.h"
#include "rows.h"
#include "slots.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// The state's leaves in the order of `jax_sa.State`'s fields.
inline ffi::ErrorOr<State> state_from(ffi::RemainingArgs leaves) {
  void* data[kNumLeaves];
  ffi::Span<const int64_t> dims[kNumLeaves];
  if (leaves.size() != kNumLeaves) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("state: wrong number of leaves"));
  }
  for (int i = 0; i < kNumLeaves; ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> leaf = leaves.get<ffi::AnyBuffer>(i);
    if (leaf.has_error()) return ffi::Unexpected(leaf.error());
    data[i] = leaf->untyped_data();
    dims[i] = leaf->dimensions();
  }
  State state;
  state.length = static_cast<int32_t*>(data[0]);
  state.status = static_cast<int32_t*>(data[1]);
  state.num_clones = static_cast<int32_t*>(data[2]);
  state.suffixes = static_cast<Suffix*>(data[3]);
  state.tokens = static_cast<int32_t*>(data[4]);
  state.nodes = static_cast<Node*>(data[5]);
  state.clones = static_cast<Clone*>(data[6]);
  state.heads = static_cast<int32_t*>(data[7]);
  state.edges = static_cast<Edge*>(data[8]);
  state.num_slots = static_cast<int32_t>(dims[0][0]);
  state.max_seq_len = static_cast<int32_t>(dims[4][1]);
  state.num_entries = static_cast<int32_t>(dims[8][1]);
  return state;
}

inline ffi::ErrorOr<Leaves> leaves_from(ffi::RemainingArgs args) {
  const ffi::ErrorOr<State> state = state_from(args);
  if (state.has_error()) return ffi::Unexpected(state.error());
  Leaves leaves;
  leaves.num_slots = state->num_slots;
  leaves.status = state->status;
  for (int i = 0; i < kNumLeaves; ++i) {
    const ffi::ErrorOr<ffi::AnyBuffer> leaf = args.get<ffi::AnyBuffer>(i);
    leaves.data[i] = static_cast<char*>(leaf->untyped_data());
    leaves.slot_bytes[i] = static_cast<int64_t>(leaf->size_bytes()) / state->num_slots;
  }
  return leaves;
}

inline ffi::Error check_in_place(ffi::RemainingArgs args, ffi::RemainingRets rets) {
  if (args.size() != rets.size()) return ffi::Error::InvalidArgument("state: leaves were lost");
  for (size_t i = 0; i < args.size(); ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> arg = args.get<ffi::AnyBuffer>(i);
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> ret = rets.get<ffi::AnyBuffer>(i);
    if (arg.has_error()) return arg.error();
    if (ret.has_error()) return ret.error();
    if (arg->untyped_data() != (*ret)->untyped_data()) {
      return ffi::Error::Internal("state: a leaf was not updated in place (not aliased)");
    }
  }
  return ffi::Error::Success();
}

// `slots` without elements says that row i is slot i.
inline Rows rows_from(const Ints<1>& slots, int64_t count) {
  return {slots.element_count() == 0 ? nullptr : slots.typed_data(), static_cast<int32_t>(count)};
}

inline Text text_from(const Ints<2>& tokens, const Ints<1>& lengths) {
  return {tokens.typed_data(), lengths.typed_data(), static_cast<int32_t>(tokens.dimensions()[1])};
}

inline LookupOptions options_from(int64_t min_match, int64_t max_match, bool recent, bool periodic,
                                  double draft_factor) {
  return {static_cast<int32_t>(min_match), static_cast<int32_t>(max_match), recent, periodic,
          draft_factor};
}

inline Drafts drafts_from(IntsOut<2> tokens, IntsOut<1> length, IntsOut<1> match_length,
                          IntsOut<1> match_end) {
  return {tokens->typed_data(), length->typed_data(), match_length->typed_data(),
          match_end->typed_data(), static_cast<int32_t>(tokens->dimensions()[1])};
}

// The handlers. `Runner` is made of the platform's context; run(op) starts the op there.

template <class Runner>
struct Handlers {
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

  static ffi::Error lookup(typename Runner::Value context, Ints<1> slots, ffi::RemainingArgs leaves,
                           IntsOut<2> draft, IntsOut<1> length, IntsOut<1> match_length,
                           IntsOut<1> match_end, int64_t min_match, int64_t max_match, bool recent,
                           bool periodic, double draft_factor) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    const Rows rows = rows_from(slots, draft->dimensions()[0]);
    return Runner{context}(
        Lookup{*state, rows, options_from(min_match, max_match, recent, periodic, draft_factor),
               drafts_from(draft, length, match_length, match_end)});
  }
  static auto bind_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // draft tokens
        .template Ret<Ints<1>>()  // draft length
        .template Ret<Ints<1>>()  // match length
        .template Ret<Ints<1>>()  // match end
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }

  static ffi::Error extend_lookup(typename Runner::Value context, Ints<2> tokens, Ints<1> lengths,
                                  Ints<1> slots, ffi::RemainingArgs leaves, IntsOut<2> draft,
                                  IntsOut<1> length, IntsOut<1> match_length, IntsOut<1> match_end,
                                  ffi::RemainingRets updated, int64_t min_match, int64_t max_match,
                                  bool recent, bool periodic, double draft_factor) {
    const ffi::ErrorOr<State> state = state_from(leaves);
    if (state.has_error()) return state.error();
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const Rows rows = rows_from(slots, tokens.dimensions()[0]);
    return Runner{context}(
        ExtendLookup{*state, rows, text_from(tokens, lengths),
                     options_from(min_match, max_match, recent, periodic, draft_factor),
                     drafts_from(draft, length, match_length, match_end)});
  }
  static auto bind_extend_lookup() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<2>>()  // tokens
        .template Arg<Ints<1>>()  // lengths
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .template Ret<Ints<2>>()  // draft tokens
        .template Ret<Ints<1>>()  // draft length
        .template Ret<Ints<1>>()  // match length
        .template Ret<Ints<1>>()  // match end
        .RemainingRets()          // state
        .template Attr<int64_t>("min_match")
        .template Attr<int64_t>("max_match")
        .template Attr<bool>("recent")
        .template Attr<bool>("periodic")
        .template Attr<double>("draft_factor");
  }

  static ffi::Error reset(typename Runner::Value context, Ints<1> slots, ffi::RemainingArgs args,
                          ffi::RemainingRets updated) {
    const ffi::ErrorOr<Leaves> leaves = leaves_from(args);
    if (leaves.has_error()) return leaves.error();
    if (ffi::Error error = check_in_place(args, updated); error.failure()) return error;
    const auto count = static_cast<int32_t>(slots.element_count());
    return Runner{context}(Reset{*leaves, slots.typed_data(), count});
  }
  static auto bind_reset() {
    return ffi::Ffi::Bind()
        .Ctx<Context>()
        .template Arg<Ints<1>>()  // slots
        .RemainingArgs()          // state
        .RemainingRets();         // state
  }

  static ffi::Error copy_slots(typename Runner::Value context, Ints<1> sources,
                               Ints<1> destinations, ffi::RemainingArgs args,
                               ffi::RemainingRets updated) {
    const ffi::ErrorOr<Leaves> leaves = leaves_from(args);
    if (leaves.has_error()) return leaves.error();
    if (ffi::Error error = check_in_place(args, updated); error.failure()) return error;
    const auto count = static_cast<int32_t>(sources.element_count());
    return Runner{context}(
        CopySlots{*leaves, sources.typed_data(), destinations.typed_data(), count});
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
