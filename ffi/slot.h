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
// open-addressing table keyed by (first end, token), of blocks of kBlock entries.
//
// Of one first end and token there can be many edges, for ever longer nodes, and all must not be
// gone through to find that of one node. Where a block is full, an edge goes to another, which is
// for a range of lengths only, half as wide each time. So a search passes a block for each range
// that its length is in, and some for those beside them.
//
// An edge is solid when it joins the longest strings of its ends: length(target) ==
// length(source) + 1. Only an edge that is not solid ever leads to a clone.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace jax_sa {

constexpr int32_t kRoot = 0;
constexpr int32_t kNone = 0;     // "no target": no edge leads to the root
constexpr int32_t kWindow = 32;  // repeated suffixes kept at hand, one for each lane of a warp

constexpr int32_t kBlock = 8;  // entries of the edge table, a power of two

// Entries of a block that a search loads at once. Most searches end at the first; the longest of
// many is what a GPU waits for, and loads side by side cost it no more than one.
#ifdef __CUDA_ARCH__
constexpr int32_t kAhead = kBlock;
#else
constexpr int32_t kAhead = 1;
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
    return static_cast<uint32_t>(first_end) * end_factor ^
           static_cast<uint32_t>(token) * token_factor;  // to be mixed
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

  // The edge of a node: of those of its first end that reach down to it, the one with the shortest
  // longest source. `text_length` says which prefix nodes have an implied edge.
  JAX_SA_FN Place find(Hash hash, Suffix from, int32_t token, int32_t text_length) const {
    // These loads do not depend on each other: on a GPU they cost one trip to memory.
    const uint32_t key = hash(from.first_end, token);
    const int32_t start = home(key, 0, kAnyLength);
    Edge ahead[kAhead];
    load_ahead(start, 0, ahead);
    const int32_t end = from.first_end;
    const bool implied = end < text_length && tokens[end < text_length ? end : 0] == token;
    if (implied && from.length == end) return {end + 1, true, start};
    Search search{start, INT32_MAX, kNone};
    if (implied) search = {start, end, (end + 1) << 1};
    if (!ends_in(start, ahead, from, token, search)) search_ranges(key, from, token, search);
    const bool solid = search.shortest == from.length && (search.target & 1) != 0;
    return {search.target >> 1, solid, search.entry};
  }

  // The first entry for which `stops` holds, of those where an edge may be, in their order.
  template <class Stops>
  JAX_SA_FN int32_t first_entry(Hash hash, int32_t first_end, int32_t token, int32_t length,
                                Stops stops) const {
    const uint32_t key = hash(first_end, token);
    for (int32_t shift = kAnyLength;; shift = narrower(shift)) {
      const int32_t start = home(key, code(length), shift);
      for (int32_t i = 0; i < kBlock; ++i) {
        if (stops(in_block(start, i))) return in_block(start, i);
      }
    }
  }

 private:
  // What a search has found so far.
  struct Search {
    int32_t entry;     // at the end, the one where an edge of this node is or is to be
    int32_t shortest;  // longest source
    int32_t target;    // of its edge, as the edge has it
  };

  // Shifts of codes: a range is all lengths whose codes have the same bits from there on.
  static constexpr int32_t kAnyLength = 31;
  static constexpr int32_t kWidestRange = 25;

  // The next block behind a full one. The second is for any length too. Behind that of a single
  // code are those that follow it in the table.
  JAX_SA_FN static int32_t narrower(int32_t shift) {
    return shift > kWidestRange ? shift - 3 : shift - 1;
  }

  // Lengths as floats, whose bits are in the order of the numbers: ranges of them, unlike those of
  // the lengths themselves, are as narrow for short lengths as they are many.
  JAX_SA_FN static uint32_t code(int32_t length) {
    const float number = static_cast<float>(static_cast<uint32_t>(length) + 1);
    uint32_t bits;
    memcpy(&bits, &number, sizeof(bits));
    return bits - 0x3F800000u;  // that of 1
  }

  // The entry where the search of a block starts: the hash scaled to the table without a division.
  JAX_SA_FN int32_t home(uint32_t key, uint32_t code, int32_t shift) const {
    const int32_t bits = shift > 0 ? shift : 0;
    const uint32_t range = (code >> bits) + (1u << (kAnyLength - bits)) - 1;  // 0 is any length
    const auto entries = static_cast<uint32_t>(num_entries & -kBlock);
    const uint64_t scaled = uint64_t{mix(key ^ range * 0x9E3779B1u)} * entries;
    const auto entry = static_cast<uint32_t>(scaled >> 32);
    if (shift >= 0) return static_cast<int32_t>(entry);
    return static_cast<int32_t>((entry + uint32_t{kBlock} * -shift) % entries);
  }

  // Entry i of the block that an entry is in, from that entry on and round the block's end.
  JAX_SA_FN static int32_t in_block(int32_t start, int32_t i) {
    return (start & -kBlock) | ((start + i) & (kBlock - 1));
  }

  JAX_SA_FN void load_ahead(int32_t start, int32_t first, Edge (&ahead)[kAhead]) const {
    JAX_SA_UNROLL
    for (int32_t i = 0; i < kAhead; ++i) ahead[i] = edges[in_block(start, first + i)];
  }

  // Searches a block, whose first entries are loaded. An edge of just this node or a free entry
  // ends the search: no edge of this end, token and length is behind one. The entries are looked at
  // without a branch for each, because the lanes of a warp wait at branches for each other.
  JAX_SA_FN bool ends_in(int32_t start, Edge (&ahead)[kAhead], Suffix from, int32_t token,
                         Search& search) const {
    for (int32_t first = 0;;) {
      int32_t end = kAhead;
      JAX_SA_UNROLL
      for (int32_t i = kAhead - 1; i >= 0; --i) {
        const Edge edge = ahead[i];
        const bool holds = edge.first_end == from.first_end + 1 && edge.token == token &&
                           edge.length >= from.length && edge.length < search.shortest;
        if (holds) {
          search.shortest = edge.length;
          search.target = edge.target;
        }
        if (edge.first_end == 0 || (holds && edge.length == from.length)) end = i;
      }
      if (end < kAhead) {
        search.entry = in_block(start, first + end);
        return true;
      }
      first += kAhead;
      if (first == kBlock) return false;
      load_ahead(start, first, ahead);
    }
  }

  // The rest of a search whose first block is full: ever narrower ranges with the length in them,
  // to a block that is not full, then the ranges of greater lengths beside these, as long as they
  // may have an edge that reaches down further.
  JAX_SA_FN void search_ranges(uint32_t key, Suffix from, int32_t token, Search& search) const {
    constexpr int32_t kNoEntry = -1;
    int32_t own_entry = kNoEntry;
    uint32_t first = code(from.length);
    for (int32_t shift = narrower(kAnyLength);;) {
      const int32_t start = home(key, first, shift);
      Edge ahead[kAhead];
      load_ahead(start, 0, ahead);
      if (!ends_in(start, ahead, from, token, search)) {
        shift = narrower(shift);
        continue;
      }
      if (own_entry == kNoEntry) own_entry = search.entry;
      if (shift > kWidestRange || search.shortest == from.length) break;
      if (shift < 0) shift = 0;
      first = ((first >> shift) + 1) << shift;
      const int32_t longest = search.shortest < from.first_end ? search.shortest : from.first_end;
      if (first > code(longest)) break;
      while (shift < kWidestRange && (first >> shift & 1) == 0) ++shift;
    }
    search.entry = own_entry;
  }
};

}  // namespace jax_sa
