// The layout of a slot and the primitive operations on it, once for host and device.
//
// A slot is the online suffix automaton of one text (Blumer et al. 1985) with room for
// `max_seq_len` tokens. Everything is an int32 index within the slot, and an all-zeros slot is the
// automaton of the empty text. `jax_sa/state.py` documents the arrays and owns their sizes.
//
// Nodes: 0 is the root; 1..max_seq_len are prefix nodes (node i is the text's first i tokens, so
// its length and its first end position are i); larger ids are clones.
//
// Edges: nodes of the same first end are suffixes of one another, and the longest of them is the
// prefix node of that end. What a longer one is followed by, a shorter one is too, and mostly they
// then lead to the same node. So an edge is stored for a first end and for the longest of its nodes
// that has it; the shorter ones have the same edge, down to where another begins. A clone, which
// begins with the edges of its original, so needs no copy of them. The edge tokens[e] -> e + 1 of
// prefix node e < length is implied by the text and stored nowhere. The others are in one
// open-addressing table keyed by (first end, token).
//
// An edge is solid when it joins the longest strings of its ends: length(target) ==
// length(source) + 1. Only an edge that is not solid ever leads to a clone.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace jax_sa {

constexpr int32_t kRoot = 0;
constexpr int32_t kNone = 0;     // "no target": no edge leads to the root
constexpr int32_t kWindow = 32;  // repeated suffixes kept at hand, one for each lane of a warp

// Entries that a search of the edge table loads at once, at first and from then on. Most searches
// end at the first; the longest of many is what a GPU waits for, and loads side by side cost it no
// more than one.
#ifdef __CUDA_ARCH__
constexpr int32_t kAhead = 4, kFurther = 16;
#else
constexpr int32_t kAhead = 1, kFurther = 1;
#endif

struct Suffix {
  int32_t node;
  int32_t length;
  int32_t first_end;
};

struct alignas(8) Node {
  int32_t link;        // the suffix link
  int32_t recent_end;  // most recent end position before the text's own end; 0: only the first
};

struct alignas(8) Clone {
  int32_t length;
  int32_t first_end;
};

struct alignas(16) Edge {
  int32_t first_end;  // of the sources, + 1; 0 marks a free entry
  int32_t token;
  int32_t target;  // 2 * node + (1 if solid from the longest source)
  int32_t length;  // of the longest source
};

// Where the edge of a node and a token leads.
struct Place {
  int32_t target;  // the target node, kNone where there is no such edge
  bool solid;
  int32_t entry;  // where an edge of this node and of shorter ones is to be written
};

JAX_SA_FN uint32_t mix(uint32_t x) {
  x ^= x >> 15;
  x *= 0xC2B2AE3Du;
  x ^= x >> 13;
  x *= 0x27D4EB2Fu;
  return x;  // the high bits are the best
}

// The hash of a slot's edges. Its odd factors come from the seed: whoever does not know it cannot
// choose ends and tokens whose products collide.
struct Hash {
  uint32_t end_factor;
  uint32_t token_factor;

  JAX_SA_FN explicit Hash(int32_t seed) {
    const uint32_t mixed = mix(static_cast<uint32_t>(seed));
    end_factor = 0x9E3779B1u ^ mixed << 1;
    token_factor = 0x85EBCA77u ^ mix(mixed) << 1;
  }

  JAX_SA_FN uint32_t operator()(int32_t first_end, int32_t token) const {
    return mix(static_cast<uint32_t>(first_end) * end_factor ^
               static_cast<uint32_t>(token) * token_factor);
  }
};

// The arrays of a slot: their elements' type, their name, and how many elements a slot has. Those
// of `jax_sa.State.numbers` in their order, the text, and those of `jax_sa.State.index` in theirs.
#define JAX_SA_NUMBERS(ARRAY)   \
  ARRAY(int32_t, length, 1)     \
  ARRAY(int32_t, status, 1)     \
  ARRAY(int32_t, num_clones, 1) \
  ARRAY(int32_t, seed, 1)
#define JAX_SA_INDEX(ARRAY)       \
  ARRAY(Edge, edges, num_entries) \
  JAX_SA_INDEX_BEHIND_EDGES(ARRAY)
#define JAX_SA_INDEX_BEHIND_EDGES(ARRAY) \
  ARRAY(Suffix, suffixes, kWindow)       \
  ARRAY(Node, nodes, 2 * max_seq_len)    \
  ARRAY(Clone, clones, max_seq_len)
#define JAX_SA_ARRAYS(ARRAY)          \
  JAX_SA_NUMBERS(ARRAY)               \
  ARRAY(int32_t, tokens, max_seq_len) \
  JAX_SA_INDEX(ARRAY)

