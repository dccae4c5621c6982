// The index that scans: how well a text repeats at each distance, and one row's work on it. The
// same on host and device; `jax_sa/scan_state.py` documents the arrays.
//
// A row has a team of threads, which share the distances: both arrays are read once, whatever the
// number of tokens that are appended, and only matches that change are written.
#pragma once

#include <cstdint>

#include "rows.h"

namespace jax_sa {

struct ScanSlot {
  int32_t* length;
  int32_t* status;
  int32_t* tokens;  // [max_seq_len]
  int32_t* match;   // [max_seq_len] by distance - 1
};

struct ScanState {
  int32_t* length;
  int32_t* status;
  int32_t* tokens;
  int32_t* match;
  int32_t num_slots;
  int32_t max_seq_len;

  JAX_SA_FN ScanSlot slot(int64_t i) const {
    return {length + i, status + i, tokens + i * max_seq_len, match + i * max_seq_len};
  }
};

// A text and the tokens that are being appended to it. They are read where they came from, so that
// no thread waits for another to write them.
struct Appended {
  const int32_t* text;
  const int32_t* added;
  int32_t length;  // of the text before
  int32_t taken;   // tokens appended

  JAX_SA_FN int32_t end() const { return length + taken; }
  JAX_SA_FN int32_t at(int32_t place) const {
    // A choice of addresses, not of loads, so that many loads can be under way at once.
    const int32_t* const from = place < length ? text + place : added + (place - length);
    return *from;
  }

  // How many appended tokens, from the last one backwards, are those at a distance from them, where
  // `run` of them are; of the last `count`.
  JAX_SA_FN int32_t matching(int32_t distance, int32_t run, int32_t count) const {
    const int32_t most = end() - distance < count ? end() - distance : count;
    for (; run < most; run += kAtOnce) {
      uint32_t differs = 0;
      for (int32_t i = 0; i < kAtOnce; ++i) {
        const int32_t place = end() - 1 - (run + i < most ? run + i : 0);
        differs |= uint32_t{at(place) != at(place - distance)} << i;
      }
      if (differs != 0) return run + lowest_bit(differs);
    }
    return most;
  }

  JAX_SA_FN static int32_t lowest_bit(uint32_t mask) {
#ifdef __CUDA_ARCH__
    return __ffs(mask) - 1;
#else
    return __builtin_ctz(mask);
#endif
  }

 private:
  // Tokens compared before any of them decides: on a GPU their loads share a trip to memory.
  static constexpr int32_t kAtOnce = 8;
};

// Finds every match of a text anew, by one thread in linear time. The matches are the Z-function of
// the reversed text (Gusfield 1997, section 1.3): where a distance lies within an earlier match,
// the match there is that of the distance's own place in it, as far as the earlier match reaches.
JAX_SA_FN void match_whole_text(const ScanSlot& slot, int32_t end) {
  const int32_t* const last = slot.tokens + end - 1;
  for (int32_t distance = 1, from = 0, reach = 0; distance < end; ++distance) {
    int32_t match = 0;
    if (distance < reach) {
      const int32_t there = slot.match[distance - from - 1];
      match = there < reach - distance ? there : reach - distance;
    }
    if (distance + match >= reach) {
      while (distance + match < end && last[-match] == last[-match - distance]) ++match;
      from = distance;
      reach = distance + match;
    }
    slot.match[distance - 1] = match;
  }
}

// The longest match that was seen, no longer than `max_match`, and of equally long ones that at the
// distance that the occurrence asks for. Distances are seen in ascending order.
struct Longest {
  int32_t max_match;
  bool recent;
  int32_t length = 0;
  int32_t distance = 0;

  JAX_SA_FN void see(int32_t match, int32_t at_distance) {
    const int32_t seen = match < max_match ? match : max_match;
    if (seen > length || (seen == length && !recent)) {
      length = seen;
      distance = at_distance;
    }
  }

  // Larger for a match that goes before another one; none before another thread's.
  JAX_SA_FN uint64_t rank() const {
    const auto place = static_cast<uint32_t>(recent ? ~distance : distance);
    return uint64_t{static_cast<uint32_t>(length)} << 32 | place;
  }
  JAX_SA_FN Match match(uint64_t rank, int32_t text_length) const {
    const auto found = static_cast<int32_t>(rank >> 32);
    const auto place = static_cast<int32_t>(rank);
    if (found == 0) return {0, 0};
    return {found, text_length - (recent ? ~place : place)};
  }
};

struct Scan {
  ScanState state;
  Rows rows;
  Text text;              // lengths is null where nothing is appended
  LookupOptions options;  // where nothing is drafted, anything
  Drafts drafts;          // tokens is null where nothing is drafted

  int64_t num_tokens() const { return int64_t{rows.count} * state.max_seq_len / 16; }

