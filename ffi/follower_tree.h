// What is left of a tree: the followers of the text's last token, theirs, and so on.
//
// Which of them are tried does not depend on the text: those with the best chance, where a follower
// has one by its rank alone. The tree may have some already, from a text; these stand for them.
#pragma once

#include <cstdint>

#include "followers.h"
#include "slot.h"

namespace jax_sa {

// Beside followers, a chain has at most so many tokens for each token of its match.
constexpr double kGrowthFactor = 4.0;
constexpr int32_t kMaxGrown = kWindow;

// The followers to try, the best first: which follower, of what.
struct Growth {
  int32_t parent[kMaxGrown];  // the number of one before; -1: of the text's last token
  int32_t rank[kMaxGrown];
  int32_t depth[kMaxGrown];
  int32_t deepest;
};

// How often the follower of a rank is what comes next, in parts of a thousand: docs/trees.md.
constexpr int64_t kShares[kNumFollowers] = {360, 90, 50, 32, 27, 17, 16, 13};

inline Growth make_growth() {
  Growth growth{};
  int64_t chance[kMaxGrown] = {};     // in 10^-9
  int32_t tried[1 + kMaxGrown] = {};  // followers of the last token, then of each
  for (int32_t n = 0; n < kMaxGrown; ++n) {
    int32_t best = -2;
    int64_t most = -1;
    for (int32_t parent = -1; parent < n; ++parent) {
      const int32_t rank = tried[1 + parent];
      if (rank == kNumFollowers) continue;
      const int64_t whole = parent < 0 ? 1000000000 : chance[parent];
      const int64_t part = whole * kShares[rank] / 1000;
      if (part > most) most = part, best = parent;
    }
    growth.parent[n] = best;
    growth.rank[n] = tried[1 + best]++;
    growth.depth[n] = best < 0 ? 1 : growth.depth[best] + 1;
    if (growth.depth[n] > growth.deepest) growth.deepest = growth.depth[n];
    chance[n] = most;
  }
  return growth;
}

// Where followers come from, and which.
struct Growing {
  FollowersView followers;
  Growth growth;

  // The draft factor of the chains, which leave room for followers if there are any.
  JAX_SA_FN static double factor(const FollowerGroup& group, double draft_factor) {
    return group.vocabulary > 0 && draft_factor > kGrowthFactor ? kGrowthFactor : draft_factor;
  }
};

}  // namespace jax_sa
