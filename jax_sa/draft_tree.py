"""Drafts as trees: several continuations of each text, of which the model may confirm any one.

Letters: S slots, B rows, T tokens of a row, N nodes of a tree, M tokens of a neural draft.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._call import Argument
from jax_sa._checks import check_array, check_int
from jax_sa._explicit import follow_rows
from jax_sa._target import GROUPS, ROWS, SLOT_IDS, Result
from jax_sa.automaton import (
    _call,
    _check_limits,
    _check_seen,
    _check_slots,
    _check_text,
    check_lookup,
)
from jax_sa.followers import Followers, check_followers
from jax_sa.pool import Pool
from jax_sa.state import State, check_state

ROOT = -1
"""The parent of a node that follows the row's last token."""

NO_TOKEN = -1
"""Ends a row's neural draft, as any token below 0 does."""

MAX_NODES = 1024
"""The largest `max_nodes`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftTree:
    """Tokens that may follow each of B texts, as a tree of at most N nodes.

    A path from the root down is a draft. The children of a node have different tokens, and a node
    stands behind its parent. The most trustworthy draft comes first.
    """

    tokens: jax.Array
    """int32[B, N] the drafted token of each node; `DRAFT_FILL` beyond `length`."""
    parents: jax.Array
    """int32[B, N] the node before each node; `ROOT` for those that follow the row's last token,
    and beyond `length`."""
    depth: jax.Array
    """int32[B, N] nodes from the root to this one, both ends of the path: 1 for a child of the
    root; 0 beyond `length`."""
    match_length: jax.Array
    """int32[B, N] tokens of the match that the node was drafted from; of a follower, its rank, 1
    for the likeliest. 0 beyond `length`, and where the draft is neural."""
    source: jax.Array
    """int32[B, N] a `Source`: where that match is; `Source.NONE` beyond `length`."""
    length: jax.Array
    """int32[B] nodes, 0..N."""


def lookup_tree(
    state: State,
    *,
    max_nodes: int,
    max_draft: int | None = None,
    slots: jax.Array | None = None,
    limits: jax.Array | None = None,
    min_match: int = 1,
    max_match: int | None = None,
    occurrence: str = "recent",
    draft_factor: float | None = None,
    periodic: bool = True,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
    followers: Followers | None = None,
    neural: jax.Array | None = None,
    threshold: int = 4,
) -> DraftTree:
    """Drafts a tree: what followed several earlier occurrences of the ends of each text.

    The candidates, in this order: what `lookup` drafts, the leader, from the row's own text or
    from the pool; what it would draft from the other of the two; the best match in the pool that
    another token follows; the text's next shorter suffix that occurred elsewhere; the other
    occurrence, the first or the most recent one, of its longest. With a match of m tokens the
    leader gives `ceil(f * m)` tokens, and each other candidate half as many; half of that again
    where it is from the pool. Each joins the tree where it parts from those before it.

    A neural draft of M tokens is one more candidate, as if it were from a match of three. It leads
    where the leader's match length and the common prefix of the two make less than `threshold`,
    the rule of `merge_drafts`; else it comes second.

    The factor f is, for each row, as large as it takes to fill the tree; what then is beyond
    `max_nodes` is left out, which are the last candidates' last tokens. With `followers` f is at
    most 4, and what is left of the tree is theirs: those of the text's last token, then what may
    follow these, and so on. Up to 32 that have the best chance by their ranks are tried; one that a
    candidate has at its place is not drafted again.

    Args:
      state: of S slots; it is only read, so rows may share a slot.
      max_nodes: N.
      max_draft: the depth of a tree at most. None: N.
      slots: int32[B], as in `extend`; None: all slots, B is S.
      limits: int32[B] the depth of each row's tree at most, clipped to 0..`max_draft`. None: no
        limit.
      min_match: as in `lookup`, like all that follow but one.
      max_match: None: no limit.
      occurrence: the occurrence in its own text that a row follows first.
      draft_factor: f is at most this. None: no limit.
      periodic: whether a draft goes on with its beginning where it reaches the end of the text.
      pool: None: the text alone.
      groups: int32[B] of the pool and of the followers. None: group 0 for all rows.
      followers: what the model expected after each token, which is only read. A row whose text is
        empty or drafts nothing for want of a slot has none of them; `min_match` is no matter here.
        None: none.
      neural: int32[B, M] what a neural drafter expects next; the first token below 0 ends a row's
        draft. A row that drafts nothing for want of a slot has none of it either. None: no neural
        drafts.
      threshold: at least 1.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    _check_automata(state)
    attributes = check_lookup_tree(
        *(max_nodes, max_draft, min_match, max_match, occurrence, draft_factor, periodic, threshold)
    )
    rows = _check_slots(state, slots)
    _check_limits(rows, limits)
    operands = [
        Argument("slots", SLOT_IDS, slots),
        Argument("limits", ROWS, limits),
        *_check_trees(rows, pool, groups, followers, neural),
    ]
    results, _ = _call("lookup_tree", operands, state, _tree_results(max_nodes), attributes)
    return DraftTree(*results)