enum Number : int32_t {
#define JAX_SA_NUMBER(type, name, size) number_##name,
  JAX_SA_NUMBERS(JAX_SA_NUMBER)
#undef JAX_SA_NUMBER
      kNumNumbers
};

// A reference to one slot: passed by value, owns nothing.
struct Slot {
#define JAX_SA_POINTER(type, name, size) type* name;
  JAX_SA_ARRAYS(JAX_SA_POINTER)
#undef JAX_SA_POINTER
  int32_t max_seq_len;
  int32_t num_entries;

  JAX_SA_FN bool is_prefix(int32_t node) const { return node <= max_seq_len; }
  JAX_SA_FN Clone& clone(int32_t node) const { return clones[node - max_seq_len - 1]; }

  JAX_SA_FN int32_t node_length(int32_t node) const {
    return is_prefix(node) ? node : clone(node).length;
  }
  JAX_SA_FN int32_t first_end(int32_t node) const {
    return is_prefix(node) ? node : clone(node).first_end;
  }
  JAX_SA_FN int32_t recent_end(int32_t node, int32_t first_end) const {
    const int32_t recent = nodes[node].recent_end;
    return recent > first_end ? recent : first_end;
  }

  JAX_SA_FN Suffix suffix(int32_t node) const {
    if (is_prefix(node)) return {node, node, node};
    const Clone known = clone(node);
    return {node, known.length, known.first_end};
  }

  // The entry where the search for an edge starts: the hash scaled to the table without a division.
  JAX_SA_FN int32_t home(Hash hash, int32_t first_end, int32_t token) const {
    const uint64_t scaled = uint64_t{hash(first_end, token)} * static_cast<uint32_t>(num_entries);
    return static_cast<int32_t>(scaled >> 32);
  }

  JAX_SA_FN int32_t entry_after(int32_t entry, int32_t steps) const {
    return entry + steps < num_entries ? entry + steps : entry + steps - num_entries;
  }

  // The edge of a node: of those of its first end that reach down to it, the one with the shortest
  // longest source. `text_length` says which prefix nodes have an implied edge.
  JAX_SA_FN Place find(Hash hash, Suffix from, int32_t token, int32_t text_length) const {
    // These loads do not depend on each other: on a GPU they cost one trip to memory.
    Search search{home(hash, from.first_end, token), INT32_MAX, kNone};
    Edge ahead[kAhead];
    load_ahead(search.entry, ahead);
    const int32_t end = from.first_end;
    const bool implied = end < text_length && tokens[end < text_length ? end : 0] == token;
    if (implied) search.target = (end + 1) << 1;
    if (implied && from.length == end) return {end + 1, true, search.entry};
    if (!ends_in(ahead, from, token, search)) {
      Edge further[kFurther];
      do {
        load_ahead(search.entry, further);
      } while (!ends_in(further, from, token, search));
    }
    const bool solid = search.shortest == from.length && (search.target & 1) != 0;
    return {search.target >> 1, solid, search.entry};
  }

  // The first entry from there on that is free, or an edge of that end and token.
  JAX_SA_FN int32_t skip_others(int32_t entry, int32_t first_end, int32_t token) const {
    while (edges[entry].first_end != 0 &&
           (edges[entry].first_end != first_end + 1 || edges[entry].token != token)) {
      entry = entry_after(entry, 1);
    }
    return entry;
  }

 private:
  // What a search has found so far.
  struct Search {
    int32_t entry;     // the next one; at the end, the one where the search ended
    int32_t shortest;  // longest source
    int32_t target;    // of its edge, as the edge has it
  };

  // Goes on with entries side by side. An edge of just this node or a free entry ends the search:
  // no edge of this end and token is behind one. The entries are looked at without a branch for
  // each, because the lanes of a warp wait at branches for each other.
  template <int32_t count>
  JAX_SA_FN bool ends_in(const Edge (&ahead)[count], Suffix from, int32_t token,
                         Search& search) const {
    int32_t end = count;
    JAX_SA_UNROLL
    for (int32_t i = count - 1; i >= 0; --i) {
      const Edge edge = ahead[i];
      const bool holds = edge.first_end == from.first_end + 1 && edge.token == token &&
                         edge.length >= from.length && edge.length < search.shortest;
      if (holds) {
        search.shortest = edge.length;
        search.target = edge.target;
      }
      if (edge.first_end == 0 || (holds && edge.length == from.length)) end = i;
    }
    if (end < count) {
      search.entry = entry_after(search.entry, end);
      return true;
    }
    search.entry = entry_after(search.entry, count);
    return false;
  }

  template <int32_t count>
  JAX_SA_FN void load_ahead(int32_t entry, Edge (&ahead)[count]) const {
    JAX_SA_UNROLL
    for (int32_t i = 0; i < count; ++i) ahead[i] = edges[entry_after(entry, i)];
  }
};

}  // namespace jax_sa
