// A row's drafts as one tree: several continuations, each joined to an earlier one where they part.
//
// Candidates come in a fixed order, the leader first. How many tokens each gives grows with its
// match: the leader's `factor * match length`, the others' half of that. Each joins the earlier
// candidate with which it shares the longest prefix, and adds what it does not share as new nodes,
// so nodes stand in the order of the candidates, and a parent before its children. Followers come
// last.
#pragma once

#include <cmath>
#include <cstdint>

#include "follower_tree.h"
#include "rows.h"

namespace jax_sa {

constexpr int32_t kTreeRoot = -1;  // the parent of a node that follows the text itself
constexpr int32_t kMaxChains = 6;

// Quarters of `factor * match length` that a candidate gives.
constexpr int32_t kOwnLeader = 4, kOwnOther = 2;
constexpr int32_t kNeuralMatch = 3;  // a neural draft is like one after a match of so many tokens
constexpr int32_t kPoolLeader = static_cast<int32_t>(kOwnLeader * kPoolDraftFactor);
constexpr int32_t kPoolOther = static_cast<int32_t>(kOwnOther * kPoolDraftFactor);

struct Trees {
  int32_t* tokens;        // [rows, max_nodes], like all but the last
  int32_t* parents;       //
  int32_t* depth;         //
  int32_t* match_length;  //
  int32_t* source;        //
  int32_t* length;        // [rows]
  int32_t max_nodes;
};

// Neural drafts of the rows, of which there may be none.
struct NeuralDrafts {
  const int32_t* tokens;  // [rows, width]
  int32_t width;
  int32_t threshold;  // the match length, plus the common prefix, from which another draft leads
};

// A candidate: tokens that lie in a text, or in a ring of texts.
struct Chain {
  const int32_t* text;
  int32_t begin;   // of the first token
  int32_t wrap;    // the text's index that is its first again
  int32_t period;  // tokens, after which the chain repeats itself
  int32_t limit;   // tokens at most
  int32_t match_length;
  int32_t source;
  int32_t quarters;  // of `factor * match length` that it gives

  JAX_SA_FN int32_t token(int32_t i) const {
    const int32_t at = begin + (i < period ? i : i % period);
    return text[at < wrap ? at : at - wrap];
  }
};

// What follows a match in a row's own text.
JAX_SA_FN Chain own_chain(const Slot& slot, int32_t text_length, Match match,
                          const LookupOptions& options, int32_t limit, int32_t quarters) {
  const int32_t period = text_length - match.end;
  if (match.length == 0) {
    limit = 0;
  } else if (!options.periodic && period < limit) {
    limit = period;
  }
  return {slot.tokens, match.end,    slot.max_seq_len, period,
          limit,       match.length, kSourceOwn,       quarters};
}

// What follows a match in a pool, up to the end of that text.
template <class Warp>
JAX_SA_FN Chain pool_chain(const Warp& warp, const PoolGroup& pool, Match match, int32_t limit,
                           int32_t quarters) {
  if (match.length == 0) return Chain{};
  limit = warp.find_first(limit,
                          [&](int32_t i) { return pool.token_after(match.end, i) == kSeparator; });
  return {pool.ring, pool.index(match.end), pool.capacity, INT32_MAX,
          limit,     match.length,          kSourcePool,   quarters};
}

// A token below 0 ends the draft.
template <class Warp>
JAX_SA_FN Chain neural_chain(const Warp& warp, const NeuralDrafts& neural, int32_t row,
                             int32_t limit) {
  const int32_t width = neural.width;
  const int32_t* const tokens = neural.tokens + static_cast<int64_t>(row) * width;
  limit = warp.find_first(limit < width ? limit : width, [&](int32_t i) { return tokens[i] < 0; });
  return {tokens, 0, INT32_MAX, INT32_MAX, limit, kNeuralMatch, kSourceNeural, kOwnLeader};
}

// The tokens that two candidates begin with alike.
template <class Warp>
JAX_SA_FN int32_t common_prefix(const Warp& warp, const Chain& a, const Chain& b) {
  return warp.find_first(a.limit < b.limit ? a.limit : b.limit,
                         [&](int32_t i) { return a.token(i) != b.token(i); });
}

// The shape of a tree: chain c gives its tokens attach[c]..length[c]-1 as nodes start[c], ...; the
// tokens before them are those of chain parent[c].
struct TreeShape {
  int32_t length[kMaxChains];
  int32_t attach[kMaxChains];
  int32_t parent[kMaxChains];
  int32_t start[kMaxChains];
  int32_t size;
};

template <class Warp>
class DraftTree {
 public:
  JAX_SA_FN DraftTree(Warp warp, int32_t max_nodes, double draft_factor)
      : warp_(warp), max_nodes_(max_nodes), draft_factor_(draft_factor), count_(0) {}

