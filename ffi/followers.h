// What may follow each token of a vocabulary, and how a model's logits say so, once for host and
// device. `jax_sa/followers.py` documents the array.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace jax_sa {

constexpr int32_t kNumFollowers = 8;
constexpr int32_t kNoFollower = -1;

// A reference to one group: passed by value, owns nothing.
struct FollowerGroup {
  const int32_t* tokens;  // [vocabulary, kNumFollowers]
  int32_t vocabulary;     // 0: there are none

  JAX_SA_FN int32_t at(int32_t token, int32_t rank) const {
    if (token < 0 || token >= vocabulary) return kNoFollower;
    return tokens[static_cast<int64_t>(token) * kNumFollowers + rank];
  }

  // Whether a likelier follower is the same token, as only a file can say.
  JAX_SA_FN bool is_again(int32_t token, int32_t rank) const {
    for (int32_t likelier = 0; likelier < rank; ++likelier) {
      if (at(token, likelier) == at(token, rank)) return true;
    }
    return false;
  }
};

struct Followers {
  int32_t* tokens;  // [num_groups, vocabulary, kNumFollowers]
  int32_t num_groups;
  int32_t vocabulary;

  JAX_SA_FN int32_t* of(int32_t group, int32_t token) const {
    if (group < 0 || group >= num_groups || token < 0 || token >= vocabulary) return nullptr;
    return tokens + (static_cast<int64_t>(group) * vocabulary + token) * kNumFollowers;
  }
};

// Followers as the rows of a lookup see them.
struct FollowersView {
  Followers followers;
  const int32_t* groups;  // [rows], or null where all see group 0

  JAX_SA_FN FollowerGroup of_row(int32_t row) const {
    const int32_t group = groups == nullptr ? 0 : groups[row];
    const int32_t* const first = followers.of(group, 0);
    return first == nullptr ? FollowerGroup{} : FollowerGroup{first, followers.vocabulary};
  }
};

// A token and its logit as one number, which is larger for a larger logit, and of equal logits for
// the smaller token. 0 for a token that is no follower: its logit is minus infinity or NaN.
JAX_SA_FN uint64_t rated(float logit, int32_t token) {
  if (!(logit >= -3.402823466e38f)) return 0;
  uint32_t bits;
  memcpy(&bits, &logit, sizeof(bits));
  constexpr uint32_t kSign = 0x80000000u;
  if (bits == kSign) bits = 0;  // no negative zero; a sum would flush the smallest numbers, too
  const uint32_t ascending = bits & kSign ? ~bits : bits | kSign;
  return static_cast<uint64_t>(ascending) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}

JAX_SA_FN int32_t token_of(uint64_t rated) {
  return rated == 0 ? kNoFollower
                    : static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(rated));
}

// Notes the likeliest followers of tokens that a model has read.
struct NoteFollowers {
  Followers followers;
  const int32_t* groups;  // [places]
  const int32_t* tokens;  // [places]
  const float* logits;    // [places, vocabulary]
  int32_t places;

  // Where those of the token at a place are noted, if it is a token of a group.
  JAX_SA_FN int32_t* entry(int32_t place) const {
    return followers.of(groups[place], tokens[place]);
  }
  // Whether both places are of the same token: then the last one counts.
  JAX_SA_FN bool is_same(int32_t place, int32_t other) const {
    return tokens[place] == tokens[other] && groups[place] == groups[other];
  }
  JAX_SA_FN const float* logits_of(int32_t place) const {
    return logits + static_cast<int64_t>(place) * followers.vocabulary;
  }
};

}  // namespace jax_sa
