// A state from XLA's buffers, and whether XLA updates it in place.
//
// Python has checked shapes, dtypes and attributes at trace time; here only what it cannot know is
// checked: that XLA gave the state's results the buffers of its arguments.
#pragma once

#include <cstdint>

#include "buffers.h"
#include "state.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

inline void point_to(State& state, void* const (&data)[kNumLeaves]) {
  state.numbers = static_cast<int32_t*>(data[0]);
  state.tokens = static_cast<int32_t*>(data[1]);
  state.index = static_cast<int32_t*>(data[2]);
}

// The entries along all axes: those before the last, as vmap adds them, count entries too.
inline int32_t count(ffi::Span<const int64_t> sizes) {
  int64_t entries = 1;
  for (const int64_t size : sizes) entries *= size;
  return static_cast<int32_t>(entries);
}

// The state whose leaves begin at argument `first`.
inline ffi::ErrorOr<State> state_from(ffi::RemainingArgs leaves, size_t first = 0) {
  void* data[kNumLeaves];
  ffi::Span<const int64_t> dims[kNumLeaves];
  if (leaves.size() < first + kNumLeaves) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("state: wrong number of leaves"));
  }
  for (int i = 0; i < kNumLeaves; ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> leaf = leaves.get<ffi::AnyBuffer>(first + i);
    if (leaf.has_error()) return ffi::Unexpected(leaf.error());
    data[i] = leaf->untyped_data();
    dims[i] = leaf->dimensions();
  }
  State state;
  point_to(state, data);
  state.num_slots = count(dims[0]) / kNumNumbers;
  state.max_seq_len = static_cast<int32_t>(dims[1].back());
  state.index_words = dims[2].back();
  state.num_entries = num_entries_in(state.index_words, state.max_seq_len);
  return state;
}

// The results that a handler may use as another state of the same size.
inline ffi::ErrorOr<State> scratch_from(State state, ffi::RemainingRets leaves) {
  if (leaves.size() != kNumLeaves) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("scratch: wrong number of leaves"));
  }
  void* data[kNumLeaves];
  for (int i = 0; i < kNumLeaves; ++i) {
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> leaf = leaves.get<ffi::AnyBuffer>(i);
    if (leaf.has_error()) return ffi::Unexpected(leaf.error());
    data[i] = (*leaf)->untyped_data();
  }
  point_to(state, data);
  return state;
}

// Whether the results are the arguments from `first` on.
inline ffi::Error check_in_place(ffi::RemainingArgs args, ffi::RemainingRets rets,
                                 size_t first = 0) {
  if (args.size() != first + rets.size()) {
    return ffi::Error::InvalidArgument("state: leaves were lost");
  }
  for (size_t i = 0; i < rets.size(); ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> arg = args.get<ffi::AnyBuffer>(first + i);
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> ret = rets.get<ffi::AnyBuffer>(i);
    if (arg.has_error()) return arg.error();
    if (ret.has_error()) return ret.error();
    if (arg->untyped_data() != (*ret)->untyped_data()) {
      return ffi::Error::Internal("state: a leaf was not updated in place (not aliased)");
    }
  }
  return ffi::Error::Success();
}

}  // namespace jax_sa
