// What one row of a call does to its slot, with one warp: the same on host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "automaton.h"
#include "state.h"

namespace jax_sa {

constexpr int32_t kDraftFill = 0;

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
  int32_t* tokens;        // [rows, max_draft]
  int32_t* length;        // [rows]
  int32_t* match_length;  // [rows]
  int32_t* match_end;     // [rows]
  int32_t max_draft;
};

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

template <class Warp>
JAX_SA_FN void write_draft(const Warp& warp, const Slot& slot, int32_t text_length, Match match,
                           const LookupOptions& options, int32_t limit, const Drafts& drafts,
                           int32_t row) {
  const int32_t period = text_length - match.end;
  int32_t length = 0;
  if (match.length > 0) {
    length = options.periodic || period > limit ? limit : period;
    const double wanted = std::ceil(options.draft_factor * match.length);
    if (wanted < length) length = static_cast<int32_t>(wanted);
  }
  warp.each(kWindow, [&](int32_t lane) {
    if (lane == 0) {
      drafts.length[row] = length;
      drafts.match_length[row] = match.length;
      drafts.match_end[row] = match.end;
    }
    int32_t* out = drafts.tokens + static_cast<int64_t>(row) * drafts.max_draft;
    for (int32_t i = lane; i < drafts.max_draft; i += kWindow) {
      out[i] = i < length ? slot.tokens[match.end + i % period] : kDraftFill;
    }
  });
}

template <class Warp>
JAX_SA_FN void write_no_draft(const Warp& warp, const Drafts& drafts, int32_t row) {
  write_draft(warp, Slot{}, 0, Match{0, 0}, LookupOptions{}, 0, drafts, row);
}

template <class Warp>
JAX_SA_FN void draft_from(const Warp& warp, const Automaton<Warp>& automaton, const Slot& slot,
                          int32_t status, const LookupOptions& options, int32_t limit,
                          const Drafts& drafts, int32_t row) {
  Match match{0, 0};
  // A text that lost tokens predicts the wrong ones.
  if ((status & (kFull | kOutOfRange)) == 0) {
    match = automaton.match(options.min_match, options.max_match, options.recent);
  }
  write_draft(warp, slot, automaton.length(), match, options, limit, drafts, row);
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
    const Automaton<Warp> automaton(warp, slot);
    draft_from(warp, automaton, slot, status, options, limit, drafts, row);
  }
};

struct ExtendLookup {
  State state;
  Rows rows;
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
    Automaton<Warp> automaton(warp, slot);
    status = append_text(warp, automaton, slot, tokens, status, claimed.conflict);
    draft_from(warp, automaton, slot, status, options, limit, drafts, row);
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