  template <class Team>
  JAX_SA_FN void operator()(const Team& team, int32_t row) const {
    const bool appends = text.lengths != nullptr;
    const Claim claimed = appends ? claim(team.warp(), rows, row, state.num_slots)
                                  : Claim{named_slot(rows, row, state.num_slots), false};
    if (claimed.slot < 0) {
      if (drafts.tokens == nullptr) return;
      return team.lead([&](const auto& warp) { write_no_draft(warp, drafts, row); });
    }
    const ScanSlot slot = state.slot(claimed.slot);
    int32_t status = *slot.status;
    Appended appended{slot.tokens, nullptr, *slot.length, 0};
    if (appends) status |= append(team, slot, row, claimed.conflict, appended);
    const bool drafts_any = drafts.tokens != nullptr && can_predict(status);
    Longest longest{options.max_match, options.recent};
    if (appended.taken > 0 || drafts_any) scan(team, slot, appended, longest);
    const uint64_t rank = team.largest(longest.rank());
    team.lead([&](const auto& warp) {
      if (appends) {
        warp.only(0, [&](int32_t) {
          *slot.length = appended.end();
          *slot.status = status;
        });
      }
      if (drafts.tokens == nullptr) return;
      const Match match = longest.match(drafts_any ? rank : 0, appended.end());
      if (match.length < options.min_match) return write_no_draft(warp, drafts, row);
      const auto text_at = [&](int32_t i) { return slot.tokens[i]; };
      write_own_draft(warp, text_at, appended.end(), match, options,
                      row_limit(options, drafts, row), drafts, row);
    });
  }

 private:
  // Tokens that are compared for all distances of a tile side by side: nearly all matches end
  // within so many. Those that do not are compared one by one.
  static constexpr int32_t kSideBySide = 8;

  // Writes the row's tokens behind the text; returns bits for the slot's status.
  template <class Team>
  JAX_SA_FN int32_t append(const Team& team, const ScanSlot& slot, int32_t row, bool conflict,
                           Appended& appended) const {
    const int32_t given = text.lengths[row];
    const bool fits = given >= 0 && given <= text.width;
    const int32_t count = fits ? given : 0;
    const int32_t room = state.max_seq_len - appended.length;
    appended.added = text.tokens + static_cast<int64_t>(row) * text.width;
    appended.taken = count < room ? count : room;
    team.each(appended.taken,
              [&](int32_t i) { slot.tokens[appended.length + i] = appended.added[i]; });
    return (count > room ? kFull : 0) | (conflict ? kConflict : 0) | (fits ? 0 : kOutOfRange);
  }

  // Brings every match up to date, and sees them all.
  template <class Team>
  JAX_SA_FN void scan(const Team& team, const ScanSlot& slot, Appended appended,
                      Longest& longest) const {
    if (team.match_whole(slot, appended)) appended = {appended.text, nullptr, appended.end(), 0};
    const int32_t distances = appended.end() - 1;
    team.tiles(distances, [&](const auto& tile) {
      // Nearly all tiles compare the new tokens with the text before them alone.
      const bool is_inside = tile.begin + 1 >= appended.taken && tile.end() <= distances &&
                             tile.end() + appended.taken <= appended.end();
      if (is_inside) {
        update<true>(tile, slot, appended, longest);
      } else {
        update<false>(tile, slot, appended, longest);
      }
    });
  }

  // The same for the distances of a tile. Places before the text are not compared, nor is anything
  // beyond the last distance; inside, there are no such places.
  template <bool kInside, class Tile>
  JAX_SA_FN static void update(const Tile& tile, const ScanSlot& slot, const Appended& appended,
                               Longest& longest) {
    const int32_t end = appended.end();
    const int32_t taken = appended.taken;
    int32_t before[Tile::kSize];
    int32_t run[Tile::kSize];
    JAX_SA_UNROLL
    for (int32_t j = 0; j < Tile::kSize; ++j) {
      before[j] = kInside || tile.at(j) < end - 1 ? slot.match[tile.at(j)] : 0;
      run[j] = 0;
    }
    bool goes_on = true;
    for (int32_t i = 0; goes_on && i < taken && i < kSideBySide; ++i) {
      const int32_t token = appended.at(end - 1 - i);
      int32_t earlier[Tile::kSize];
      JAX_SA_UNROLL
      for (int32_t j = 0; j < Tile::kSize; ++j) {
        const int32_t place = end - 2 - i - tile.at(j);
        earlier[j] = kInside ? appended.text[place] : appended.at(place > 0 ? place : 0);
      }
      goes_on = false;
      JAX_SA_UNROLL
      for (int32_t j = 0; j < Tile::kSize; ++j) {
        const bool matches = run[j] == i && earlier[j] == token;
        run[j] += matches ? 1 : 0;
        goes_on |= matches;
      }
    }
    if (goes_on && taken > kSideBySide) match_far(tile, appended, run);
    JAX_SA_UNROLL
    for (int32_t j = 0; j < Tile::kSize; ++j) {
      const int32_t distance = tile.at(j) + 1;
      if (!kInside && distance >= end) continue;
      const int32_t most = kInside || end - distance > taken ? taken : end - distance;
      const int32_t match = run[j] < most ? run[j] : most < taken ? most : taken + before[j];
      if (match != before[j]) slot.match[distance - 1] = match;
      longest.see(match, distance);
    }
  }

  // Goes on where all tokens that were compared side by side match.
  template <class Tile>
  JAX_SA_FN static void match_far(const Tile& tile, const Appended& appended,
                                  int32_t (&run)[Tile::kSize]) {
    uint32_t far = 0;
    JAX_SA_UNROLL
    for (int32_t j = 0; j < Tile::kSize; ++j) far |= uint32_t{run[j] == kSideBySide} << j;
    for (; far != 0; far &= far - 1) {
      const int32_t which = Appended::lowest_bit(far);
      const int32_t matching = appended.matching(tile.at(which) + 1, kSideBySide, appended.taken);
      JAX_SA_UNROLL
      for (int32_t j = 0; j < Tile::kSize; ++j) run[j] = j == which ? matching : run[j];
    }
  }
};

}  // namespace jax_sa
