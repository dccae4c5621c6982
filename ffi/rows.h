// The work of one row of a call on its slot, with one warp: the same on host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "automaton.h"
#include "pool.h"
#include "pool_search.h"
#include "state.h"

namespace jax_sa {

constexpr int32_t kDraftFill = 0;

// Of a draft's tokens; `jax_sa.Source` documents them.
constexpr int32_t kSourceNone = 0;
constexpr int32_t kSourceOwn = 1;
constexpr int32_t kSourcePool = 2;
constexpr int32_t kSourceNeural = 3;
constexpr int32_t kSourceFollower = 4;

// A match in a pool is worth drafting this much of what one in the row's own text is.
constexpr double kPoolDraftFactor = 0.5;

struct Rows {
  const int32_t* slots;  // [count], or null where row i is slot i
  int32_t count;
};

struct Text {
  const int32_t* tokens;   // [rows, width]
  const int32_t* lengths;  // [rows]
  int32_t width;
};

struct LookupOptions {
  const int32_t* limits;  // [rows] drafted tokens at most, or null without a limit
  int32_t min_match;
  int32_t max_match;
  bool recent;
  bool periodic;
  double draft_factor;
};

struct Drafts {
  int32_t* tokens;   // [rows, max_draft]
  int32_t* numbers;  // [rows, kDraftNumbers]: length, match length, match end and source
  int32_t max_draft;
};

constexpr int32_t kDraftNumbers = 4;

struct Claim {
  int32_t slot;   // -1: the row names no slot, or one that an earlier row has
  bool conflict;  // a later row names the same slot
};

JAX_SA_FN int32_t named_slot(const Rows& rows, int32_t row, int32_t num_slots) {
  const int32_t slot = rows.slots == nullptr ? row : rows.slots[row];
  return slot >= 0 && slot < num_slots ? slot : -1;
}

// The slot that a row may write: the first row that names it has it.
template <class Warp>
JAX_SA_FN Claim claim(const Warp& warp, const Rows& rows, int32_t row, int32_t num_slots) {
  const int32_t slot = named_slot(rows, row, num_slots);
  if (slot < 0 || rows.slots == nullptr) return {slot, false};
  const auto names_it = [&](int32_t other) { return rows.slots[other] == slot; };
  if (warp.any(0, row, names_it)) return {-1, false};
  return {slot, warp.any(row + 1, rows.count, names_it)};
}

// Drafted tokens of a row at most.
JAX_SA_FN int32_t row_limit(const LookupOptions& options, const Drafts& drafts, int32_t row) {
  const int32_t limit = options.limits == nullptr ? drafts.max_draft : options.limits[row];
  if (limit > drafts.max_draft) return drafts.max_draft;
  return limit > 0 ? limit : 0;
}

// The tokens of a draft at most: `limit`, or fewer where the match is short.
JAX_SA_FN int32_t draft_length(double draft_factor, int32_t match_length, int32_t limit) {
  const double wanted = std::ceil(draft_factor * match_length);
  return wanted < limit ? static_cast<int32_t>(wanted) : limit;
}

// Drafts `length` tokens at most: token_at(i) for each, until one is the separator where `ends`.
template <class Warp, class TokenAt>
JAX_SA_FN void write_draft(const Warp& warp, Match match, int32_t source, int32_t length, bool ends,
                           const Drafts& drafts, int32_t row, TokenAt token_at) {
  typename Warp::template PerLane<int32_t> token;
  int32_t* const out = drafts.tokens + static_cast<int64_t>(row) * drafts.max_draft;
  for (int32_t begin = 0; begin < drafts.max_draft; begin += kWindow) {
    warp.each(kWindow, [&](int32_t lane) {
      token[lane] = begin + lane < length ? token_at(begin + lane) : kDraftFill;
    });
    if (ends) {
      const uint32_t separators =
          warp.ballot(kWindow, [&](int32_t lane) { return token[lane] == kSeparator; });
      if (separators != 0) length = begin + Warp::lowest_bit(separators);
    }
    warp.each(kWindow, [&](int32_t lane) {
      const int32_t i = begin + lane;
      if (i < drafts.max_draft) out[i] = i < length ? token[lane] : kDraftFill;
    });
  }
  warp.only(0, [&](int32_t) {
    int32_t* const numbers = drafts.numbers + int64_t{row} * kDraftNumbers;
    numbers[0] = length;
    numbers[1] = match.length;
    numbers[2] = match.end;
    numbers[3] = source;
  });
}

template <class Warp>
JAX_SA_FN void write_no_draft(const Warp& warp, const Drafts& drafts, int32_t row) {
  write_draft(warp, {0, 0}, kSourceNone, 0, false, drafts, row, [](int32_t) { return kDraftFill; });
}

// What followed the match in the row's own text, which goes on with its period or ends. Token i of
// the text is text_at(i).
template <class Warp, class TextAt>
JAX_SA_FN void write_own_draft(const Warp& warp, TextAt text_at, int32_t text_length, Match match,
                               const LookupOptions& options, int32_t limit, const Drafts& drafts,
                               int32_t row) {
  const int32_t period = text_length - match.end;
  const int32_t most = options.periodic || period > limit ? limit : period;
  const int32_t length = draft_length(options.draft_factor, match.length, most);
  write_draft(warp, match, kSourceOwn, length, false, drafts, row,
              [&](int32_t i) { return text_at(match.end + i % period); });
}

// What followed the match in the pool, up to the end of that text.
template <class Warp>
JAX_SA_FN void write_pool_draft(const Warp& warp, const PoolGroup& pool, Match match,
                                const LookupOptions& options, int32_t limit, const Drafts& drafts,
                                int32_t row) {
  const double factor = kPoolDraftFactor * options.draft_factor;
  const int32_t length = draft_length(factor, match.length, limit);
  write_draft(warp, {match.length, pool.index(match.end)}, kSourcePool, length, true, drafts, row,
              [&](int32_t i) { return pool.token_after(match.end, i); });
}

// Drafts from the row's own text, or from the pool where its match is longer.
template <class Warp, class TextAt>
JAX_SA_FN void write_longer(const Warp& warp, TextAt text_at, int32_t text_length, Match own,
                            const PoolGroup& pool, Match pooled, const LookupOptions& options,
                            int32_t limit, const Drafts& drafts, int32_t row) {
  if (pooled.length > own.length) {
    return write_pool_draft(warp, pool, pooled, options, limit, drafts, row);
  }
  if (own.length == 0) return write_no_draft(warp, drafts, row);
  write_own_draft(warp, text_at, text_length, own, options, limit, drafts, row);
}

// A text that lost tokens predicts the wrong ones.
JAX_SA_FN bool can_predict(int32_t status) { return (status & (kFull | kOutOfRange)) == 0; }

// Drafts what followed the text's longest suffix that occurred before.
template <class Warp>
JAX_SA_FN void draft_from(const Warp& warp, const Automaton<Warp>& automaton, const Slot& slot,
                          const PoolGroup& pool, int32_t status, const LookupOptions& options,
                          int32_t limit, const Drafts& drafts, int32_t row) {
  if (!can_predict(status)) return write_no_draft(warp, drafts, row);
  const auto text_at = [&](int32_t i) { return slot.tokens[i]; };
  const int32_t length = automaton.length();
  const PoolSearch<Warp> search(warp, pool, text_at, length);
  const Match own = automaton.match(options.min_match, options.max_match, options.recent);
  const Match pooled = search.matches(options.min_match, options.max_match).best;
  write_longer(warp, text_at, length, own, pool, pooled, options, limit, drafts, row);
}

// One row's tokens. The next one is always loaded already, so that no append waits for its token.
struct RowText {
  const int32_t* tokens;
  int32_t length;
  int32_t width;
  int32_t next;

