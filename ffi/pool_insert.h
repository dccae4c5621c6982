// Texts into a pool, in three steps, each of which may run side by side for all that it is a step
// of: `place` for the groups, `rebase` for the entries of groups that need it, `write` for the
// tokens. The same on host and device, and the same pool in whatever order they run.
#pragma once

#include <cstdint>

#include "pool.h"
#include "rows.h"
#include "state.h"

namespace jax_sa {

// The text that a row inserts.
struct PoolText {
  const int32_t* tokens;
  int32_t length;  // 0: nothing to insert; -1: out of range
};

// The rows of a block of tokens.
struct BlockTexts {
  Text text;

  JAX_SA_FN PoolText operator()(int32_t row) const {
    const RowText own(text, row);
    return {own.tokens, own.fits() ? own.length : -1};
  }
};

// Parts of the texts of a state's slots.
struct SlotTexts {
  const int32_t* tokens;   // [slots, max_seq_len]
  const int32_t* lengths;  // [slots]
  const int32_t* status;   // [slots]
  int32_t num_slots;
  int32_t max_seq_len;
  const int32_t* slots;   // [rows]
  const int32_t* starts;  // [rows], or null where all start at 0
  const int32_t* counts;  // [rows], or null where all go on to the end

  JAX_SA_FN PoolText operator()(int32_t row) const {
    const int32_t slot = slots[row];
    if (slot < 0 || slot >= num_slots) return {nullptr, 0};
    const int32_t length = lengths[slot];
    const int32_t start = starts == nullptr ? 0 : starts[row];
    // A text with a gap is not what anybody wrote.
    if ((status[slot] & kOutOfRange) != 0 || length < 0 || length > max_seq_len || start < 0 ||
        start > length) {
      return {nullptr, -1};
    }
    const int32_t count = counts == nullptr ? length - start : counts[row];
    if (count < 0 || count > length - start) return {nullptr, -1};
    return {tokens + int64_t{slot} * max_seq_len + start, count};
  }
};

template <class Texts>
struct PoolInsert {
  Pool pool;
  Texts texts;
  const int32_t* groups;  // [count], or null where all are of group 0
  int32_t count;          // rows
  int32_t width;          // tokens of a text at most
  int32_t* behind;        // [count] scratch: tokens between a row's separator and the new head
  int32_t* shifts;        // [groups] scratch: what rebasing takes off every position

  static constexpr int32_t kNowhere = -1;  // `behind` of a row that leaves nothing in the ring

  JAX_SA_FN int32_t group_of(int32_t row) const { return groups == nullptr ? 0 : groups[row]; }

  // Finds the place of each row of a group in the ring, and moves the head. Later rows come
  // later, so only tokens that the head leaves standing have a place.
  template <class Warp>
  JAX_SA_FN void place(const Warp& warp, int32_t group) const {
    typename Warp::template PerLane<int32_t> length;
    typename Warp::template PerLane<int32_t> distance;
    int64_t added = 0;
    bool out_of_range = false;
    for (int32_t end = count; end > 0; end -= kWindow) {  // the row before `end` in lane 0
      const auto is_in_group = [&](int32_t lane) {
        return end > lane && group_of(end - 1 - lane) == group;
      };
      warp.each(kWindow, [&](int32_t lane) {
        length[lane] = is_in_group(lane) ? texts(end - 1 - lane).length : 0;
      });
      out_of_range |= warp.ballot(kWindow, [&](int32_t lane) { return length[lane] < 0; }) != 0;
      for (int32_t lane = 0; lane < kWindow; ++lane) {
        const int32_t tokens = warp.broadcast(lane, [&](int32_t own) { return length[own]; });
        const bool stays = tokens > 0 && added < pool.capacity;
        warp.set(distance, lane, stays ? static_cast<int32_t>(added) : kNowhere);
        if (tokens > 0) added += int64_t{tokens} + 1;
      }
      warp.each(kWindow, [&](int32_t lane) {
        if (is_in_group(lane)) behind[end - 1 - lane] = distance[lane];
      });
    }
    warp.only(0, [&](int32_t) {
      shifts[group] = move_head(group, added);
      if (out_of_range) pool.status[group] |= kOutOfRange;
    });
  }

  // An entry of a group whose positions are shifted; those that become 0 or less are dead.
  JAX_SA_FN static void rebase(int32_t& entry, int32_t shift) {
    entry = entry > shift ? entry - shift : 0;
  }

  // Puts token i of a row's text into the ring, the separator after the last, and leads the
  // n-grams before it to it.
  JAX_SA_FN void write(int32_t row, const PoolText& text, int32_t i) const {
    const PoolGroup group = pool.group(group_of(row));
    const int64_t distance = int64_t{behind[row]} + 1 + text.length - i;
    if (distance > pool.capacity) return;
    const auto position = static_cast<int32_t>(group.head - distance);
    const int32_t token = i < text.length ? text.tokens[i] : kSeparator;
    group.ring[group.index(position)] = token;
    if (token == kSeparator) return;
    const int32_t branch = branch_of(token);
    uint32_t hash = 0;
    int32_t gram = 0;
    JAX_SA_UNROLL
    for (int32_t n = 1; n <= kLongestGram; ++n) {
      if (n > i || text.tokens[i - n] == kSeparator) return;
      hash = extend_gram(hash, gram_term(text.tokens[i - n]));
      if (n == gram_length(gram)) {
        raise_to(group.entries(gram, hash).ends[branch], position);
        ++gram;
      }
    }
  }

  // Whether `write` has something to do for the row.
  JAX_SA_FN bool writes(int32_t row) const {
    return pool.is_group(group_of(row)) && behind[row] != kNowhere;
  }

 private:
  // Adds to a group's head; takes a multiple of the capacity off first where the sum is no int32.
  JAX_SA_FN int32_t move_head(int32_t group, int64_t added) const {
    const int64_t head = (pool.head[group] > 0 ? pool.head[group] : 0) + added;
    if (head <= INT32_MAX) {
      pool.head[group] = static_cast<int32_t>(head);
      return 0;
    }
    const int64_t shift = head / pool.capacity * pool.capacity - pool.capacity;
    pool.head[group] = static_cast<int32_t>(head - shift);
    return shift < INT32_MAX ? static_cast<int32_t>(shift) : INT32_MAX;
  }
};

}  // namespace jax_sa
