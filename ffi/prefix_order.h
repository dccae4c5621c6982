// The prefixes of texts in the order of their tokens read backwards, and what neighbours in that
// order have in common.
//
// Ranks by the last token are refined to ranks by the last 2, 4, 8 ... (prefix doubling, Manber and
// Myers 1990). In a rank of 2^k tokens, prefixes are equal that end in the same 2^k tokens; a rank
// is the place of the first of the equal ones. Texts are read in a circle: the empty prefix, which
// is first in its text's order and like no other, so ends every comparison.
#pragma once

#include <cstdint>

#include "prefill.h"

namespace jax_sa {

// The texts of one wave, and its elements: all their prefixes.
struct Wave {
  State state;
  Text row_text;
  const Built* texts;
  int32_t num_texts;
  int32_t num_elements;
  int32_t* lines;
  int32_t capacity;

  JAX_SA_FN int32_t* line(int32_t i) const { return lines + int64_t{i} * capacity; }
  JAX_SA_FN int32_t* ranks(int32_t level) const { return line(kNumLines + level); }

  JAX_SA_FN const Built& text_of(int32_t element) const { return texts[line(line_text)[element]]; }
  JAX_SA_FN Slot slot_of(const Built& text) const { return state.slot(text.slot); }

  // The last token of a prefix that is not empty.
  JAX_SA_FN int32_t token(int32_t element) const {
    const Built& text = text_of(element);
    return state.tokens[int64_t{text.slot} * state.max_seq_len + element - text.begin - 1];
  }

  // The index in `texts` of the text that an element is of.
  JAX_SA_FN int32_t find_text(int32_t element) const {
    int32_t first = 0;
    int32_t count = num_texts;
    while (count > 1) {
      const int32_t half = count / 2;
      if (texts[first + half].begin <= element) {
        first += half;
        count -= half;
      } else {
        count = half;
      }
    }
    return first;
  }
};

JAX_SA_FN int32_t bit_width(uint32_t x) {
  int32_t bits = 0;
  while (bits < 32 && x >> bits != 0) ++bits;
  return bits;
}

template <class Grid>
class PrefixOrder {
 public:
  JAX_SA_FN PrefixOrder(const Grid& grid, const Wave& wave, Shared* shared)
      : grid_(grid),
        wave_(wave),
        shared_(shared),
        order_(wave.line(line_order)),
        spare_(wave.line(line_spare)) {}

  // Fills lines `text`, `order` and `common`: the tokens that an element has in common with the one
  // before it in the order, -1 where that is of another text.
  JAX_SA_FN void build() {
    take_tokens();
    sort_by_token();
    int32_t level = 0;
    rank(level, [&](int32_t a, int32_t b) { return key(a) == key(b) && token(a) == token(b); });
    while (shared_->unfinished[level % 2] == level + 1) {
      sort_by_ranks(level);
      const int32_t* const ranks = wave_.ranks(level);
      const int32_t half = 1 << level;
      rank(++level, [&](int32_t a, int32_t b) {
        return ranks[a] == ranks[b] && ranks[moved(a, -half)] == ranks[moved(b, -half)];
      });
    }
    compare_neighbours(level);
  }

 private:
  // Appends the rows' tokens to their texts.
  JAX_SA_FN void take_tokens() {
    grid_.each(wave_.num_elements, [&](int32_t element) {
      if (element < 2) shared_->unfinished[element] = shared_->unfinished_ancestors[element] = 0;
      const int32_t index = wave_.find_text(element);
      const Built& text = wave_.texts[index];
      wave_.line(line_text)[element] = index;
      order_[element] = element;
      if (element == text.begin) return;
      const int32_t place = element - text.begin - 1;
      int32_t& token = wave_.state.slot(text.slot).tokens[place];
      if (place >= text.old_length) {
        token = wave_.row_text
                    .tokens[int64_t{text.row} * wave_.row_text.width + place - text.old_length];
      }
      const int32_t bits = bit_width(static_cast<uint32_t>(token));
      if (bits > shared_->token_bits) grid_.raise(shared_->token_bits, bits);
    });
  }

