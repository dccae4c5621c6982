"""How many nodes of a tree are worth verifying: `jax_sa.budget` for trees.

Letters: B rows, N nodes of a tree, W widths.

The chance that a node holds if its parent does is that of a drafted token at its depth, by its own
match, or of a follower of its rank. Of the children of a node only one can hold: a later one has
that chance of what the earlier ones leave.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jax_sa import budget
from jax_sa._explicit import follow_rows
from jax_sa.automaton import DRAFT_FILL, Source
from jax_sa.draft_tree import ROOT, DraftTree, ancestors, is_node, siblings

MOST_COMPARED = 2048
"""Nodes that are ranked by comparing each with each, one kernel on a GPU; more are sorted."""


FOLLOWER_CHANCE, FOLLOWER_DECAY = 0.36, 1.6
"""A token's follower of rank 1 + r is what comes next, if none of those before it is, with the
chance FOLLOWER_CHANCE / (1 + r * FOLLOWER_DECAY): see docs/trees.md."""


def survival(tree: DraftTree, strain: jax.Array) -> jax.Array:
    """float32[B, N] the chance that a node and all above it hold; 0 beyond the tree.

    A node's is never above its parent's. Like those of `budget.survival`, with `strain` float32[B].
    """
    holds = _chance(tree, strain)
    above = jnp.prod(jnp.where(ancestors(tree), holds[:, None], 1.0), axis=-1)
    return jnp.where(is_node(tree), above, 0.0)


def rank(chances: jax.Array) -> jax.Array:
    """int32[...] the place of each of float32[...] chances among all, the largest first.

    A parent comes before its children, as of equal ones the first does.
    """
    flat = chances.reshape(-1)
    if flat.size <= MOST_COMPARED:
        return rank_in_row(flat[None]).reshape(chances.shape)
    order = jnp.argsort(-flat, stable=True)
    places = jnp.arange(flat.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True).reshape(chances.shape)


def rank_in_row(chances: jax.Array) -> jax.Array:
    """int32[B, N] likewise, but among those of the row."""
    index = jnp.arange(chances.shape[1], dtype=jnp.int32)
    mine, other = chances[:, :, None], chances[:, None]
    first = jnp.where(index[None, None] < index[None, :, None], other >= mine, other > mine)
    return jnp.sum(first, axis=-1, dtype=jnp.int32)


def keep(tree: DraftTree, kept: jax.Array) -> DraftTree:
    """The tree of the nodes in bool[B, N] `kept`; of each node that is, its parent must be."""
    kept &= is_node(tree)
    max_nodes = kept.shape[1]
    index = jnp.arange(max_nodes, dtype=jnp.int32)
    new = jnp.cumsum(kept, axis=1, dtype=jnp.int32) - 1
    length = jnp.sum(kept, axis=1, dtype=jnp.int32)
    comes_from = kept[:, None] & (new[:, None] == index[None, :, None])  # [B, to, from]
    source = jnp.sum(jnp.where(comes_from, index[None, None], 0), axis=-1, dtype=jnp.int32)
    inside = index[None] < length[:, None]

    def move(values: jax.Array, fill: int) -> jax.Array:
        return jnp.where(inside, jnp.take_along_axis(values, source, axis=1), fill)

    parents = jnp.take_along_axis(new, jnp.maximum(tree.parents, 0), axis=1)
    return DraftTree(
        tokens=move(tree.tokens, DRAFT_FILL),
        parents=move(jnp.where(tree.parents == ROOT, ROOT, parents), ROOT),
        depth=move(tree.depth, 0),
        match_length=move(tree.match_length, 0),
        source=move(tree.source, Source.NONE),
        length=length,
    )


def first_nodes(tree: DraftTree, width: int) -> DraftTree:
    """A tree of at most `width` nodes, in arrays of that width."""
    narrow = jax.tree.map(lambda x: x[:, :width] if x.ndim == 2 else x, tree)
    return dataclasses.replace(narrow, length=jnp.minimum(tree.length, width))


@follow_rows()
def update_record(
    record: budget.Record, tree: DraftTree, path: jax.Array, confirmed: jax.Array
) -> budget.Record:
    """The record after a step that verified `tree` and confirmed int32[B] nodes, those of `path`.

    At each place of the path whose node has children, one of them was to hold.
    """
    position = jnp.arange(path.shape[1], dtype=jnp.int32)[None]
    fails, has_children = _children(tree)
    tried = jnp.take_along_axis(has_children, path, axis=1) & (position <= confirmed[:, None])
    expected = jnp.where(tried, jnp.take_along_axis(fails, path, axis=1), 0.0)
    ended = jnp.take_along_axis(tried, confirmed[:, None], axis=1)[:, 0]
    kept = jnp.where(tree.length > 0, budget.MEMORY, 1.0)
    return budget.Record(
        expected=record.expected * kept + jnp.sum(expected, axis=1),
        seen=record.seen * kept + ended.astype(jnp.float32),
    )


def _chance(tree: DraftTree, strain: jax.Array) -> jax.Array:
    """float32[B, N] the chance that a node holds if its parent does."""
    fails = budget.failure_rate(tree.source, tree.match_length, tree.depth)
    likelier = (tree.match_length - 1).astype(jnp.float32)
    follows = FOLLOWER_CHANCE / (1.0 + FOLLOWER_DECAY * likelier)
    fails = jnp.where(tree.source == Source.FOLLOWER, 1.0 - follows, fails)
    holds = jnp.clip(1.0 - strain[:, None] * fails, 0.0, 1.0)
    earlier = siblings(tree) & jnp.tri(holds.shape[1], k=-1, dtype=bool)[None]
    left = jnp.prod(jnp.where(earlier, 1.0 - holds[:, None], 1.0), axis=-1)
    return left * holds


def _children(tree: DraftTree) -> tuple[jax.Array, jax.Array]:
    """Of the node at each place, [B, 1 + N]: the chance that no child holds, and if it has one."""
    rows, max_nodes = tree.tokens.shape
    holds = _chance(tree, jnp.ones(rows, jnp.float32))
    place = jnp.arange(1 + max_nodes, dtype=jnp.int32)
    child = (tree.parents[:, None] - ROOT == place[None, :, None]) & is_node(tree)[:, None]
    fails = jnp.clip(1.0 - jnp.sum(jnp.where(child, holds[:, None], 0.0), axis=-1), 0.0, 1.0)
    return fails, jnp.any(child, axis=-1)
