// The suffix automaton of one slot as a warp works on it: append a token, find the longest suffix
// that occurred before.
//
// The textbook construction (Blumer et al. 1985) walks the suffix links of the last node one
// dependent load at a time. Here the nodes on that path, the text's repeated suffixes from the
// longest to the root, sit in the lanes of a warp: the first kWindow of them, the window. All are
// probed for the new token at once, and the path of the longer text needs no further load, because
// its suffixes are exactly the old ones extended by the token: it is the distinct targets of those
// probes, followed by the root. For the same reason a target on it is one token longer than the
// lane that leads to it, so lengths are never loaded either.
#pragma once

#include <cstdint>

#include "slot.h"

namespace jax_sa {

struct Match {
  int32_t length;  // of the suffix; 0 without a match
  int32_t end;     // tokens of the text up to the earlier occurrence's end
};

template <class Warp>
class Automaton {
 public:
  JAX_SA_FN Automaton(Warp warp, Slot slot)
      : warp_(warp),
        slot_(slot),
        hash_(*slot.seed),
        length_(*slot.length),
        num_clones_(*slot.num_clones) {
    warp_.each(kWindow, [&](int32_t lane) { suffix_[lane] = slot_.suffixes[lane]; });
    const uint32_t roots =
        warp_.ballot(kWindow, [&](int32_t lane) { return suffix_[lane].node == kRoot; });
    complete_ = roots != 0;
    count_ = complete_ ? Warp::lowest_bit(roots) + 1 : kWindow;
  }

  JAX_SA_FN int32_t length() const { return length_; }

  JAX_SA_FN void append(int32_t token) {
    const int32_t last = length_++;
    warp_.each(count_, [&](int32_t lane) {
      // Written first: `last` itself may be cloned below, with this edge among its own.
      if (lane == 0) slot_.tokens[last] = token;
      const int32_t node = suffix_[lane].node;
      if (node != kRoot) slot_.nodes[node].recent_end = last;
    });
    if (last == 0) return;

    const int32_t lane = probe(token);
    if (lane == kNoLane) {
      warp_.only(0, [&](int32_t) { slot_.nodes[length_].link = kRoot; });
      count_ = 0;
      append_root();
      return;
    }
    if (!is_solid_in(lane)) split(lane, token);
    const int32_t target = target_in(lane);
    warp_.only(0, [&](int32_t) { slot_.nodes[length_].link = target; });
    advance(lane);
  }

  // The longest suffix of at least min_match and at most max_match tokens that occurred before,
  // and where: at its first end position or at the most recent one known.
  JAX_SA_FN Match match(int32_t min_match, int32_t max_match, bool recent) const {
    const int32_t longest = length_in(0);
    const int32_t length = longest < max_match ? longest : max_match;
    if (length == 0 || length < min_match) return {0, 0};
    const uint32_t as_long =
        warp_.ballot(count_, [&](int32_t lane) { return suffix_[lane].length >= length; });
    const int32_t lane = Warp::count_bits(as_long) - 1;  // lengths fall from lane to lane
    int32_t node = node_in(lane);
    if (recent) return {length, slot_.recent_end(node)};
    if (lane == kWindow - 1) {  // a shorter suffix beyond the window may have occurred earlier
      for (int32_t up = link(node); slot_.node_length(up) >= length; up = link(up)) {
        node = up;
      }
    }
    return {length, slot_.first_end(node)};
  }

  // The longest suffix of the text with `count` tokens behind it that occurs in the text itself,
  // and where. Of the text's own suffixes those in the window are followed on, side by side and
  // without a suffix link, so that no text makes this walk long.
  JAX_SA_FN Match match_after(const int32_t* added, int32_t count, int32_t min_match,
                              int32_t max_match, bool recent) const {
    if (count == 0) return match(min_match, max_match, recent);
    PerLane<int32_t> node;
    const auto longest_in = [&](int32_t lanes) {
      const uint32_t found = warp_.ballot(lanes, [&](int32_t lane) { return node[lane] != kNone; });
      return found != 0 ? Warp::lowest_bit(found) : kNoLane;
    };
    const auto match_in = [&](int32_t lane, int32_t length) {
      const int32_t found = warp_.broadcast(lane, [&](int32_t own) { return node[own]; });
      if (length < min_match) return Match{0, 0};
      return Match{length < max_match ? length : max_match,
                   recent ? recent_end_in_text(found) : slot_.first_end(found)};
    };
    if (max_match > count) {
      warp_.each(count_,
                 [&](int32_t lane) { node[lane] = follow(suffix_[lane].node, added, count); });
      const int32_t longest = longest_in(count_);
      const uint32_t as_long = warp_.ballot(
          count_, [&](int32_t lane) { return suffix_[lane].length >= max_match - count; });
      const int32_t shortest = Warp::count_bits(as_long) - 1;
      const int32_t lane = shortest > longest ? shortest : longest;
      if (longest != kNoLane) return match_in(lane, length_in(lane) + count);
    }
    // None of the text's suffixes: the added tokens alone.
    for (int32_t begin = max_match < count ? count - max_match : 0; begin < count;
         begin += kWindow) {
      const int32_t lanes = count - begin < kWindow ? count - begin : kWindow;
      warp_.each(lanes, [&](int32_t lane) {
        node[lane] = follow(kRoot, added + begin + lane, count - begin - lane);
      });
      const int32_t lane = longest_in(lanes);
      if (lane != kNoLane) return match_in(lane, count - begin - lane);
    }
    return {0, 0};
  }