  JAX_SA_FN RowText(const Text& text, int32_t row)
      : tokens(text.tokens + static_cast<int64_t>(row) * text.width),
        length(text.lengths[row]),
        width(text.width),
        next(text.width > 0 ? tokens[0] : 0) {}

  JAX_SA_FN bool fits() const { return length >= 0 && length <= width; }
};

// Appends a row's tokens as far as they find room, none if their number is out of range; returns
// the slot's status.
template <class Warp>
JAX_SA_FN int32_t append_text(const Warp& warp, Automaton<Warp>& automaton, const Slot& slot,
                              RowText text, int32_t status, bool conflict) {
  const int32_t count = text.fits() ? text.length : 0;
  const int32_t room = slot.max_seq_len - automaton.length();
  for (int32_t i = 0; i < count && i < room; ++i) {
    const int32_t token = text.next;
    if (i + 1 < count) text.next = text.tokens[i + 1];
    automaton.append(token);
  }
  if (count > 0) automaton.store();
  const int32_t bits =
      (count > room ? kFull : 0) | (conflict ? kConflict : 0) | (text.fits() ? 0 : kOutOfRange);
  if (bits != 0) warp.only(0, [&](int32_t) { *slot.status = status | bits; });
  return status | bits;
}

// The ops, as functions of a row. What they need first is loaded before anything is decided by
// it: on a GPU the loads then share one trip to memory.

struct Extend {
  State state;
  Rows rows;
  Text text;

