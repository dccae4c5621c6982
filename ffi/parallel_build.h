// The automaton of whole texts, built in phases of which each is a sort, a scan, or independent
// for every element. It is the automaton that appending token by token leaves behind: only the
// places of edges in their table differ.
//
// The suffix links are the suffix tree of the reversed text (Weiner 1973; Blumer et al. 1985). Its
// inner nodes are the intervals of the order of prefixes in which neighbours have at least so many
// tokens in common (Abouelhoda, Kurtz and Ohlebusch 2004), and its leaves the prefixes. An interval
// is named by the first place in it of its smallest common length; the root, by the place where
// its text begins.
//
// Clones are numbered in the order in which they would have been made. A clone is made where its
// strings occur behind a second token: at the smallest first end of its children but the one that
// it shares its own first end with. At most one is made for each token of the text.
#pragma once

#include <cstdint>

#include "min_tree.h"
#include "prefix_order.h"

namespace jax_sa {

template <class Grid>
class ParallelBuild {
 public:
  JAX_SA_FN ParallelBuild(const Grid& grid, const Wave& wave, Shared* shared)
      : grid_(grid),
        wave_(wave),
        shared_(shared),
        count_(wave.num_elements),
        order_(wave.line(line_order)),
        above_(wave.line(line_spare)),
        common_(wave.line(line_common)),
        interval_(wave.line(line_interval)),
        lowest_(wave.line(line_lowest)),
        first_(wave.line(line_first)),
        created_(wave.line(line_created)),
        clones_(wave.line(line_clones)),
        node_(wave.line(line_node)),
        edges_(wave.line(line_clones)) {}

  JAX_SA_FN void build() {
    clear();
    PrefixOrder<Grid>(grid_, wave_, shared_).build();
    find_intervals();
    find_parents();
    order_clones();
    write_nodes();
    find_ancestors();
    count_edges();
    write_edges();
    write_ends();
  }

 private:
  JAX_SA_FN bool is_interval(int32_t i) const { return interval_[i] == i; }
  JAX_SA_FN bool is_root(int32_t interval) const { return common_[interval] < 0; }
  // Whether an interval that is not the root is the node of a prefix.
  JAX_SA_FN bool is_prefix(int32_t interval) const {
    return first_[interval] - wave_.text_of(interval).begin == common_[interval];
  }
  JAX_SA_FN int32_t length(int32_t interval) const {
    return is_root(interval) ? 0 : common_[interval];
  }
  JAX_SA_FN int32_t first_end(int32_t interval, const Built& text) const {
    return is_root(interval) ? 0 : first_[interval] - text.begin;
  }
  JAX_SA_FN int32_t parent(int32_t interval) const { return wave_.ranks(0)[interval]; }
  // The ancestor 2^level steps up. The lines of ranks are no longer needed then.
  JAX_SA_FN int32_t ancestor(int32_t level, int32_t interval) const {
    return wave_.ranks(level)[interval];
  }

  // The tables of texts that had some.
  JAX_SA_FN void clear() {
    bool any = false;
    for (int32_t i = 0; i < wave_.num_texts; ++i) any |= wave_.texts[i].old_length > 0;
    if (!any) return;
    grid_.each(wave_.state.num_entries, [&](int32_t entry) {
      for (int32_t i = 0; i < wave_.num_texts; ++i) {
        if (wave_.texts[i].old_length == 0) continue;
        wave_.slot_of(wave_.texts[i]).edges[entry] = Edge{};
      }
    });
  }

