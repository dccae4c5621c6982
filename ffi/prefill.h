// Long rows of one call: which of them are built whole, in parallel, and the room for that.
//
// Appending is serial, a token after the other, but a row has a warp and all rows go on together.
// Building the automaton of a whole text takes all of the device, and no order of time. Both leave
// the same automaton. What is cheaper depends on lengths that only the device knows, so it decides.
#pragma once

#include <cstdint>

#include "rows.h"

namespace jax_sa {

// What a build costs, in tokens appended one after the other in the time that it takes.
struct BuildCost {
  int32_t tokens = 200;              // of any build
  int32_t elements_per_token = 350;  // and one more for each so many elements
};

// A row whose text is built whole. Of a text of n tokens there are n + 1 elements: its prefixes,
// the empty one first.
struct Built {
  int32_t row;
  int32_t slot;
  int32_t begin;       // its first element, among those of its wave
  int32_t length;      // tokens of the text, with those of the row
  int32_t old_length;  // without them
};

// The arrays that a build works with. Rows that do not fit together are built in waves.
struct Workspace {
  int32_t* lines;    // [lines_for(max_seq_len), capacity]
  int32_t* header;   // [kHeaderWords + kRowWords * rows]
  int32_t capacity;  // elements of a wave at most
};

// Lines of a workspace beside those of ranks, of which there is one for each power of two up to
// the elements of the longest text.
enum Line : int32_t {
  line_order,
  line_spare,
  line_text,
  line_common,
  line_interval,
  line_lowest,
  line_first,
  line_created,
  line_clones,
  line_node,
  line_trees,
  kNumLines
};

// Lines that texts of so many tokens need.
inline int32_t lines_for(int32_t max_seq_len) {
  int32_t bits = 0;
  while (max_seq_len >> bits != 0) ++bits;
  return kNumLines + bits + 1;
}

constexpr int32_t kMaxBlocks = 256;
constexpr int32_t kDigitBits = 8;
constexpr int32_t kDigits = 1 << kDigitBits;

// The header: words that a wave shares, counts of every block, and for each row how many tokens
// it appends, a cost, and a Built.
constexpr int32_t kSharedWords = 64;
constexpr int32_t kHeaderWords = kSharedWords + kMaxBlocks * (kDigits + 1);
constexpr int32_t kRowWords = 2 + static_cast<int32_t>(sizeof(Built) / sizeof(int32_t));

struct Shared {
  // The last round that another follows, of even and of odd rounds.
  int32_t unfinished[2];
  int32_t unfinished_ancestors[2];
  int32_t token_bits;  // that tell the wave's tokens apart
  int32_t num_built;   // rows
};
static_assert(sizeof(Shared) <= kSharedWords * sizeof(int32_t), "the header has room for it");

struct Prefill {
  State state;
  Rows rows;
  Text text;
  // [rows] What an op is to append after this, as lengths of the same rows: a row that was built
  // has nothing left, and one more token than there is room for if it lost some.
  int32_t* left;
  Workspace workspace;
  BuildCost cost;

  JAX_SA_SHARED_FN Shared* shared() const { return reinterpret_cast<Shared*>(workspace.header); }
  JAX_SA_SHARED_FN int32_t* block_counts() const { return workspace.header + kSharedWords; }
  JAX_SA_SHARED_FN int32_t* row_words(int32_t i) const {
    return workspace.header + kHeaderWords + i * rows.count;
  }
  // Of each row: tokens to append, and the cost of building all rows of that many tokens.
  JAX_SA_SHARED_FN int32_t* counts() const { return row_words(0); }
  JAX_SA_SHARED_FN int32_t* costs() const { return row_words(1); }
  // [num_built], in the order of rows; a wave begins where `begin` is 0.
  JAX_SA_SHARED_FN Built* built() const { return reinterpret_cast<Built*>(row_words(2)); }

  // Decides which rows are built: those of at least so many tokens that the whole costs least.
  // Returns whether there are any.
  template <class Grid>
  JAX_SA_FN bool plan(const Grid& grid) const {
    const bool may_pay =
        grid.any(rows.count, [&](int32_t row) { return text.lengths[row] > cost.tokens; });
    grid.each(rows.count, [&](int32_t row) {
      left[row] = text.lengths[row];
      if (may_pay) counts()[row] = count_of(row);
    });
    if (!may_pay) return false;
    grid.each(rows.count, [&](int32_t row) { costs()[row] = cost_from(counts()[row]); });
    grid.each(1, [&](int32_t) {
      shared()->token_bits = 0;
      shared()->num_built = choose();
    });
    return shared()->num_built > 0;
  }

 private:
  // The claim of a row, by one thread.
  struct OneLane {
    template <class Predicate>
    JAX_SA_FN bool any(int32_t begin, int32_t end, Predicate predicate) const {
      for (int32_t i = begin; i < end; ++i) {
        if (predicate(i)) return true;
      }
      return false;
    }
  };

  JAX_SA_FN int32_t old_length(int32_t slot) const { return *state.slot(slot).length; }

  // Tokens that the row will append.
  JAX_SA_FN int32_t count_of(int32_t row) const {
    const Claim claimed = claim(OneLane{}, rows, row, state.num_slots);
    const int32_t length = text.lengths[row];
    if (claimed.slot < 0 || length < 0 || length > text.width) return 0;
    const int32_t room = state.max_seq_len - old_length(claimed.slot);
    return length < room ? length : room;
  }

  JAX_SA_FN int64_t elements_of(int32_t row) const {
    return int64_t{old_length(named_slot(rows, row, state.num_slots))} + counts()[row] + 1;
  }

  JAX_SA_FN bool may_be_built(int32_t row, int32_t least) const {
    return counts()[row] > 0 && counts()[row] >= least && elements_of(row) <= workspace.capacity;
  }

  // The cost of the call, in tokens, if rows of at least so many tokens are built.
  JAX_SA_FN int32_t cost_from(int32_t least) const {
    int64_t elements = 0;
    int32_t appended = 0;  // one after the other
    for (int32_t row = 0; row < rows.count; ++row) {
      const int32_t count = counts()[row];
      if (may_be_built(row, least)) {
        elements += elements_of(row);
      } else if (count > appended) {
        appended = count;
      }
    }
    const int64_t build = elements > 0 ? cost.tokens + elements / cost.elements_per_token : 0;
    const int64_t tokens = build + appended;
    return tokens < INT32_MAX ? static_cast<int32_t>(tokens) : INT32_MAX;
  }

  // Lists the rows to build; returns how many.
  JAX_SA_FN int32_t choose() const {
    int32_t cheapest = 0;  // where nothing is built
    int32_t least = 0;
    for (int32_t row = 0; row < rows.count; ++row) {
      if (counts()[row] > cheapest) cheapest = counts()[row];
    }
    for (int32_t row = 0; row < rows.count; ++row) {
      if (counts()[row] == 0 || costs()[row] >= cheapest) continue;
      cheapest = costs()[row];
      least = counts()[row];
    }
    if (least == 0) return 0;
    int32_t num_built = 0;
    int32_t begin = 0;
    for (int32_t row = 0; row < rows.count; ++row) {
      if (!may_be_built(row, least)) continue;
      const auto elements = static_cast<int32_t>(elements_of(row));
      const int32_t slot = named_slot(rows, row, state.num_slots);
      if (begin + int64_t{elements} > workspace.capacity) begin = 0;
      built()[num_built++] = {row, slot, begin, elements - 1, old_length(slot)};
      begin += elements;
      left[row] = text.lengths[row] > counts()[row] ? 1 : 0;
    }
    return num_built;
  }
};

}  // namespace jax_sa
