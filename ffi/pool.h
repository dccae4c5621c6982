// The layout of a pool of texts and the primitive operations on it, once for host and device.
//
// A group of a pool is a ring of tokens, in which texts lie one after the other, each ended by a
// separator, and an index of their n-grams, that leads to where an n-gram occurred last.
// `jax_sa/pool.py` documents the arrays and owns their sizes.
//
// A position counts the tokens that were put into the ring before, so it only grows: the token at
// position p is ring[p % capacity] as long as p >= head - capacity. An entry of the index is the
// end position of an n-gram, that of the token after it. Whatever it holds, nothing is read by it
// but tokens that stand in the ring, and nothing is believed that they do not confirm.
#pragma once

#include <cstdint>

#include "slot.h"

namespace jax_sa {

constexpr int32_t kSeparator = INT32_MIN;
constexpr int32_t kNumGrams = 6;      // lengths of n-grams that are indexed
constexpr int32_t kLongestGram = 16;  // tokens
constexpr int32_t kBranches = 2;      // entries of an n-gram, by the token after it

// The lengths of n-grams, ascending; `jax_sa.NGRAM_LENGTHS` documents them.
JAX_SA_FN int32_t gram_length(int32_t gram) {
  return gram < 3 ? gram + 1 : gram == 3 ? 5 : gram == 4 ? 8 : kLongestGram;
}

// Entries of one length of n-grams: half as many as tokens, rounded up to whole n-grams.
JAX_SA_SHARED_FN int32_t entries_per_gram(int32_t capacity) {
  return (capacity + 2 * kBranches - 1) / (2 * kBranches) * kBranches;
}

// What a token adds to the hash of an n-gram, which is read backwards.
JAX_SA_FN uint32_t gram_term(int32_t token) {
  return mix(static_cast<uint32_t>(token) * 0x85EBCA77u + 0x27D4EB2Fu);
}
JAX_SA_FN uint32_t extend_gram(uint32_t hash, uint32_t term) { return hash * 0x9E3779B1u + term; }

// The one of an n-gram's entries that is for occurrences with this token after them.
JAX_SA_FN int32_t branch_of(int32_t next) { return static_cast<int32_t>(gram_term(next) >> 31); }

// Raises an entry; others may raise it at the same time.
JAX_SA_FN void raise_to(int32_t& entry, int32_t value) {
#ifdef __CUDA_ARCH__
  atomicMax(&entry, value);
#else
  int32_t old = __atomic_load_n(&entry, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(&entry, &old, value, true, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
#endif
}

struct alignas(8) Entries {
  int32_t ends[kBranches];
};

// A reference to one group: passed by value, owns nothing.
struct PoolGroup {
  int32_t* ring;   // [capacity]
  int32_t* table;  // [kNumGrams, entries_per_gram(capacity)]
  int32_t capacity;
  int32_t head;  // tokens that were put into the ring, less a multiple of capacity
  int32_t head_index;

  JAX_SA_FN int32_t oldest() const { return head > capacity ? head - capacity : 0; }

  // Of an entry: whether a token before it and the one at it may stand in the ring.
  JAX_SA_FN bool is_alive(int32_t end) const { return end > oldest() && end < head; }

  // The place of a position in [head - capacity, head), without a division.
  JAX_SA_FN int32_t index(int32_t position) const {
    const int32_t place = head_index - (head - position);
    return place < 0 ? place + capacity : place;
  }

  // The token `steps` before or after an entry that is alive; the separator beyond what stands.
  JAX_SA_FN int32_t token_before(int32_t end, int32_t steps) const {
    return steps <= end - oldest() ? ring[index(end - steps)] : kSeparator;
  }
  JAX_SA_FN int32_t token_after(int32_t end, int32_t steps) const {
    return steps < head - end ? ring[index(end + steps)] : kSeparator;
  }

  JAX_SA_FN Entries& entries(int32_t gram, uint32_t hash) const {
    const int32_t size = entries_per_gram(capacity);
    const auto pairs = static_cast<uint32_t>(size / kBranches);
    const auto pair = static_cast<uint32_t>(uint64_t{mix(hash)} * pairs >> 32);
    int32_t* const first = table + int64_t{gram} * size + int64_t{pair} * kBranches;
    return *reinterpret_cast<Entries*>(first);
  }
};

// All groups. A pool of none is no pool.
struct Pool {
  int32_t* ring;    // [groups, capacity]
  int32_t* head;    // [groups]
  int32_t* status;  // [groups]; not there where the pool is only read
  int32_t* table;   // [groups, kNumGrams, entries_per_gram(capacity)]
  int32_t num_groups;
  int32_t capacity;

  JAX_SA_FN bool is_group(int32_t i) const { return i >= 0 && i < num_groups; }

  JAX_SA_FN PoolGroup group(int32_t i) const {
    const int32_t positions = head[i] > 0 ? head[i] : 0;
    return {ring + int64_t{i} * capacity, table + table_size() * i, capacity, positions,
            positions % capacity};
  }

  // Entries of a group.
  JAX_SA_SHARED_FN int64_t table_size() const {
    return int64_t{kNumGrams} * entries_per_gram(capacity);
  }
};

// The groups that rows may see.
struct PoolView {
  Pool pool;
  const int32_t* groups;  // [rows], or null where all see group 0

  // An empty group where the row sees none.
  JAX_SA_FN PoolGroup of_row(int32_t row) const {
    if (pool.num_groups == 0) return {};
    const int32_t group = groups == nullptr ? 0 : groups[row];
    return pool.is_group(group) ? pool.group(group) : PoolGroup{};
  }
};

}  // namespace jax_sa