  // The empty prefix has none; it is told apart by its key.
  JAX_SA_FN int32_t token(int32_t element) const {
    return is_empty(element) ? 0 : wave_.token(element);
  }
  JAX_SA_FN bool is_empty(int32_t element) const { return wave_.text_of(element).begin == element; }
  JAX_SA_FN int32_t key(int32_t element) const {
    return 2 * wave_.line(line_text)[element] + (is_empty(element) ? 0 : 1);
  }

  // The prefix that is longer by so many tokens, in the circle of its text.
  JAX_SA_FN int32_t moved(int32_t element, int32_t by) const {
    const Built& text = wave_.text_of(element);
    const int32_t elements = text.length + 1;
    int32_t to = element - text.begin + (by < elements && -by < elements ? by : by % elements);
    if (to < 0) to += elements;
    if (to >= elements) to -= elements;
    return text.begin + to;
  }

  JAX_SA_FN void sort_by_token() {
    const auto element = [&](int32_t i) { return order_[i]; };
    sort(shared_->token_bits, element, [&](int32_t x) { return static_cast<uint32_t>(token(x)); });
    const int32_t bits = bit_width(2 * wave_.num_texts - 1);
    sort(bits, element, [&](int32_t x) { return static_cast<uint32_t>(key(x)); });
  }

  // By the ranks of 2^level tokens and, where those are equal, of the 2^level before them: in the
  // order so far, the elements that are 2^level longer stand in the order of the latter.
  JAX_SA_FN void sort_by_ranks(int32_t level) {
    const int32_t* const ranks = wave_.ranks(level);
    sort(
        bit_width(wave_.num_elements - 1), [&](int32_t i) { return moved(order_[i], 1 << level); },
        [&](int32_t x) { return static_cast<uint32_t>(ranks[x]); });
  }

  // Sorts, stably, the elements first(0), first(1), ... by a key of so many bits.
  template <class First, class Key>
  JAX_SA_FN void sort(int32_t bits, First first, Key key) {
    for (int32_t shift = 0; shift < bits; shift += kDigitBits) {
      const int32_t* const from = order_;
      int32_t* const to = spare_;
      const auto element = [&](int32_t i) { return shift == 0 ? first(i) : from[i]; };
      grid_.sort_by_digit(
          wave_.num_elements,
          [&](int32_t i) { return static_cast<int32_t>(key(element(i)) >> shift & (kDigits - 1)); },
          [&](int32_t i, int32_t place) { to[place] = element(i); });
      spare_ = order_;
      order_ = to;
    }
  }

  // Ranks by the order and by which of its neighbours are equal.
  template <class Equal>
  JAX_SA_FN void rank(int32_t level, Equal equal) {
    int32_t* const ranks = wave_.ranks(level);
    grid_.scan(
        wave_.num_elements, spare_, [](int32_t a, int32_t b) { return a > b ? a : b; },
        [&](int32_t i) {
          if (i == 0 || !equal(order_[i], order_[i - 1])) return i;
          shared_->unfinished[level % 2] = level + 1;
          return 0;
        },
        [&](int32_t i, int32_t first) { ranks[order_[i]] = first; });
  }

  // From the longest power of two down. The ranks of the last level all differ.
  JAX_SA_FN void compare_neighbours(int32_t levels) {
    int32_t* const order = wave_.line(line_order);
    int32_t* const common = wave_.line(line_common);
    grid_.each(wave_.num_elements, [&](int32_t i) {
      int32_t a = order_[i];
      if (is_empty(a)) {
        common[i] = -1;
      } else {
        int32_t b = order_[i - 1];
        int32_t length = 0;
        for (int32_t level = levels; level-- > 0;) {
          const int32_t* const ranks = wave_.ranks(level);
          if (ranks[a] != ranks[b]) continue;
          length += 1 << level;
          a -= 1 << level;
          b -= 1 << level;
        }
        common[i] = length;
      }
      if (order != order_) order[i] = order_[i];
    });
  }

  const Grid& grid_;
  Wave wave_;
  Shared* shared_;
  int32_t* order_;
  int32_t* spare_;
};

}  // namespace jax_sa
