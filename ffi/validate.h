// Whether a slot holds the automaton of its text: it is built once more, in scratch memory, and
// compared. The same on host and device.
//
// Nodes are numbered in the order they are made, so all arrays must be equal but the edge table,
// whose entries depend on the hash and on the order of adding: there, the edges must be the same,
// each where a search finds it.
//
// Nothing of the slot is trusted on the way: an index is used only after its range was checked. The
// scratch slot has a seed of its own, so that the slot's text cannot have been chosen to collide
// under it.
#pragma once

#include <cstdint>

#include "automaton.h"
#include "rows.h"
#include "state.h"

namespace jax_sa {

// Bits of what is wrong with a slot; `jax_sa.Invalid` documents them.
constexpr int32_t kInvalidLength = 1;
constexpr int32_t kInvalidNodes = 2;
constexpr int32_t kInvalidSuffixes = 4;
constexpr int32_t kInvalidEdges = 8;

// Compares a slot with the one that was built of its text. Marks in the built one what it has
// seen of either, so that nothing counts twice.
template <class Warp>
class Comparison {
 public:
  JAX_SA_FN Comparison(Warp warp, Slot slot, Slot built)
      : warp_(warp), slot_(slot), built_(built), hash_(*slot.seed), built_hash_(*built.seed) {}

  JAX_SA_FN int32_t invalid() const {
    const bool edges = edges_differ() || edges_are_lost();
    return (nodes_differ() ? kInvalidNodes : 0) | (suffixes_differ() ? kInvalidSuffixes : 0) |
           (edges ? kInvalidEdges : 0);
  }

 private:
  static constexpr int32_t kSeen = -1;             // not a target
  static constexpr int32_t kLongestSearch = 4096;  // entries

  JAX_SA_FN int32_t num_nodes() const { return 2 * slot_.max_seq_len; }

  JAX_SA_FN bool nodes_differ() const {
    const bool nodes = warp_.any(0, num_nodes(), [&](int32_t i) {
      return slot_.nodes[i].link != built_.nodes[i].link ||
             slot_.nodes[i].recent_end != built_.nodes[i].recent_end;
    });
    const bool clones = warp_.any(0, slot_.max_seq_len, [&](int32_t i) {
      return slot_.clones[i].length != built_.clones[i].length ||
             slot_.clones[i].first_end != built_.clones[i].first_end;
    });
    return nodes || clones || *slot_.num_clones != *built_.num_clones;
  }

  JAX_SA_FN bool suffixes_differ() const {
    return warp_.any(0, kWindow, [&](int32_t i) {
      return slot_.suffixes[i].node != built_.suffixes[i].node ||
             slot_.suffixes[i].length != built_.suffixes[i].length ||
             slot_.suffixes[i].first_end != built_.suffixes[i].first_end;
    });
  }

  JAX_SA_FN bool is_taken(int32_t entry) const { return slot_.edges[entry].first_end != 0; }

  // Takes the same edge, of the same target, out of the built slot. A search for it ends there or
  // at a free entry. Its text's length is given as 0, because implied edges must not be among the
  // explicit ones.
  JAX_SA_FN bool take(Edge edge) const {
    if (edge.first_end < 1 || edge.length < 0 || edge.target == kSeen) return false;
    const Suffix from{kNone, edge.length, edge.first_end - 1};
    Edge& found = built_.edges[built_.find(built_hash_, from, edge.token, 0).entry];
    return found.first_end == edge.first_end && found.token == edge.token &&
           found.length == edge.length && warp_.exchange(found.target, kSeen) == edge.target;
  }

  JAX_SA_FN bool edges_differ() const {
    const bool others = warp_.any(0, slot_.num_entries, [&](int32_t entry) {
      return is_taken(entry) && !take(slot_.edges[entry]);
    });
    warp_.sync();
    const bool missing = warp_.any(0, slot_.num_entries, [&](int32_t entry) {
      return built_.edges[entry].first_end != 0 && built_.edges[entry].target != kSeen;
    });
    return others || missing;
  }

  // Whether a search for some edge comes upon a free entry before it, or goes on for longer than
  // any does where edges were not made to collide.
  JAX_SA_FN bool edges_are_lost() const {
    return warp_.any(0, slot_.num_entries, [&](int32_t entry) {
      const Edge edge = slot_.edges[entry];
      if (!is_taken(entry)) return false;
      int32_t left = kLongestSearch;
      const auto stops = [&](int32_t other) {
        return other == entry || !is_taken(other) || --left == 0;
      };
      const int32_t end = edge.first_end - 1;
      return slot_.first_entry(hash_, end, edge.token, edge.length, stops) != entry;
    });
  }

  Warp warp_;
  Slot slot_;
  Slot built_;
  Hash hash_;
  Hash built_hash_;
};

// Sets a slot's arrays to zeros, and its seed.
template <class Warp>
JAX_SA_FN void make_empty(const Warp& warp, const Slot& slot, int32_t seed) {
  const int64_t max_seq_len = slot.max_seq_len;
  const int64_t num_entries = slot.num_entries;
  warp.each(kWindow, [&](int32_t lane) {
#define JAX_SA_CLEAR(type, name, size) \
  for (int64_t i = lane; i < (size); i += kWindow) slot.name[i] = type{};
    JAX_SA_ARRAYS(JAX_SA_CLEAR)
#undef JAX_SA_CLEAR
  });
  warp.only(0, [&](int32_t) { *slot.seed = seed; });
}

struct Validate {
  State state;
  State scratch;
  Rows rows;         // all slots
  int32_t* invalid;  // [slots]
  int32_t scratch_seed;

  int64_t num_tokens() const { return int64_t{rows.count} * state.max_seq_len; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const Slot slot = state.slot(row);
    const RowText text({slot.tokens, slot.length, slot.max_seq_len}, 0);
    const int32_t result = text.fits() ? compare(warp, slot, text, row) : kInvalidLength;
    warp.only(0, [&](int32_t) { invalid[row] = result; });
  }

 private:
  template <class Warp>
  JAX_SA_FN int32_t compare(const Warp& warp, const Slot& slot, const RowText& text,
                            int32_t row) const {
    const Slot built = scratch.slot(row);
    make_empty(warp, built, scratch_seed);
    Automaton<Warp> automaton(warp, built);
    append_text(warp, automaton, built, text, 0, false);
    return Comparison<Warp>(warp, slot, built).invalid();
  }
};

}  // namespace jax_sa
