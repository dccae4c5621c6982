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
    warp_.each(count_, [&](int32_t own) {
      if (own >= lane) target_end_[own] = slot_.first_end(place_[own].target);
    });
    const int32_t original = target_in(lane);
    const bool solid = is_solid_in(lane);
    const int32_t target = solid ? original : make_clone(lane, original);
    const uint32_t moved =
        warp_.ballot(count_, [&](int32_t own) { return !solid && place_[own].target == original; });
    const int32_t end = lane + Warp::count_bits(moved);
    write_edges(lane, end, token, target);
    warp_.each(end, [&](int32_t own) {
      if (own >= lane) place_[own].target = target;
    });
    if (!solid && !complete_ && end == count_) redirect_beyond(token, original, target);
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
    int32_t end = first_end_in(lane);
    const int32_t node = node_in(lane);
    if (recent) return {length, slot_.recent_end(node, end)};
    if (lane == kWindow - 1) {  // a shorter suffix beyond the window may have occurred earlier
      for (Suffix up = suffix_above(node); up.length >= length; up = suffix_above(up.node)) {
        end = up.first_end;
      }
    }
    return {length, end};
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
             end_of(suffix, recent) != than.end;
    });
    if (others == 0) return {0, 0};
    const int32_t lane = Warp::lowest_bit(others);
    const Suffix suffix{node_in(lane), length_in(lane), first_end_in(lane)};
    return {suffix.length, end_of(suffix, recent)};
  }

  JAX_SA_FN void store() const {
    warp_.each(kWindow, [&](int32_t lane) {
      slot_.suffixes[lane] = lane < count_ ? suffix_[lane] : Suffix{kRoot, 0, 0};
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
  JAX_SA_FN int32_t first_end_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return suffix_[own].first_end; });
  }
  JAX_SA_FN int32_t target_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return place_[own].target; });
  }
  JAX_SA_FN bool is_solid_in(int32_t lane) const {
    return warp_.broadcast(lane, [&](int32_t own) { return place_[own].solid; });
  }

  JAX_SA_FN int32_t end_of(Suffix suffix, bool recent) const {
    return recent ? slot_.recent_end(suffix.node, suffix.first_end) : suffix.first_end;
  }

  JAX_SA_FN Suffix suffix_above(int32_t node) const { return slot_.suffix(slot_.nodes[node].link); }

  // The node that some tokens lead to; kNone where they lead nowhere.
  JAX_SA_FN int32_t follow(int32_t node, const int32_t* tokens, int32_t count) const {
    for (int32_t i = 0; i < count; ++i) {
      node = slot_.find(hash_, slot_.suffix(node), tokens[i], length_).target;
      if (node == kNone) break;
    }
    return node;
  }

  // The most recent end of a node's strings, which for a suffix of the text is the text's own.
  JAX_SA_FN int32_t recent_end_in_text(int32_t node) const {
    const uint32_t own =
        warp_.ballot(count_, [&](int32_t lane) { return suffix_[lane].node == node; });
    if (node == length_ || own != 0) return length_;
    return slot_.recent_end(node, slot_.first_end(node));
  }

  // Finds the longest suffix that has an edge with the token; returns its lane, all places in
  // place_. The suffixes of windows before the last get one to the new node on the way.
  JAX_SA_FN int32_t probe(int32_t token) {
    for (;;) {
      find_places(token);
      const uint32_t found = warp_.ballot(count_, [&](int32_t lane) {
        return place_[lane].target != kNone && place_[lane].target != length_;
      });
      if (found != 0) return Warp::lowest_bit(found);
      write_edges(count_, count_, token, kNone);
      if (complete_) return kNoLane;
      move_window();
    }
  }

  JAX_SA_FN void find_places(int32_t token) {
    warp_.each(count_, [&](int32_t lane) {
      place_[lane] = slot_.find(hash_, suffix_[lane], token, length_);
    });
  }

  // Leads the lanes before `first` to the new node, and those from there up to `end` to the clone.
  // Of suffixes with the same first end, which are neighbours, the longest writes the edge. It may
  // have been in the window before this one: then the others' edges lead there already.
  JAX_SA_FN void write_edges(int32_t first, int32_t end, int32_t token, int32_t clone) {
    PerLane<int32_t> above;
    warp_.from_below(end, above, [&](int32_t lane) { return suffix_[lane].first_end; });
    const auto target = [&](int32_t lane) { return lane < first ? length_ : clone; };
    const uint32_t writers = warp_.ballot(end, [&](int32_t lane) {
      return place_[lane].target != target(lane) &&
             (lane == 0 || lane == first || suffix_[lane].first_end != above[lane]);
    });
    const auto write = [&](int32_t lane, int32_t entry) {
      const Suffix from = suffix_[lane];
      slot_.edges[entry] = {from.first_end + 1, token, target(lane) << 1 | (lane == first ? 1 : 0),
                            from.length};
    };
    const bool distinct =
        Warp::count_bits(writers) < 2 ||
        warp_.all_distinct(
            end,
            [&](int32_t lane) { return (writers >> lane & 1) != 0 ? place_[lane].entry : ~lane; });
    if (distinct) {
      warp_.each(end, [&](int32_t lane) {
        if ((writers >> lane & 1) != 0) write(lane, place_[lane].entry);
      });
      return;
    }
    for (uint32_t rest = writers; rest != 0; rest &= rest - 1) {  // two were to take one free entry
      warp_.only(Warp::lowest_bit(rest), [&](int32_t lane) {
        write(lane, slot_.find(hash_, suffix_[lane], token, length_).entry);
      });
    }
  }

  // Clones the target of the lane's edge for the suffixes that reach it by shorter strings.
  JAX_SA_FN int32_t make_clone(int32_t lane, int32_t original) {
    const int32_t length = length_in(lane) + 1;
    const int32_t end = warp_.broadcast(lane, [&](int32_t own) { return target_end_[own]; });
    const int32_t clone = slot_.max_seq_len + 1 + num_clones_++;
    warp_.only(0, [&](int32_t) {
      slot_.nodes[clone] = {slot_.nodes[original].link, slot_.recent_end(original, end)};
      slot_.clone(clone) = {length, end};
      slot_.nodes[original].link = clone;
    });
    return clone;
  }

  // Leads suffixes beyond the window from `original` to `clone` as well.
  JAX_SA_FN void redirect_beyond(int32_t token, int32_t original, int32_t clone) {
    const PerLane<Suffix> suffix = suffix_;
    const PerLane<Place> place = place_;
    const int32_t count = count_;
    int32_t moved;
    do {
      move_window();
      find_places(token);
      moved = Warp::count_bits(warp_.ballot(count_, [&](int32_t lane) {
        return place_[lane].target == original || place_[lane].target == clone;
      }));
      write_edges(kNoLane, moved, token, clone);
    } while (moved == count_ && !complete_);
    suffix_ = suffix;
    place_ = place;
    count_ = count;
    complete_ = false;
  }

  // Moves on to the suffixes of the longer text: the targets of the lanes from `first` on.
  JAX_SA_FN void advance(int32_t first) {
    PerLane<int32_t> below;
    warp_.from_below(count_, below, [&](int32_t lane) { return place_[lane].target; });
    const uint32_t distinct = warp_.ballot(count_, [&](int32_t lane) {
      return lane == first || (lane > first && place_[lane].target != below[lane]);
    });
    warp_.each(count_, [&](int32_t lane) {
      suffix_[lane] = {place_[lane].target, suffix_[lane].length + 1, target_end_[lane]};
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
    warp_.set(suffix_, count_++, Suffix{kRoot, 0, 0});
    complete_ = true;
  }

  // Puts the suffixes that follow the window's into it instead.
  JAX_SA_FN void move_window() {
    const int32_t shortest = node_in(count_ - 1);
    count_ = 0;
    follow_links(shortest);
  }

  // Fills the window's free lanes with the nodes that follow `node` on its suffix link path. In a
  // run, of one token or with another period, the nodes on it are so many numbers apart; where ever
  // longer parts of a text were repeated, so many more each time. Each lane looks up the link of
  // the node that it would have then, as far as they lead to each other.
  JAX_SA_FN void follow_links(int32_t node) {
    const int32_t first = count_;
    const int32_t last_node = slot_.max_seq_len + num_clones_;
    int64_t stride = -1, bend = 0;  // to the next node; how much more to each after it
    PerLane<int32_t> link;
    complete_ = false;
    while (count_ < kWindow && !complete_) {
      const auto guess = [&](int32_t i) { return node + stride * i + bend * (i * (i - 1) / 2); };
      const int32_t right = warp_.find_first(kWindow - count_, [&](int32_t i) {
        if (guess(i) <= kRoot || guess(i) > last_node) return true;
        link[i] = slot_.nodes[guess(i)].link;
        return guess(i + 1) == kRoot || link[i] != guess(i + 1);
      });
      const int32_t begin = count_;
      warp_.each(kWindow, [&](int32_t lane) {
        if (lane >= begin) suffix_[lane].node = static_cast<int32_t>(guess(lane - begin + 1));
      });
      count_ += right;
      int32_t below = static_cast<int32_t>(guess(right));
      if (count_ < kWindow) {
        const int32_t up = warp_.broadcast(right, [&](int32_t own) { return link[own]; });
        bend = up - below - (stride + bend * (right - 1));
        stride = up - below + bend;
        warp_.only(count_, [&](int32_t lane) { suffix_[lane].node = up; });
        ++count_;
        below = up;
      }
      node = below;
      complete_ = node == kRoot;
    }
    warp_.each(count_, [&](int32_t lane) {
      if (lane >= first) suffix_[lane] = slot_.suffix(suffix_[lane].node);
    });
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
  PerLane<int32_t> target_end_;  // the first end of the place's target
};

}  // namespace jax_sa