  // Adds a candidate, the leader first.
  JAX_SA_FN void add(Chain chain) {
    const double wanted = std::ceil(draft_factor_ * 0.25 * chain.quarters * chain.match_length);
    if (wanted < chain.limit) chain.limit = static_cast<int32_t>(wanted);
    if (chain.limit > max_nodes_) chain.limit = max_nodes_;
    if (chain.limit <= 0) return;
    chain_[count_] = chain;
    for (int32_t e = 0; e < count_; ++e) {
      shared_[count_][e] = common_prefix(warp_, chain, chain_[e]);
    }
    ++count_;
  }

  // With the followers of a text's last token.
  JAX_SA_FN void write(const Trees& trees, int32_t row, const FollowerGroup& followers,
                       const Growth& growth, int32_t last_token, int32_t max_depth) const {
    int32_t size = write_chains(trees, row);
    if (followers.vocabulary > 0) {
      size = grow(trees, row, size, followers, growth, last_token, max_depth);
    }
    write_end(trees, row, size);
  }
  JAX_SA_FN void write(const Trees& trees, int32_t row) const {
    write_end(trees, row, write_chains(trees, row));
  }

 private:
  // Writes the candidates, and returns how many nodes they have.
  JAX_SA_FN int32_t write_chains(const Trees& trees, int32_t row) const {
    const TreeShape shape = shape_at(fitting_scale());
    const int32_t size = shape.size < max_nodes_ ? shape.size : max_nodes_;
    const int64_t first = static_cast<int64_t>(row) * max_nodes_;
    for (int32_t c = 0; c < count_; ++c) {
      const Chain& chain = chain_[c];
      const int32_t new_nodes = shape.length[c] - shape.attach[c];
      const int32_t room = size - shape.start[c];
      const int32_t nodes = new_nodes < room ? new_nodes : room;
      const int32_t joint =
          shape.attach[c] == 0 ? kTreeRoot : node_of(shape, shape.parent[c], shape.attach[c] - 1);
      warp_.each(kWindow, [&](int32_t lane) {
        for (int32_t i = lane; i < nodes; i += kWindow) {
          const int64_t node = first + shape.start[c] + i;
          trees.tokens[node] = chain.token(shape.attach[c] + i);
          trees.parents[node] = i == 0 ? joint : shape.start[c] + i - 1;
          trees.depth[node] = shape.attach[c] + i + 1;
          trees.match_length[node] = chain.source == kSourceNeural ? 0 : chain.match_length;
          trees.source[node] = chain.source;
        }
      });
    }
    return size;
  }

  // Writes followers behind the first `size` nodes, and returns how many nodes there are then.
  JAX_SA_FN int32_t grow(const Trees& trees, int32_t row, int32_t size,
                         const FollowerGroup& followers, const Growth& growth, int32_t last_token,
                         int32_t max_depth) const {
    constexpr int32_t kNowhere = -2, kNew = -3;
    const int64_t first = static_cast<int64_t>(row) * max_nodes_;
    const int32_t of_chains = size, room = max_nodes_ - size;
    const int32_t tried = room < kMaxGrown ? room : kMaxGrown;
    if (tried == 0) return size;
    // Of each lane's follower; of what it follows.
    typename Warp::template PerLane<int32_t> node, token, node_before, token_before;
    warp_.each(kWindow, [&](int32_t lane) { node[lane] = kNowhere, token[lane] = kNoFollower; });
    const auto parent = [&](int32_t lane) {
      return growth.parent[lane] < 0 ? 0 : growth.parent[lane];
    };
    for (int32_t depth = 1; depth <= growth.deepest && depth <= max_depth; ++depth) {
      warp_.gather(node_before, parent, [&](int32_t lane) { return node[lane]; });
      warp_.gather(token_before, parent, [&](int32_t lane) { return token[lane]; });
      warp_.each(tried, [&](int32_t lane) {
        if (growth.depth[lane] != depth) return;
        const int32_t above = depth == 1 ? kTreeRoot : node_before[lane];
        if (above == kNowhere) return;
        const int32_t before = depth == 1 ? last_token : token_before[lane];
        token[lane] = followers.at(before, growth.rank[lane]);
        if (token[lane] < 0 || followers.is_again(before, growth.rank[lane])) return;
        node[lane] = kNew;
        for (int32_t i = 0; i < of_chains; ++i) {
          if (trees.parents[first + i] == above && trees.tokens[first + i] == token[lane]) {
            node[lane] = i;
          }
        }
        node_before[lane] = above;
      });
      const uint32_t added = warp_.ballot(tried, [&](int32_t lane) { return node[lane] == kNew; });
      warp_.each(tried, [&](int32_t lane) {
        if (node[lane] != kNew) return;
        node[lane] = size + warp_.count_bits(added & ((1u << lane) - 1));
        const int64_t at = first + node[lane];
        trees.tokens[at] = token[lane];
        trees.parents[at] = node_before[lane];
        trees.depth[at] = depth;
        trees.match_length[at] = 1 + growth.rank[lane];
        trees.source[at] = kSourceFollower;
      });
      size += warp_.count_bits(added);
    }
    return size;
  }

