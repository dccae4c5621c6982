"""Where the tokens of a block that holds trees stand, and what they attend to.

Letters: B rows, N nodes of a tree, T places of a flat block.

A row's tokens are written to its cache one after the other: its last token, then all its nodes, of
which only a path will stay. So a node's entry says nothing about its position in the
text, nor about what it follows; this does.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jax_sa._explicit import follow_rows
from jax_sa.draft_tree import DraftTree, ancestors, tree_mask
from jax_sa.packing import Packed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TreeBlock:
    """What a model must know of a block's tokens beyond their entries in the cache.

    Its arrays have the axes of the block's tokens, [B, 1 + N] or [T], here written `...`. A token
    attends to the entries of its row below `start`, and to entry `start + i` where `nodes[..., i]`.
    A token that is no node attends to all entries up to its own, as without trees.
    """

    positions: jax.Array
    """int32[...] tokens of the row's text before the token, which a position embedding wants."""
    start: jax.Array
    """int32[...] the entry of the row's first node; of a token that is no node, the one after its
    own."""
    nodes: jax.Array
    """bool[..., N] of a node: itself and those above it; of another token: none."""


@follow_rows()
def tree_block(tree: DraftTree, length: jax.Array, again: jax.Array) -> TreeBlock:
    """Of a block [B, 1 + N], of each row its last token and then its nodes.

    Args:
      tree: of B rows and N nodes.
      length: int32[B] entries of each row's cache before its last token.
      again: int32[B] tokens before the last one that the block begins with; the last nodes, of
        which there must be as many fewer, are left out.
    """
    place = jnp.arange(1 + tree.tokens.shape[1], dtype=jnp.int32)[None] - again[:, None]
    own = jnp.maximum(place, 0)
    depth = jnp.take_along_axis(jnp.pad(tree.depth, ((0, 0), (1, 0))), own, axis=1)
    nodes = jnp.take_along_axis(tree_mask(tree)[:, :, 1:], own[..., None], axis=1)
    return TreeBlock(
        positions=length[:, None] + depth + jnp.minimum(place, 0),
        start=length[:, None] + 1 + jnp.minimum(place, 0),
        nodes=nodes,
    )


def packed_tree_block(tree: DraftTree, packed: Packed, last: jax.Array) -> TreeBlock:
    """Of a flat block, in which each row's own tokens come before its nodes.

    Args:
      tree: of B rows and N nodes.
      packed: the block; its positions are entries of the rows' caches.
      last: int32[B] the entry of each row's last own token.
    """
    rows, max_nodes = tree.tokens.shape
    row = jnp.minimum(packed.rows, rows - 1)
    node = packed.positions - last[row] - 1
    is_node = (packed.rows < rows) & (node >= 0)
    node = jnp.clip(node, 0, max_nodes - 1)
    return TreeBlock(
        positions=jnp.where(is_node, last[row] + tree.depth[row, node], packed.positions),
        start=jnp.where(is_node, last[row], packed.positions) + 1,
        nodes=is_node[:, None] & ancestors(tree)[row, node],
    )
