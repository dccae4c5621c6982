// The automaton with lanes that run in a random order, to show that no lane waits for another
// before they meet: on a GPU they do not. A C face for ctypes.
#include <algorithm>
#include <numeric>
#include <random>

#include "host_warp.h"
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

// `leaves` are the arrays of a state of one slot.
extern "C" void extend_lookup(void* const* leaves, int32_t max_seq_len, int32_t num_entries,
                              const int32_t* text, const int32_t* lengths, int32_t width,
                              int32_t* draft, int32_t max_draft, uint32_t seed) {
  std::mt19937 random(seed);
  ShuffledWarp warp;
  warp.random = &random;
  int32_t scratch[4];
  State state;
#define ASSIGN(type, name, size) state.name = static_cast<type*>(leaves[leaf_##name]);
  JAX_SA_LEAVES(ASSIGN)
#undef ASSIGN
  state.num_slots = 1;
  state.max_seq_len = max_seq_len;
  state.num_entries = num_entries;
  const ExtendLookup op{state,
                        {nullptr, 1},
                        {},
                        {text, lengths, width},
                        {nullptr, 1, max_seq_len, true, true, 1e9},
                        {draft, scratch, scratch + 1, scratch + 2, scratch + 3, max_draft}};
  op(warp, 0);
}