  JAX_SA_FN void find_intervals() {
    int32_t* const upper = wave_.line(line_trees);
    const MinTree common(common_, upper, count_);
    const MinTree ends(order_, upper + wave_.capacity / 2, count_);
    for (int32_t level = 1; level <= common.depth(); ++level) {
      grid_.each(common.size(level), [&](int32_t i) {
        common.fill(level, i);
        ends.fill(level, i);
      });
    }
    grid_.each(count_, [&](int32_t i) {
      clones_[i] = 0;
      created_[i] = INT32_MAX;
      const int32_t length = common_[i];
      if (length <= 0) {
        interval_[i] = wave_.text_of(i).begin;
        return;
      }
      const int32_t begin = common.before(i, length);
      interval_[i] = common.after(begin, length + 1);
      if (!is_interval(i)) return;
      const int32_t end = common.after(i, length);
      above_[i] = end < count_ && common_[end] > common_[begin] ? end : begin;
      first_[i] = ends.smallest(begin, end);
      if (is_prefix(i)) created_[i] = first_[i];
    });
  }

  JAX_SA_FN void find_parents() {
    grid_.each(count_, [&](int32_t i) {
      if (is_interval(i)) {
        const int32_t parent = is_root(i) ? i : interval_[above_[i]];
        set_ancestor(0, i, parent);
        if (!is_root(i)) add_child(parent, first_[i]);
      }
      if (common_[i] < 0) return;  // the empty prefix
      const int32_t element = order_[i];
      const int32_t own = element - wave_.text_of(i).begin;
      const int32_t next = i + 1 < count_ ? common_[i + 1] : -1;
      const int32_t lowest = interval_[next > common_[i] ? i + 1 : i];
      lowest_[element] = lowest;
      if (next != own) add_child(lowest, element);
    });
  }

  JAX_SA_FN void add_child(int32_t parent, int32_t end) {
    if (is_root(parent) || is_prefix(parent) || end == first_[parent]) return;
    grid_.lower(created_[parent], end);
  }

  JAX_SA_FN bool is_clone(int32_t i) const {
    return is_interval(i) && !is_root(i) && !is_prefix(i);
  }

  JAX_SA_FN void order_clones() {
    grid_.each(count_, [&](int32_t i) {
      if (is_clone(i)) clones_[created_[i]] = 1;
    });
    grid_.scan(
        count_, clones_, [](int32_t a, int32_t b) { return a + b; },
        [&](int32_t i) { return clones_[i]; }, [&](int32_t i, int32_t sum) { clones_[i] = sum; });
  }

  JAX_SA_FN int32_t node_of(int32_t interval, const Built& text) const {
    if (is_root(interval)) return kRoot;
    if (is_prefix(interval)) return common_[interval];
    return wave_.state.max_seq_len + clones_[created_[interval]] - clones_[text.begin];
  }

  JAX_SA_FN void write_nodes() {
    grid_.each(count_, [&](int32_t i) {
      const Built& text = wave_.text_of(i);
      const Slot slot = wave_.slot_of(text);
      if (is_interval(i)) {
        const int32_t node = node_of(i, text);
        node_[i] = node;
        if (is_root(i)) {
          *slot.num_clones = clones_[text.begin + text.length] - clones_[text.begin];
        } else {
          const int32_t first_end = first_[i] - text.begin;
          const bool cloned = node > slot.max_seq_len;
          slot.nodes[node] = {node_of(parent(i), text), cloned ? first_end : 0};
          if (cloned) slot.clone(node) = {common_[i], first_end};
        }
      }
      const int32_t prefix = i - text.begin;  // here, i as an element
      if (prefix == 0 || common_[lowest_[i]] == prefix) return;
      slot.nodes[prefix] = {node_of(lowest_[i], text), 0};
    });
  }

  // Ancestors 2, 4, 8 ... steps up, until all are roots.
  JAX_SA_FN void find_ancestors() {
    levels_ = 0;
    while (shared_->unfinished_ancestors[levels_ % 2] == levels_ + 1) {
      grid_.each(count_, [&](int32_t i) {
        if (is_interval(i)) set_ancestor(levels_ + 1, i, ancestor(levels_, ancestor(levels_, i)));
      });
      ++levels_;
    }
  }

