// Long rows built in parallel, with elements in a random order in every phase, to show that none
// waits for another before they meet: on a GPU they do not. A C face for ctypes.
#include <algorithm>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "host_warp.h"
#include "parallel_build.h"
#include "rows.h"

namespace {

using namespace jax_sa;

struct ShuffledGrid {
  std::mt19937* random;

  template <class Body>
  void each(int32_t count, Body body) const {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), *random);
    for (int32_t i : order) body(i);
  }

  template <class Predicate>
  bool any(int32_t count, Predicate predicate) const {
    bool found = false;
    for (int32_t i = 0; i < count; ++i) found |= predicate(i);
    return found;
  }

  template <class Digit, class Move>
  void sort_by_digit(int32_t count, Digit digit, Move move) const {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return digit(a) < digit(b); });
    std::vector<int32_t> place(count);
    for (int32_t i = 0; i < count; ++i) place[order[i]] = i;
    each(count, [&](int32_t i) { move(i, place[i]); });
  }

  template <class Combine, class Value, class Store>
  void scan(int32_t count, int32_t* values, Combine combine, Value value, Store store) const {
    each(count, [&](int32_t i) { values[i] = value(i); });
    std::inclusive_scan(values, values + count, values, combine);
    each(count, [&](int32_t i) { store(i, values[i]); });
  }

  void raise(int32_t& place, int32_t value) const { place = std::max(place, value); }
  void lower(int32_t& place, int32_t value) const { place = std::min(place, value); }
  int32_t compare_exchange(int32_t& place, int32_t expected, int32_t value) const {
    return place == expected ? std::exchange(place, value) : place;
  }
};

}  // namespace

// Returns how many rows were built.
extern "C" int32_t extend(void* const* leaves, int32_t num_slots, int32_t max_seq_len,
                          int32_t index_words, const int32_t* text, const int32_t* lengths,
                          const int32_t* slots, int32_t num_rows, int32_t width, int32_t* lines,
                          int32_t capacity, int32_t* header, int32_t build_cost,
                          int32_t elements_per_token, uint32_t seed) {
  std::mt19937 random(seed);
  State state;
  state.numbers = static_cast<int32_t*>(leaves[0]);
  state.tokens = static_cast<int32_t*>(leaves[1]);
  state.index = static_cast<int32_t*>(leaves[2]);
  state.num_slots = num_slots;
  state.max_seq_len = max_seq_len;
  state.index_words = index_words;
  state.num_entries = num_entries_in(index_words, max_seq_len);
  std::vector<int32_t> left(num_rows);
  const Prefill op{state,       {slots, num_rows},         {text, lengths, width},
                   left.data(), {lines, header, capacity}, {build_cost, elements_per_token}};
  const ShuffledGrid grid{&random};
  const bool builds = op.plan(grid);
  if (builds) build_planned(grid, op);
  const Extend rest{state, op.rows, {text, left.data(), width}};
  for (int32_t row = 0; row < num_rows; ++row) rest(HostWarp{}, row);
  return builds ? op.shared()->num_built : 0;
}
