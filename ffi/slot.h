// The layout of a slot and the primitive operations on it, once for host and device.
//
// A slot is the online suffix automaton of one text (Blumer et al. 1985) with room for
// `max_seq_len` tokens. Everything is an int32 index within the slot, and an all-zeros slot is the
// automaton of the empty text. `jax_sa/state.py` documents the arrays and owns their sizes.
//
// Nodes: 0 is the root; 1..max_seq_len are prefix nodes (node i is the text's first i tokens, so
// its length and its first end position are i); larger ids are clones.
//
// Edges: the edge tokens[i] -> i + 1 that every prefix node i < length has is implied by the text
// and stored nowhere. The others are explicit, in one open-addressing table keyed by (source,
// token), and in a list for each source, which a clone walks to copy them.
//
// An edge is solid when it joins the longest strings of its ends: length(target) ==
// length(source) + 1. Only an edge whose target is not solid ever leads to a clone.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace jax_sa {

constexpr int32_t kRoot = 0;
constexpr int32_t kNone = 0;     // "no target": no edge leads to the root
constexpr int32_t kWindow = 32;  // repeated suffixes kept at hand, one for each lane of a warp

// Entries that a search of the edge table loads at once. Most searches end at the first; the
// longest of many is what a GPU waits for, and loads side by side cost it no more than one.
#ifdef __CUDA_ARCH__
constexpr int32_t kAhead = 4;
#else
constexpr int32_t kAhead = 1;
#endif

struct alignas(8) Suffix {
  int32_t node;
  int32_t length;
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
  int32_t source;  // node + 1; 0 marks a free entry
  int32_t token;
  int32_t target;  // 2 * node + (1 if solid)
  int32_t next;    // entry + 1 of the source's next edge; 0 ends the list
};

// Where the edge (node, token) is, or where it would go.
struct Place {
  int32_t target;  // the target node, kNone where there is no such edge
  bool solid;
  int32_t entry;  // of an explicit edge; of a free entry where there is none
  int32_t head;   // entry + 1 of the node's first explicit edge
};

JAX_SA_FN uint32_t mix(uint32_t x) {
  x ^= x >> 15;
  x *= 0xC2B2AE3Du;
  x ^= x >> 13;
  x *= 0x27D4EB2Fu;
  return x;  // the high bits are the best
}

// The hash of a slot's edges. Its odd factors come from the seed: whoever does not know it cannot
// choose nodes and tokens whose products collide.
struct Hash {
  uint32_t node_factor;
  uint32_t token_factor;

  JAX_SA_FN explicit Hash(int32_t seed) {
    const uint32_t mixed = mix(static_cast<uint32_t>(seed));
    node_factor = 0x9E3779B1u ^ mixed << 1;
    token_factor = 0x85EBCA77u ^ mix(mixed) << 1;
  }

  JAX_SA_FN uint32_t operator()(int32_t node, int32_t token) const {
    return mix(static_cast<uint32_t>(node) * node_factor ^
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
  ARRAY(Clone, clones, max_seq_len)      \
  ARRAY(int32_t, heads, 2 * max_seq_len)
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
  JAX_SA_FN int32_t recent_end(int32_t node) const {
    const int32_t recent = nodes[node].recent_end;
    const int32_t first = first_end(node);
    return recent > first ? recent : first;
  }

  // The entry where the search for an edge starts: the hash scaled to the table without a division.
  JAX_SA_FN int32_t home(Hash hash, int32_t node, int32_t token) const {
    const uint64_t scaled = uint64_t{hash(node, token)} * static_cast<uint32_t>(num_entries);
    return static_cast<int32_t>(scaled >> 32);
  }

  JAX_SA_FN int32_t entry_after(int32_t entry, int32_t steps) const {
    return entry + steps < num_entries ? entry + steps : entry + steps - num_entries;
  }

  // `length` is the text's: prefix nodes below it have an implied edge.
  JAX_SA_FN Place find(Hash hash, int32_t node, int32_t token, int32_t length) const {
    // These loads do not depend on each other: on a GPU they cost one trip to memory.
    int32_t entry = home(hash, node, token);
    Edge ahead[kAhead];
    load_ahead(entry, ahead);
    const int32_t head = heads[node];
    const bool implied = node < length && tokens[node < length ? node : 0] == token;
    if (implied) return {node + 1, true, entry, head};
    for (;; load_ahead(entry, ahead)) {
      for (const Edge& edge : ahead) {
        if (edge.source == 0) return {kNone, false, entry, head};
        if (edge.source == node + 1 && edge.token == token) {
          return {edge.target >> 1, (edge.target & 1) != 0, entry, head};
        }
        entry = entry_after(entry, 1);
      }
    }
  }

  JAX_SA_FN void load_ahead(int32_t entry, Edge (&ahead)[kAhead]) const {
    for (int32_t i = 0; i < kAhead; ++i) ahead[i] = edges[entry_after(entry, i)];
  }

  // Adds an edge at its place, first in its source's list.
  JAX_SA_FN void add(Edge edge, Place place) const {
    edge.next = place.head;
    edges[place.entry] = edge;
    heads[edge.source - 1] = place.entry + 1;
  }
};

}  // namespace jax_sa