def extend_lookup_tree(
    state: State,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    max_nodes: int,
    max_draft: int | None = None,
    slots: jax.Array | None = None,
    limits: jax.Array | None = None,
    min_match: int = 1,
    max_match: int | None = None,
    occurrence: str = "recent",
    draft_factor: float | None = None,
    periodic: bool = True,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
    followers: Followers | None = None,
    neural: jax.Array | None = None,
    threshold: int = 4,
) -> tuple[State, DraftTree]:
    """`extend`, then `lookup_tree` of the same rows, in one kernel launch.

    Arguments, results and errors are theirs, but for one thing: of rows that name one slot, only
    the first drafts.
    """
    _check_automata(state)
    attributes = check_lookup_tree(
        *(max_nodes, max_draft, min_match, max_match, occurrence, draft_factor, periodic, threshold)
    )
    rows = _check_text(state, tokens, lengths, slots)
    _check_limits(rows, limits)
    operands = [
        Argument("tokens", ROWS, tokens),
        Argument("lengths", ROWS, lengths),
        Argument("slots", SLOT_IDS, slots),
        Argument("limits", ROWS, limits),
        *_check_trees(rows, pool, groups, followers, neural),
    ]
    drafted = _tree_results(max_nodes)
    results, state = _call("extend_lookup_tree", operands, state, drafted, attributes, updates=True)
    return state, DraftTree(*results)


def _check_automata(state: Any) -> None:
    check_state(state)
    if not isinstance(state, State):
        raise TypeError(
            "state: expected a jax_sa.State, whose window has several matches to draft from, "
            f"got {type(state).__name__}"
        )


def check_lookup_tree(
    max_nodes: Any,
    max_draft: Any,
    min_match: Any,
    max_match: Any,
    occurrence: Any,
    draft_factor: Any,
    periodic: Any,
    threshold: Any = 4,
) -> dict[str, Any]:
    """The options of a lookup of trees, checked: the attributes of its targets."""
    max_nodes = check_int("max_nodes", max_nodes, 1, MAX_NODES)
    max_draft, attributes = check_lookup(
        max_nodes if max_draft is None else max_draft,
        *(min_match, max_match, occurrence, draft_factor, periodic),
    )
    threshold = check_int("threshold", threshold, 1)
    return {"max_draft": max_draft, **attributes, "threshold": threshold}


def _check_trees(rows: int, pool: Any, groups: Any, followers: Any, neural: Any) -> list[Argument]:
    """What trees are drafted from beside the rows' texts, as the targets take it."""
    seen = _check_seen(rows, pool, groups, has_others=followers is not None)
    if followers is not None:
        check_followers(followers)
        if pool is not None and pool.num_groups != followers.num_groups:
            raise ValueError(
                f"followers.tokens: expected {pool.num_groups} groups, as the pool has, "
                f"got {followers.num_groups}"
            )
    if neural is not None:
        check_array("neural", neural, jnp.int32, (rows, "M"))
    table = None if followers is None else followers.tokens
    return [
        *seen,
        Argument("followers.tokens", GROUPS, table, rank=3),
        Argument("neural", ROWS, neural, rank=2),
    ]