  JAX_SA_FN void write_end(const Trees& trees, int32_t row, int32_t size) const {
    const int64_t first = static_cast<int64_t>(row) * max_nodes_;
    warp_.only(0, [&](int32_t) { trees.length[row] = size; });
    warp_.each(kWindow, [&](int32_t lane) {
      for (int32_t i = size + lane; i < max_nodes_; i += kWindow) {
        trees.tokens[first + i] = kDraftFill;
        trees.parents[first + i] = kTreeRoot;
        trees.depth[first + i] = 0;
        trees.match_length[first + i] = 0;
        trees.source[first + i] = kSourceNone;
      }
    });
  }

  // Factors are multiples of 1 / kScaleOne, so that all of this is exact on every platform.
  static constexpr int32_t kScaleOne = 256;

  JAX_SA_FN int32_t length_at(const Chain& chain, int32_t scale) const {
    const int64_t one = int64_t{4} * kScaleOne;
    const int64_t wanted = (int64_t{scale} * chain.quarters * chain.match_length + one - 1) / one;
    return wanted < chain.limit ? static_cast<int32_t>(wanted) : chain.limit;
  }

  JAX_SA_FN TreeShape shape_at(int32_t scale) const {
    TreeShape shape{};
    JAX_SA_UNROLL
    for (int32_t c = 0; c < kMaxChains; ++c) {
      if (c >= count_) break;
      const int32_t length = length_at(chain_[c], scale);
      int32_t attach = 0, parent = 0;
      JAX_SA_UNROLL
      for (int32_t e = 0; e < c; ++e) {
        int32_t shared = shared_[c][e] < length ? shared_[c][e] : length;
        if (shape.length[e] < shared) shared = shape.length[e];
        if (shared > attach) attach = shared, parent = e;
      }
      shape.length[c] = length;
      shape.attach[c] = attach;
      shape.parent[c] = parent;
      shape.start[c] = shape.size;
      shape.size += length - attach;
    }
    return shape;
  }

  // The smallest factor whose tree has as many nodes as there may be, or one that cuts no chain.
  JAX_SA_FN int32_t fitting_scale() const {
    int32_t step = 1;
    while (step < 4 * kScaleOne * max_nodes_ / kWindow) step *= kWindow;
    int32_t too_small = 0;
    for (; step >= 1; step /= kWindow) {
      too_small += step * warp_.partition_point(kWindow, [&](int32_t i) {
        return shape_at(too_small + (i + 1) * step).size >= max_nodes_;
      });
    }
    return too_small + 1;
  }

  // The node that holds token i of a chain: its own, or one of the chain that it joins.
  JAX_SA_FN static int32_t node_of(const TreeShape& shape, int32_t chain, int32_t i) {
    while (i < shape.attach[chain]) chain = shape.parent[chain];
    return shape.start[chain] + i - shape.attach[chain];
  }

