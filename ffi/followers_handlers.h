// note_followers from XLA's buffers; `automaton_handlers.h` says how a platform uses it.
#pragma once

#include <cstdint>

#include "buffers.h"
#include "followers.h"
#include "state_buffers.h"
#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// Followers of no groups are none; `groups` without elements say that all rows see group 0.
inline FollowersView followers_view_from(const Ints<1>& groups, const Ints<3>& tokens) {
  const auto dims = tokens.dimensions();
  const Followers followers{tokens.typed_data(), static_cast<int32_t>(dims[0]),
                            static_cast<int32_t>(dims[1])};
  return {followers, groups.element_count() == 0 ? nullptr : groups.typed_data()};
}

template <class Runner>
struct FollowersHandlers {
  static ffi::Error note(typename Runner::Value context, Ints<1> groups, Ints<1> tokens,
                         ffi::Buffer<ffi::F32, 2> logits, ffi::RemainingArgs leaves,
                         ffi::RemainingRets updated) {
    if (ffi::Error error = check_in_place(leaves, updated); error.failure()) return error;
    const ffi::ErrorOr<ffi::AnyBuffer> table = leaves.get<ffi::AnyBuffer>(0);
    if (table.has_error()) return table.error();
    const auto dims = table->dimensions();  // [..., V, F], of which all before V count groups
    const auto vocabulary = static_cast<int32_t>(logits.dimensions()[1]);
    const int64_t entries = table->element_count() / kNumFollowers;
    if (dims.back() != kNumFollowers || dims[dims.size() - 2] != vocabulary) {
      return ffi::Error::InvalidArgument("followers: wrong shape");
    }
    const auto num_groups = static_cast<int32_t>(vocabulary == 0 ? 0 : entries / vocabulary);
    return Runner{context}(
        NoteFollowers{{static_cast<int32_t*>(table->untyped_data()), num_groups, vocabulary},
                      groups.typed_data(),
                      tokens.typed_data(),
                      logits.typed_data(),
                      static_cast<int32_t>(tokens.element_count())});
  }
  static auto bind_note() {
    return ffi::Ffi::Bind()
        .Ctx<typename Runner::Context>()
        .template Arg<Ints<1>>()                   // groups
        .template Arg<Ints<1>>()                   // tokens
        .template Arg<ffi::Buffer<ffi::F32, 2>>()  // logits
        .RemainingArgs()                           // followers
        .RemainingRets();                          // followers
  }
};

}  // namespace jax_sa