def ancestors(tree: DraftTree) -> jax.Array:
    """bool[B, N, N] whether node k (last axis) is node i or above it in the tree.

    A place beyond `length` is above no node, and only itself is above it.
    """
    rows, max_nodes = tree.parents.shape
    index = jnp.arange(max_nodes, dtype=jnp.int32)[None, None]
    own = jnp.broadcast_to(jnp.eye(max_nodes, dtype=bool)[None], (rows, max_nodes, max_nodes))
    up = jnp.where(tree.parents == ROOT, max_nodes, tree.parents)  # the root: a node that is none
    # First those few steps up, then those of the nodes that are a multiple of so many steps up: on
    # a GPU half the kernels that it takes to double the steps again and again.
    few = math.isqrt(max_nodes - 1) + 1
    steps = _climb(up, few)
    near = functools.reduce(jnp.logical_or, (node[..., None] == index for node in steps[:-1]), own)
    there = (
        jnp.take_along_axis(near, node[..., None], axis=1, mode="fill", fill_value=False)
        for node in _climb(steps[-1], -(-max_nodes // few) - 1)
    )
    return functools.reduce(jnp.logical_or, there, near)


def _climb(up: jax.Array, count: int) -> list[jax.Array]:
    """The nodes 1, ..., `count` steps up, where one leads to int32[B, N] `up`; N or more: none."""
    steps, none = [up], up.shape[1]
    for number in range(2, count + 1):
        first, then = steps[number // 2 - 1], steps[number - number // 2 - 1]
        steps.append(jnp.take_along_axis(then, first, axis=1, mode="fill", fill_value=none))
    return steps[:count]


def siblings(tree: DraftTree) -> jax.Array:
    """bool[B, N, N] whether two nodes have one parent; a node is its own sibling."""
    inside = is_node(tree)
    same = tree.parents[:, :, None] == tree.parents[:, None]
    return same & inside[:, :, None] & inside[:, None]


def is_node(tree: DraftTree) -> jax.Array:
    """bool[B, N] the places that hold a node."""
    index = jnp.arange(tree.tokens.shape[1], dtype=jnp.int32)[None]
    return index < tree.length[:, None]


@follow_rows()
def tree_mask(tree: DraftTree) -> jax.Array:
    """What each token of a tree's block attends to within the block.

    The block of a row is its last token, at place 0, and then the nodes: node i at place 1 + i. Its
    positions in the text are those of the last token plus 0 and `tree.depth`.

    Args:
      tree: of B rows and N nodes.

    Returns:
      bool[B, 1 + N, 1 + N]: whether the token at a place (second axis) attends to the one at
      another (last axis): to itself, to the nodes above it, and to the last token. All attend to
      the whole text before the block as well.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    rows, max_nodes = check_tree("tree", tree)
    above = ancestors(tree)
    last = jnp.ones((rows, 1 + max_nodes, 1), bool)
    of_last = jnp.zeros((rows, 1, max_nodes), bool)
    return jnp.concatenate([last, jnp.concatenate([of_last, above], axis=1)], axis=2)


def no_trees(rows: int, max_nodes: int) -> DraftTree:
    """Trees without nodes."""
    zeros = jnp.zeros((rows, max_nodes), jnp.int32)
    roots = jnp.full((rows, max_nodes), ROOT, jnp.int32)
    return DraftTree(zeros, roots, zeros, zeros, zeros, jnp.zeros(rows, jnp.int32))


def check_tree(name: str, tree: Any) -> tuple[int, int]:
    """B and N; ValueError or TypeError unless it is a tree."""
    if not isinstance(tree, DraftTree):
        raise TypeError(f"{name}: expected a jax_sa.DraftTree, got {type(tree).__name__}")
    rows, max_nodes = check_array(f"{name}.tokens", tree.tokens, jnp.int32, ("B", "N"))
    for field in ("parents", "depth", "match_length", "source"):
        check_array(f"{name}.{field}", getattr(tree, field), jnp.int32, (rows, max_nodes))
    check_array(f"{name}.length", tree.length, jnp.int32, (rows,))
    return rows, max_nodes


def _tree_results(max_nodes: int) -> list[Result]:
    """What the fields of a `DraftTree` are."""
    return [*[Result(ROWS, (int(max_nodes),))] * 5, Result(ROWS, ())]