  Warp warp_;
  int32_t max_nodes_;
  double draft_factor_;
  int32_t count_;
  Chain chain_[kMaxChains];
  int32_t shared_[kMaxChains][kMaxChains];  // tokens that a chain shares with an earlier one
};

// The candidates: the longest match in the row's own text or, if it is longer, in the pool, and the
// neural draft, before it or behind it; that of the other; the pool's best with another next token;
// the text's next longest that ends elsewhere; its longest one's other occurrence. Then followers.
template <class Warp>
JAX_SA_FN void write_tree(const Warp& warp, const Automaton<Warp>& automaton, const Slot& slot,
                          const PoolGroup& pool, const NeuralDrafts& neural, const Growing& growing,
                          int32_t status, const LookupOptions& options, int32_t limit,
                          const Trees& trees, int32_t row) {
  const FollowerGroup followers = growing.followers.of_row(row);
  DraftTree<Warp> tree(warp, trees.max_nodes, growing.factor(followers, options.draft_factor));
  const Chain neural_draft = neural_chain(warp, neural, row, limit);
  if (!can_predict(status)) {
    tree.add(neural_draft);
    return tree.write(trees, row);
  }
  const int32_t length = automaton.length();
  const auto text_at = [&](int32_t i) { return slot.tokens[i]; };
  const PoolSearch<Warp> search(warp, pool, text_at, length);
  const Match best = automaton.match(options.min_match, options.max_match, options.recent);
  const Match next = automaton.next_match(best, options.min_match, options.recent);
  const Match other = automaton.match(options.min_match, options.max_match, !options.recent);
  const PoolMatches found = search.matches(options.min_match, options.max_match);
  const auto own = [&](Match match, int32_t quarters) {
    return own_chain(slot, length, match, options, limit, quarters);
  };
  const auto pooled = [&](Match match, int32_t quarters) {
    return pool_chain(warp, pool, match, limit, quarters);
  };
  const bool pool_leads = found.best.length > best.length;
  const Chain leader = pool_leads ? pooled(found.best, kPoolLeader) : own(best, kOwnLeader);
  const bool neural_leads =
      neural_draft.limit > 0 &&
      leader.match_length + common_prefix(warp, neural_draft, leader) < neural.threshold;
  if (neural_leads) tree.add(neural_draft);
  tree.add(leader);
  if (!neural_leads) tree.add(neural_draft);
  tree.add(pool_leads ? own(best, kOwnOther) : pooled(found.best, kPoolOther));
  tree.add(pooled(found.second, kPoolOther));
  tree.add(own(next, kOwnOther));
  tree.add(own(other, kOwnOther));
  const int32_t last_token = length > 0 ? slot.tokens[length - 1] : kNoFollower;
  tree.write(trees, row, followers, growing.growth, last_token, limit);
}

template <class Warp>
JAX_SA_FN void write_no_tree(const Warp& warp, const Trees& trees, int32_t row) {
  DraftTree<Warp>(warp, trees.max_nodes, 0.0).write(trees, row);
}

// A tree is at most as deep as `max_depth`.
JAX_SA_FN int32_t depth_limit(const LookupOptions& options, int32_t max_depth, int32_t row) {
  const int32_t limit = options.limits == nullptr ? max_depth : options.limits[row];
  if (limit > max_depth) return max_depth;
  return limit > 0 ? limit : 0;
}

struct LookupTree {
  State state;
  Rows rows;
  PoolView pool;
  NeuralDrafts neural;
  Growing growing;
  LookupOptions options;
  Trees trees;
  int32_t max_depth;

  int64_t num_tokens() const { return rows.count; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const int32_t named = named_slot(rows, row, state.num_slots);
    if (named < 0) return write_no_tree(warp, trees, row);
    const Slot slot = state.slot(named);
    const int32_t status = *slot.status;
    const int32_t limit = depth_limit(options, max_depth, row);
    const PoolGroup group = pool.of_row(row);
    const Automaton<Warp> automaton(warp, slot);
    write_tree(warp, automaton, slot, group, neural, growing, status, options, limit, trees, row);
  }
};

struct ExtendLookupTree {
  State state;
  Rows rows;
  PoolView pool;
  NeuralDrafts neural;
  Growing growing;
  Text text;
  LookupOptions options;
  Trees trees;
  int32_t max_depth;

  int64_t num_tokens() const { return int64_t{rows.count} * text.width; }

  template <class Warp>
  JAX_SA_FN void operator()(const Warp& warp, int32_t row) const {
    const Claim claimed = claim(warp, rows, row, state.num_slots);
    if (claimed.slot < 0) return write_no_tree(warp, trees, row);
    const RowText tokens(text, row);
    const Slot slot = state.slot(claimed.slot);
    int32_t status = *slot.status;
    const int32_t limit = depth_limit(options, max_depth, row);
    const PoolGroup group = pool.of_row(row);
    Automaton<Warp> automaton(warp, slot);
    status = append_text(warp, automaton, slot, tokens, status, claimed.conflict);
    write_tree(warp, automaton, slot, group, neural, growing, status, options, limit, trees, row);
  }
};

}  // namespace jax_sa