  // The longest suffix shorter than `than`, of at least min_match tokens, whose occurrence, the
  // first or the most recent one, ends elsewhere.
  JAX_SA_FN Match next_match(Match than, int32_t min_match, bool recent) const {
    const uint32_t others = warp_.ballot(count_, [&](int32_t lane) {
      const Suffix suffix = suffix_[lane];
      return suffix.node != kRoot && suffix.length >= min_match && suffix.length < than.length &&
             end_of(suffix.node, recent) != than.end;
    });
    if (others == 0) return {0, 0};
    const int32_t lane = Warp::lowest_bit(others);
    return {length_in(lane), end_of(node_in(lane), recent)};
  }

  JAX_SA_FN void store() const {
    warp_.each(kWindow, [&](int32_t lane) {
      slot_.suffixes[lane] = lane < count_ ? suffix_[lane] : Suffix{kRoot, 0};
      if (lane == 0) {
        *slot_.length = length_;
        *slot_.num_clones = num_clones_;
      }
    });
  }

 private:
  static constexpr int32_t kNoLane = -1;

  template <class T>
  using PerLane = typename Warp::template PerLane<T>;

  // What one lane has, told to all.
  JAX_SA_FN int32_t node_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return suffix_[own].node; });
  }
  JAX_SA_FN int32_t length_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return suffix_[own].length; });
  }
  JAX_SA_FN int32_t target_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return place_[own].target; });
  }
  JAX_SA_FN bool is_solid_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return place_[own].solid; });
  }

  JAX_SA_FN int32_t end_of(int32_t node, bool recent) const {
    return recent ? slot_.recent_end(node) : slot_.first_end(node);
  }

  JAX_SA_FN int32_t link(int32_t node) const { return slot_.nodes[node].link; }

  // The node that some tokens lead to; kNone where they lead nowhere.
  JAX_SA_FN int32_t follow(int32_t node, const int32_t* tokens, int32_t count) const {
    for (int32_t i = 0; i < count; ++i) {
      node = slot_.find(hash_, node, tokens[i], length_).target;
      if (node == kNone) break;
    }
    return node;
  }

  // The most recent end of a node's strings, which for a suffix of the text is the text's own.
  JAX_SA_FN int32_t recent_end_in_text(int32_t node) const {
    const uint32_t own =
        warp_.ballot(count_, [&](int32_t lane) { return suffix_[lane].node == node; });
    return node == length_ || own != 0 ? length_ : slot_.recent_end(node);
  }

  // Gives every suffix that lacks an edge with the token one to the new node; returns the lane of
  // the longest suffix that has one, its and all shorter suffixes' places in place_.
  JAX_SA_FN int32_t probe(int32_t token) {
    for (;;) {
      warp_.each(count_, [&](int32_t lane) {
        place_[lane] = slot_.find(hash_, suffix_[lane].node, token, length_);
      });
      const uint32_t found =
          warp_.ballot(count_, [&](int32_t lane) { return place_[lane].target != kNone; });
      const int32_t first = found != 0 ? Warp::lowest_bit(found) : count_;
      add_to_each(first, token);
      if (found != 0) return first;
      if (complete_) return kNoLane;
      const int32_t shortest = node_in(kWindow - 1);
      count_ = 0;
      follow_links(shortest);
    }
  }

  // Clones the target of the lane's edge for the suffixes that reach it by shorter strings.
  JAX_SA_FN void split(int32_t lane, int32_t token) {
    const int32_t original = target_in(lane);
    const int32_t length = length_in(lane) + 1;
    const int32_t clone = slot_.max_seq_len + 1 + num_clones_++;
    warp_.only(0, [&](int32_t) {
      slot_.nodes[clone] = {slot_.nodes[original].link, slot_.recent_end(original)};
      slot_.clone(clone) = {length, slot_.first_end(original)};
      slot_.nodes[original].link = clone;
    });
    copy_edges(original, clone);
    redirect(lane, token, original, clone);
  }

  // Gives the clone the original's edges: up to kWindow at a time, one a lane.
  JAX_SA_FN void copy_edges(int32_t original, int32_t clone) {
    PerLane<Edge> copy;
    int32_t copies = 0;
    if (slot_.is_prefix(original)) {
      warp_.set(copy, copies++, {clone + 1, slot_.tokens[original], (original + 1) << 1, 0});
    }
    for (int32_t next = slot_.heads[original]; next != 0;) {
      const Edge edge = slot_.edges[next - 1];
      next = edge.next;
      if (copies == kWindow) {
        add_to_one(copies, copy);
        copies = 0;
      }
      warp_.set(copy, copies++, {clone + 1, edge.token, edge.target & ~1, 0});
    }
    add_to_one(copies, copy);
  }

  // Leads the edges of this lane and of all shorter suffixes from `original` to `clone`.
  JAX_SA_FN void redirect(int32_t first, int32_t token, int32_t original, int32_t clone) {
    warp_.each(count_, [&](int32_t lane) {
      if (lane < first || place_[lane].target != original) return;
      place_[lane].target = clone;
      slot_.edges[place_[lane].entry].target = clone << 1 | (lane == first ? 1 : 0);
    });
    if (complete_ || target_in(count_ - 1) != clone) return;
    const int32_t shortest = node_in(count_ - 1);
    warp_.only(0, [&](int32_t) {  // past the window, link by link
      int32_t node = shortest;
      while (node != kRoot) {
        node = link(node);
        const Place place = slot_.find(hash_, node, token, length_);
        if (place.target != original) return;
        slot_.edges[place.entry].target = clone << 1;
      }
    });
  }

  // Moves on to the suffixes of the longer text: the targets of the lanes from `first` on.
  JAX_SA_FN void advance(int32_t first) {
    PerLane<int32_t> below;
    warp_.from_below(count_, below, [&](int32_t lane) { return place_[lane].target; });
    const uint32_t distinct = warp_.ballot(count_, [&](int32_t lane) {
      return lane == first || (lane > first && place_[lane].target != below[lane]);
    });
    warp_.each(count_, [&](int32_t lane) {
      suffix_[lane] = {place_[lane].target, suffix_[lane].length + 1};
    });
    warp_.compact(distinct, suffix_);
    count_ = Warp::count_bits(distinct);
    if (!complete_) {
      follow_links(node_in(count_ - 1));
    } else if (count_ < kWindow) {
      append_root();
    } else {
      complete_ = false;
    }
  }

  JAX_SA_FN void append_root() {
    warp_.set(suffix_, count_++, Suffix{kRoot, 0});
    complete_ = true;
  }

  // Fills the window's free lanes with the nodes that follow `node` on its suffix link path.
  JAX_SA_FN void follow_links(int32_t node) {
    complete_ = false;
    while (count_ < kWindow && !complete_) {
      node = link(node);
      warp_.set(suffix_, count_++, Suffix{node, slot_.node_length(node)});
      complete_ = node == kRoot;
    }
  }

  // Adds an edge to the new node from each of the first `count` suffixes.
  JAX_SA_FN void add_to_each(int32_t count, int32_t token) {
    PerLane<Edge> edge;
    warp_.each(count, [&](int32_t lane) {
      edge[lane] = {suffix_[lane].node + 1, token, length_ << 1, 0};
    });
    if (!entries_differ(count, place_)) return add_in_turn(count, edge);
    warp_.each(count, [&](int32_t lane) { slot_.add(edge[lane], place_[lane]); });
  }

  // Adds the edges of lanes 0..count-1, all of one node.
  JAX_SA_FN void add_to_one(int32_t count, PerLane<Edge>& edge) {
    PerLane<Place> place;
    warp_.each(count, [&](int32_t lane) {
      place[lane] = slot_.find(hash_, edge[lane].source - 1, edge[lane].token, length_);
    });
    if (!entries_differ(count, place)) return add_in_turn(count, edge);
    PerLane<int32_t> below;
    warp_.from_below(count, below, [&](int32_t lane) { return place[lane].entry; });
    warp_.each(count, [&](int32_t lane) {
      edge[lane].next = lane == 0 ? place[lane].head : below[lane] + 1;
      slot_.edges[place[lane].entry] = edge[lane];
      if (lane == count - 1) slot_.heads[edge[lane].source - 1] = place[lane].entry + 1;
    });
  }

  // One after the other, where two were to take the same free entry.
  JAX_SA_FN void add_in_turn(int32_t count, PerLane<Edge>& edge) {
    for (int32_t turn = 0; turn < count; ++turn) {
      warp_.only(turn, [&](int32_t lane) {
        slot_.add(edge[lane], slot_.find(hash_, edge[lane].source - 1, edge[lane].token, length_));
      });
    }
  }

  JAX_SA_FN bool entries_differ(int32_t count, PerLane<Place>& place) {
    return warp_.all_distinct(count, [&](int32_t lane) { return place[lane].entry; });
  }

  Warp warp_;
  Slot slot_;
  Hash hash_;
  int32_t length_;
  int32_t num_clones_;
  PerLane<Suffix> suffix_;  // the window: lanes 0..count_-1, lengths falling
  int32_t count_;
  bool complete_;  // the window's last suffix is the root
  PerLane<Place> place_;
};

}  // namespace jax_sa