  JAX_SA_FN void set_ancestor(int32_t level, int32_t interval, int32_t ancestor) {
    wave_.ranks(level)[interval] = ancestor;
    if (!is_root(ancestor)) shared_->unfinished_ancestors[level % 2] = level + 1;
  }

  // The next ancestor of a prefix that is not empty.
  JAX_SA_FN int32_t parent_of_prefix(int32_t element, const Built& text) const {
    const int32_t lowest = lowest_[element];
    return common_[lowest] == element - text.begin ? parent(lowest) : lowest;
  }

  // The last of an interval and its ancestors that is longer than `length`, how many there are.
  struct Climb {
    int32_t interval;
    int32_t count;
  };
  JAX_SA_FN Climb climb(int32_t interval, int32_t longer_than) const {
    if (common_[interval] <= longer_than) return {interval, 0};
    Climb climb{interval, 1};
    for (int32_t level = levels_; level-- > 0;) {
      const int32_t up = ancestor(level, climb.interval);
      if (common_[up] > longer_than) climb = {up, climb.count + (1 << level)};
    }
    return climb;
  }

  // The edges by the last token of a prefix come from the prefix without it and from those of its
  // ancestors that no other prefix, earlier in the order, gives the edge to. That of the prefix is
  // implied by the text. Each edge so comes up once, also those that are not stored because a
  // longer node of the same first end has the same.
  JAX_SA_FN void count_edges() {
    grid_.scan(
        count_, edges_, [](int32_t a, int32_t b) { return a + b; },
        [&](int32_t i) { return edges_of(i); }, [&](int32_t i, int32_t sum) { edges_[i] = sum; });
  }

  // How many edges the element at a place of the order has.
  JAX_SA_FN int32_t edges_of(int32_t i) const {
    const int32_t element = order_[i];
    const Built& text = wave_.text_of(i);
    if (element - text.begin < 2) return 0;
    const int32_t shared = common_[i] - 1;  // by the prefixes without their last token
    const int32_t parent = parent_of_prefix(element - 1, text);
    return climb(parent, shared > 0 ? shared : 0).count + (shared < 0 ? 1 : 0);
  }

  JAX_SA_FN void write_edges() {
    grid_.each(edges_[count_ - 1], [&](int32_t i) {
      int32_t place = 0;  // in the order: how many elements have all their edges before this one
      for (int32_t begin = 0, end = count_; begin < end; place = begin) {
        const int32_t middle = begin + (end - begin) / 2;
        if (edges_[middle] <= i) {
          begin = middle + 1;
        } else {
          end = middle;
        }
      }
      const Built& text = wave_.text_of(place);
      const int32_t element = order_[place];
      const int32_t steps = place == 0 ? i : i - edges_[place - 1];
      Link link{parent_of_prefix(element - 1, text), element - 1, element - 1 - text.begin};
      if (steps > 0) {
        const int32_t below = climb_by(link.interval, steps - 1);
        link = {parent(below), first_[below], common_[below]};
      }
      write_edge(text, link, element);
    });
  }

  JAX_SA_FN int32_t climb_by(int32_t interval, int32_t steps) const {
    for (int32_t level = 0; steps >> level != 0; ++level) {
      if (steps >> level & 1) interval = ancestor(level, interval);
    }
    return interval;
  }

  // An interval, and what links to it on the way from a prefix: its first end, an element, and its
  // length.
  struct Link {
    int32_t interval;
    int32_t end_below;
    int32_t length_below;
  };

