// The longest suffix of a row's text that occurs in a pool, written for the lanes of a warp.
//
// The index is probed for the text's last n-grams of all lengths at once, each hit is compared with
// the text backwards, a token a lane, and the longest match wins, of equal ones the most recent.
// So a search waits for memory twice, whatever it finds.
#pragma once

#include <cstdint>

#include "automaton.h"
#include "pool.h"

namespace jax_sa {

constexpr int32_t kMaxPoolMatch = kWindow;  // tokens compared, one a lane

struct PoolMatches {
  Match best;
  Match second;  // the best one with another token after it
};

template <class Warp>
class PoolSearch {
 public:
  // Probes the index for a text whose token i is text_at(i); what it says is not waited for yet.
  template <class TextAt>
  JAX_SA_FN PoolSearch(Warp warp, PoolGroup pool, TextAt text_at, int32_t length)
      : warp_(warp), pool_(pool) {
    if (pool_.head == 0) return;
    PerLane<int32_t> term;
    warp_.each(kWindow, [&](int32_t lane) {
      own_[lane] = lane < length ? text_at(length - 1 - lane) : kSeparator;
      term[lane] = static_cast<int32_t>(gram_term(own_[lane]));
    });
    uint32_t hash = 0;
    int32_t gram = 0;
    JAX_SA_UNROLL
    for (int32_t n = 1; n <= kLongestGram; ++n) {
      const int32_t next = warp_.broadcast(n - 1, [&](int32_t lane) { return term[lane]; });
      hash = extend_gram(hash, static_cast<uint32_t>(next));
      if (n == gram_length(gram)) {
        found_[gram] = pool_.entries(gram, hash);
        ++gram;
      }
    }
  }

  JAX_SA_FN PoolMatches matches(int32_t min_match, int32_t max_match) const {
    if (pool_.head == 0) return {{0, 0}, {0, 0}};
    Match match[kNumHits];
    int32_t next[kNumHits];
    compare(match, next);
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      int32_t& length = match[hit].length;
      if (length < gram_length(hit / kBranches) || length < min_match) length = 0;
      if (length > max_match) length = max_match;
    }
    PoolMatches result{{0, 0}, {0, 0}};
    int32_t best_next = kSeparator;
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      if (!is_better(match[hit], result.best)) continue;
      result.best = match[hit];
      best_next = next[hit];
    }
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      if (next[hit] == best_next || !is_better(match[hit], result.second)) continue;
      result.second = match[hit];
    }
    return result;
  }

 private:
  static constexpr int32_t kNumHits = kNumGrams * kBranches;

  template <class T>
  using PerLane = typename Warp::template PerLane<T>;

  JAX_SA_FN static bool is_better(Match match, Match than) {
    return match.length > than.length ||
           (match.length == than.length && match.length > 0 && match.end > than.end);
  }

  // How many tokens before each hit are those of the text, and the token after it.
  JAX_SA_FN void compare(Match (&match)[kNumHits], int32_t (&next)[kNumHits]) const {
    PerLane<int32_t> before[kNumHits];
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      const int32_t end = found_[hit / kBranches].ends[hit % kBranches];
      match[hit] = {0, pool_.is_alive(end) ? end : 0};
    }
    // Loaded side by side: on a GPU all hits cost one trip to memory.
    warp_.each(kWindow, [&](int32_t lane) {
      JAX_SA_UNROLL
      for (int32_t hit = 0; hit < kNumHits; ++hit) {
        before[hit][lane] =
            match[hit].end > 0 ? pool_.token_before(match[hit].end, lane + 1) : kSeparator;
      }
    });
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      next[hit] = match[hit].end > 0 ? pool_.token_after(match[hit].end, 0) : kSeparator;
    }
    JAX_SA_UNROLL
    for (int32_t hit = 0; hit < kNumHits; ++hit) {
      const uint32_t differs = warp_.ballot(kWindow, [&](int32_t lane) {
        return before[hit][lane] != own_[lane] || own_[lane] == kSeparator;
      });
      const int32_t length = differs == 0 ? kMaxPoolMatch : Warp::lowest_bit(differs);
      match[hit].length = next[hit] == kSeparator ? 0 : length;
    }
  }

  Warp warp_;
  PoolGroup pool_;
  PerLane<int32_t> own_;  // the text's last tokens, the last one in lane 0
  Entries found_[kNumGrams];
};

}  // namespace jax_sa