  int64_t num_tokens() const { return int64_t{rows.count} * text.width; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const Claim claimed = claim(warp, rows, row, state.num_slots);
    if (claimed.slot < 0) return;
    const RowText tokens(text, row);
    const Slot slot = state.slot(claimed.slot);
    const int32_t status = *slot.status;
    Automaton<Warp> automaton(warp, slot);
    append_text(warp, automaton, slot, tokens, status, claimed.conflict);
  }
};

struct Lookup {
  State state;
  Rows rows;
  PoolView pool;
  LookupOptions options;
  Drafts drafts;

  int64_t num_tokens() const { return rows.count; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const int32_t named = named_slot(rows, row, state.num_slots);
    if (named < 0) return write_no_draft(warp, drafts, row);
    const Slot slot = state.slot(named);
    const int32_t status = *slot.status;
    const int32_t limit = row_limit(options, drafts, row);
    const PoolGroup group = pool.of_row(row);
    const Automaton<Warp> automaton(warp, slot);
    draft_from(warp, automaton, slot, group, status, options, limit, drafts, row);
  }
};

// Drafts what would follow if some tokens came next. The text stays as it is.
struct LookupAfter {
  State state;
  Rows rows;
  PoolView pool;
  Text text;
  LookupOptions options;
  Drafts drafts;

  int64_t num_tokens() const { return rows.count; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const int32_t named = named_slot(rows, row, state.num_slots);
    if (named < 0) return write_no_draft(warp, drafts, row);
    const RowText next(text, row);
    const Slot slot = state.slot(named);
    const int32_t status = *slot.status;
    const int32_t limit = row_limit(options, drafts, row);
    const PoolGroup group = pool.of_row(row);
    const Automaton<Warp> automaton(warp, slot);
    if (!can_predict(status) || !next.fits()) return write_no_draft(warp, drafts, row);
    const int32_t own_length = automaton.length();
    const auto text_at = [&](int32_t i) {
      return i < own_length ? slot.tokens[i] : next.tokens[i - own_length];
    };
    const int32_t length = own_length + next.length;
    const PoolSearch<Warp> search(warp, group, text_at, length);
    const Match own = automaton.match_after(next.tokens, next.length, options.min_match,
                                            options.max_match, options.recent);
    const Match pooled = search.matches(options.min_match, options.max_match).best;
    write_longer(warp, text_at, length, own, group, pooled, options, limit, drafts, row);
  }
};

struct ExtendLookup {
  State state;
  Rows rows;
  PoolView pool;
  Text text;
  LookupOptions options;
  Drafts drafts;

  int64_t num_tokens() const { return int64_t{rows.count} * text.width; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const Claim claimed = claim(warp, rows, row, state.num_slots);
    if (claimed.slot < 0) return write_no_draft(warp, drafts, row);
    const RowText tokens(text, row);
    const Slot slot = state.slot(claimed.slot);
    int32_t status = *slot.status;
    const int32_t limit = row_limit(options, drafts, row);
    const PoolGroup group = pool.of_row(row);
    Automaton<Warp> automaton(warp, slot);
    status = append_text(warp, automaton, slot, tokens, status, claimed.conflict);
    draft_from(warp, automaton, slot, group, status, options, limit, drafts, row);
  }
};

// Places before or after the text hold the fill.
struct ReadTokens {
  State state;
  Rows rows;
  const int32_t* starts;  // [rows]
  int32_t* tokens;        // [rows, width]
  int32_t width;

  int64_t num_tokens() const { return int64_t{rows.count} * width / kWindow; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const int32_t named = named_slot(rows, row, state.num_slots);
    const Slot slot = state.slot(named < 0 ? 0 : named);
    const int64_t length = named < 0 ? 0 : *slot.length;
    const int64_t start = starts[row];
    int32_t* const out = tokens + static_cast<int64_t>(row) * width;
    warp.each(kWindow, [&](int32_t lane) {
      for (int64_t i = lane; i < width; i += kWindow) {
        const int64_t place = start + i;
        out[i] = place >= 0 && place < length ? slot.tokens[place] : kDraftFill;
      }
    });
  }
};

}  // namespace jax_sa
