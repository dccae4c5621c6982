// The automaton with lanes that run in a random order, to show that no lane waits for another
// before they meet: on a GPU they do not. A C face for ctypes.
#include <algorithm>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "draft_tree.h"
#include "host_warp.h"
#include "pool_insert.h"
#include "rows.h"

namespace {

using namespace jax_sa;

struct ShuffledWarp : HostWarp {
  std::mt19937* random;

  template <class Body>
  void each(int32_t count, Body body) const {
    int32_t order[kWindow];
    std::iota(order, order + count, 0);
    std::shuffle(order, order + count, *random);
    for (int32_t i = 0; i < count; ++i) body(order[i]);
  }
};

}  // namespace

namespace {

State state_of(void* const* leaves, int32_t max_seq_len, int32_t index_words) {
  State state;
  state.numbers = static_cast<int32_t*>(leaves[0]);
  state.tokens = static_cast<int32_t*>(leaves[1]);
  state.index = static_cast<int32_t*>(leaves[2]);
  state.num_slots = 1;
  state.max_seq_len = max_seq_len;
  state.index_words = index_words;
  state.num_entries = num_entries_in(index_words, max_seq_len);
  return state;
}

Pool pool_of(int32_t* const* leaves, int32_t num_groups, int32_t capacity) {
  return {leaves[0], leaves[1], leaves[2], leaves[3], num_groups, capacity};
}

// Runs an op that takes a text and drafts, on one slot.
template <class Op>
void run_draft(void* const* leaves, int32_t max_seq_len, int32_t index_words, int32_t* const* pool,
               int32_t capacity, const int32_t* text, const int32_t* lengths, int32_t width,
               int32_t* draft, int32_t max_draft, uint32_t seed) {
  std::mt19937 random(seed);
  ShuffledWarp warp;
  warp.random = &random;
  const Op op{state_of(leaves, max_seq_len, index_words), {nullptr, 1},
              {pool_of(pool, 1, capacity), nullptr},      {text, lengths, width},
              {nullptr, 1, max_seq_len, true, true, 1e9}, {draft, draft + max_draft, max_draft}};
  op(warp, 0);
}

}  // namespace

// `leaves` are the arrays of a state of one slot, `pool` those of a pool of one group. `draft` has
// room for `max_draft` tokens, and then for its length, match length, match end and source.
extern "C" void extend_lookup(void* const* leaves, int32_t max_seq_len, int32_t index_words,
                              int32_t* const* pool, int32_t capacity, const int32_t* text,
                              const int32_t* lengths, int32_t width, int32_t* draft,
                              int32_t max_draft, uint32_t seed) {
  run_draft<ExtendLookup>(leaves, max_seq_len, index_words, pool, capacity, text, lengths, width,
                          draft, max_draft, seed);
}

// The draft that follows `text`, with the same arguments.
extern "C" void lookup_after(void* const* leaves, int32_t max_seq_len, int32_t index_words,
                             int32_t* const* pool, int32_t capacity, const int32_t* text,
                             const int32_t* lengths, int32_t width, int32_t* draft,
                             int32_t max_draft, uint32_t seed) {
  run_draft<LookupAfter>(leaves, max_seq_len, index_words, pool, capacity, text, lengths, width,
                         draft, max_draft, seed);
}

// `followers` are those of one group; there are none where `vocabulary` is 0. `tree` has room for
// five numbers of each node, and for their count.
extern "C" void lookup_tree(void* const* leaves, int32_t max_seq_len, int32_t index_words,
                            int32_t* const* pool, int32_t capacity, int32_t* followers,
                            int32_t vocabulary, int32_t* tree, int32_t max_nodes, uint32_t seed) {
  std::mt19937 random(seed);
  ShuffledWarp warp;
  warp.random = &random;
  const auto field = [&](int32_t i) { return tree + int64_t{i} * max_nodes; };
  const LookupTree op{state_of(leaves, max_seq_len, index_words),
                      {nullptr, 1},
                      {pool_of(pool, 1, capacity), nullptr},
                      {nullptr, 0, 1},
                      {{{followers, 1, vocabulary}, nullptr}, make_growth()},
                      {nullptr, 1, max_seq_len, true, true, 1e9},
                      {field(0), field(1), field(2), field(3), field(4), field(5), max_nodes},
                      max_nodes};
  op(warp, 0);
}

// The rows' tokens are written in any order too.
extern "C" void pool_insert(int32_t* const* pool, int32_t num_groups, int32_t capacity,
                            const int32_t* tokens, const int32_t* lengths, const int32_t* groups,
                            int32_t rows, int32_t width, uint32_t seed) {
  std::mt19937 random(seed);
  ShuffledWarp warp;
  warp.random = &random;
  std::vector<int32_t> behind(rows), shifts(num_groups);
  const PoolInsert<BlockTexts> op{pool_of(pool, num_groups, capacity),
                                  {{tokens, lengths, width}},
                                  groups,
                                  rows,
                                  width,
                                  behind.data(),
                                  shifts.data()};
  for (int32_t group = 0; group < num_groups; ++group) {
    op.place(warp, group);
    int32_t* const entries = op.pool.table + op.pool.table_size() * group;
    for (int64_t i = 0; i < op.pool.table_size(); ++i) op.rebase(entries[i], shifts[group]);
  }
  std::vector<std::pair<int32_t, int32_t>> places;
  for (int32_t row = 0; row < rows; ++row) {
    if (!op.writes(row)) continue;
    for (int32_t i = 0; i <= op.texts(row).length; ++i) places.emplace_back(row, i);
  }
  std::shuffle(places.begin(), places.end(), random);
  for (const auto& [row, i] : places) op.write(row, op.texts(row), i);
}