  // From an interval by the last token of a prefix, to the shortest node of the prefix or its
  // ancestors that is longer than the interval.
  JAX_SA_FN void write_edge(const Built& text, Link from, int32_t element) {
    const Slot slot = wave_.slot_of(text);
    const int32_t prefix = element - text.begin;
    const int32_t token = slot.tokens[prefix - 1];
    const int32_t own = length(from.interval);
    const int32_t end = first_end(from.interval, text);
    if (own == end && end < text.length && slot.tokens[end] == token) return;  // implied
    const Climb target = climb(lowest_[element], own);
    const bool is_leaf = target.count == 0;
    const int32_t target_length = is_leaf ? prefix : common_[target.interval];
    const bool shared = from.end_below - text.begin == end && target_length > from.length_below;
    if (shared) return;
    const int32_t node = is_leaf ? prefix : node_[target.interval];
    const int32_t entry = slot.first_entry(Hash(*slot.seed), end, token, own, [&](int32_t other) {
      return grid_.compare_exchange(slot.edges[other].first_end, 0, end + 1) == 0;
    });
    slot.edges[entry].token = token;
    slot.edges[entry].target = node << 1 | (target_length == own + 1 ? 1 : 0);
    slot.edges[entry].length = own;
  }

  // What each length of the text left behind: most recent ends, and at last the window.
  JAX_SA_FN void write_ends() {
    grid_.each(count_, [&](int32_t element) {
      const Built& text = wave_.text_of(element);
      const int32_t end = element - text.begin;
      if (end == text.length) {
        write_window(text, element);
      } else if (end > 0) {
        write_recent_ends(text, element);
      }
    });
  }

  // The end is the most recent one of nodes that were in the window then. Of an ancestor that was
  // made later, it is what it took over from the node that held its strings till then.
  JAX_SA_FN void write_recent_ends(const Built& text, int32_t element) {
    const Slot slot = wave_.slot_of(text);
    const int32_t end = element - text.begin;
    int32_t in_window = 0;
    for (int32_t i = parent_of_prefix(element, text); !is_root(i); i = parent(i)) {
      const bool existed = created_[i] <= element;
      if (existed && in_window == kWindow) return;
      in_window += existed ? 1 : 0;
      int32_t& recent_end = slot.nodes[node_[i]].recent_end;
      if (in_window > 0 && recent_end < end) grid_.raise(recent_end, end);
    }
  }

  JAX_SA_FN void write_window(const Built& text, int32_t element) {
    const Slot slot = wave_.slot_of(text);
    int32_t interval = parent_of_prefix(element, text);
    for (int32_t lane = 0; lane < kWindow; ++lane) {
      slot.suffixes[lane] = {node_[interval], length(interval), first_end(interval, text)};
      interval = parent(interval);
    }
    *slot.length = text.length;
  }

  const Grid& grid_;
  Wave wave_;
  Shared* shared_;
  int32_t count_;
  int32_t* order_;     // element by place in the order
  int32_t* above_;     // where the parent of an interval is found
  int32_t* common_;    // tokens in common with the element before, so the length of an interval
  int32_t* interval_;  // of a place: the innermost that it bounds two elements of
  int32_t* lowest_;    // of an element: the innermost interval that it is in
  int32_t* first_;     // of an interval: its first end, an element
  int32_t* created_;   // of an interval: the element with which its node was made
  int32_t* clones_;    // of an element: clones made up to it
  int32_t* node_;      // of an interval
  int32_t* edges_;     // of a place: edges up to it; in the line of clones_, needed before
  int32_t levels_ = 0;
};

// Builds what the plan says, wave by wave.
template <class Grid>
JAX_SA_FN void build_planned(const Grid& grid, const Prefill& op) {
  const Built* const built = op.built();
  const int32_t num_built = op.shared()->num_built;
  for (int32_t first = 0, end = 0; first < num_built; first = end) {
    do ++end;
    while (end < num_built && built[end].begin != 0);
    const int32_t count = built[end - 1].begin + built[end - 1].length + 1;
    const Wave wave{op.state,
                    op.text,
                    built + first,
                    end - first,
                    count,
                    op.workspace.lines,
                    op.workspace.capacity};
    ParallelBuild<Grid>(grid, wave, op.shared()).build();
  }
}

}  // namespace jax_sa
