"""Attention of a flat block of tokens, of any rows, to what their rows have in the cache.

The keys and values of a row are in pages: position p is in the row's page p // S, at place p % S.
A cache without pages is one of a single large page a row. Every token of the block is written
first; then each attends to the places of its row up to its own. What a page holds beyond, of
refused tokens or of other texts, is never seen.

On a GPU a kernel computes it (`llama.attention_kernel`), elsewhere plain XLA, its reference.

Letters: T tokens of the block, B rows, M pages of a row, N pages in all, S tokens of a page, Q
query heads, G key/value heads, R = Q / G, H head size, I tiles, W tokens of a tile.
"""

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from llama.weights import AXIS

Memory = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""Keys and values: one array [L, N, G, S, H] of all layers, or for each layer one [1, N, ...]."""
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]
"""`attend(q, k, v, memory, layer) -> out, memory` of the layer with this number: q and out
[..., Q, H], k and v [..., G, H], and whatever the layers remember."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """The tokens of a flat block: their places in the cache, and the tiles that they form.

    The tokens of a row are consecutive, in the order of their positions. A tile is the next W of
    them, or as many as there are: they share one reading of the row's keys.
    """

    rows: jax.Array
    """int32[T]; what is not 0..B-1 is padding."""
    positions: jax.Array
    """int32[T]"""
    pages: jax.Array
    """int32[B, M] of each row; N for none."""
    page: jax.Array
    """int32[T] where each token is written; N or more: nowhere."""
    place: jax.Array
    """int32[T] in that page."""
    firsts: jax.Array
    """int32[I] the first token of each tile; T for a tile without tokens."""
    tile: jax.Array
    """int32[T] of each token; means nothing for padding."""
    width: int = dataclasses.field(metadata={"static": True})
    """W."""
    is_dense: bool = dataclasses.field(metadata={"static": True})
    """Whether row b has page b alone, and the block T / B tokens of each row."""


def make_block(
    rows: jax.Array,
    positions: jax.Array,
    pages: jax.Array,
    memory: Memory,
    shared: int,
    *,
    is_dense: bool = False,
) -> Block:
    """The block of tokens at `positions` of `rows`, int32[T] both.

    Args:
      rows: of the tokens; what is not 0..B-1 is padding.
      positions: of the tokens.
      pages: int32[B, M] of each row; N for none.
      memory: of the cache.
      shared: R.
      is_dense: whether row b has page b alone, and the block T / B tokens of each row.
    """
    _, num_pages, _, size, head_dim = memory[0][0].shape
    num_rows, max_pages = pages.shape
    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    is_valid = (rows >= 0) & (rows < num_rows)
    nth = positions // size
    page = pages[jnp.where(is_valid, rows, 0), jnp.minimum(nth, max_pages - 1)]
    nowhere = ~is_valid | (nth >= max_pages) | (page >= num_pages)
    kernel = _kernel(head_dim, shared)
    mean = index.size // min(index.size, num_rows)
    width = kernel.tile_width(mean, shared) if kernel else mean
    # Each row has one tile, and one more for every W tokens beyond its first.
    most = min(index.size, num_rows)
    most = most * -(-mean // width) if is_dense else most + (index.size - most) // width
    firsts, tile = _tiles(rows, is_valid, index, width, most)
    return Block(
        rows=rows,
        positions=positions,
        pages=pages,
        page=jnp.where(nowhere, num_pages + index, page),  # no two the same: see `_write`
        place=positions % size,
        firsts=firsts,
        tile=tile,
        width=width,
        is_dense=is_dense,
    )


def _tiles(
    rows: jax.Array, is_valid: jax.Array, index: jax.Array, width: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """`firsts` int32[most] and `tile` of a block."""
    is_new = jnp.concatenate([jnp.ones(1, bool), rows[1:] != rows[:-1]])
    start = jax.lax.cummax(jnp.where(is_new, index, 0))
    begins = is_valid & ((index - start) % width == 0)
    tile = jnp.cumsum(begins, dtype=jnp.int32) - 1
    firsts = jnp.full(most, index.size, jnp.int32)
    return firsts.at[jnp.where(begins, tile, most)].set(index, mode="drop"), tile


def cached_attention(block: Block, mesh: Mesh | None) -> Attend:
    """Attention of the tokens of a block, which are written to the cache on the way.

    Args:
      block: of T tokens, which q, k and v may have in one axis or, by rows, in two.
      mesh: the devices that share the key/value heads, if any.
    """
    run = _write_and_attend
    if mesh is not None:
        heads, cached, all_of_it = (
            PartitionSpec(*spec) for spec in ((None, AXIS), (None, None, AXIS), ())
        )
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(heads, heads, heads, cached, cached, all_of_it, all_of_it),
            out_specs=(heads, cached, cached),
            check_vma=False,  # a Pallas kernel does not say what it varies over
        )

    def attend(q, k, v, memory, layer):
        keys, values = map(list, memory)
        groups, head_dim = k.shape[-2:]
        grouped = q.reshape(-1, groups, q.shape[-2] // groups, head_dim)
        k, v = (x.reshape(-1, groups, head_dim) for x in (k, v))
        i, index = (layer, 0) if len(keys) > 1 else (0, layer)
        index = jnp.asarray(index, jnp.int32)
        out, keys[i], values[i] = run(grouped, k, v, keys[i], values[i], block, index)
        return out.reshape(q.shape), (tuple(keys), tuple(values))

    return attend


def _write_and_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    block: Block,
    layer: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the queries [T, G, R, H] see of their rows; keys and values [L, ...] with the block.

    Reads and writes at int32[] `layer` of the arrays, without a copy of that part.
    """
    keys, values = write(keys, layer, block, k), write(values, layer, block, v)
    kernel = _kernel(q.shape[-1], q.shape[-2])
    attention = kernel.paged_attention if kernel else plain_attention
    return attention(q, keys, values, layer, block), keys, values


def write(old: jax.Array, layer: jax.Array, block: Block, new: jax.Array) -> jax.Array:
    """`old` [L, N, G, S, H] with the tokens' `new` [T, G, H] in their pages of a layer."""
    page, place = block.page, block.place
    if page.size == 1:
        # XLA would make an update of one place a slice, and copy the cache for it in every step.
        # Of two places, of which one is out of bounds and dropped, it does not.
        page = jnp.concatenate([page, jnp.full(1, old.shape[1] + 1, jnp.int32)])
        place, new = jnp.concatenate([place, place]), jnp.concatenate([new, new])
    return old.at[layer, page, :, place].set(new, mode="drop", unique_indices=True)


def plain_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, layer: jax.Array, block: Block
) -> jax.Array:
    """[T, G, R, H] of queries [T, G, R, H]: softmax(q k / sqrt(H)) v, float32 in between.

    Of a cache in pages, it makes a copy of each tile's keys and values in order.
    """
    tokens = block.firsts[:, None] + jnp.arange(block.width, dtype=jnp.int32)[None]
    tokens = jnp.minimum(tokens, q.shape[0] - 1)
    # [I, W, G, R, H] and [I, G, places, H]: the query heads of a group are rows of one product.
    queries, positions = q[tokens], block.positions[tokens]
    pages = block.pages.at[block.rows[tokens[:, 0]]].get(mode="clip")
    own_keys, own_values = (
        jax.lax.dynamic_index_in_dim(pool, layer, keepdims=False) for pool in (keys, values)
    )
    if not block.is_dense:
        own_keys, own_values = (_gather(pool, pages) for pool in (own_keys, own_values))
    scores = jnp.einsum("iwgrh,igch->igrwc", queries, own_keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(own_keys.shape[2], dtype=jnp.int32)[None, None] <= positions[:, :, None]
    scores = jnp.where(seen[:, None, None], scores / math.sqrt(q.shape[-1]), -jnp.inf)
    share = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("igrwc,igch->iwgrh", share, own_values)
    index = jnp.arange(q.shape[0], dtype=jnp.int32)
    return out.at[block.tile, index - block.firsts[block.tile]].get(mode="clip")


def _gather(pool: jax.Array, pages: jax.Array) -> jax.Array:
    """The texts [I, G, M * S, H] in pages int32[I, M] of a pool [N, G, S, H]."""
    texts = pool.at[pages].get(mode="clip").swapaxes(1, 2)
    return texts.reshape(*texts.shape[:2], -1, texts.shape[-1])


def _kernel(head_dim: int, shared: int) -> ModuleType | None:
    """The kernel's module, where there is a GPU, this JAX still has Pallas for Triton, and the
    kernel can have heads of this size, of which so many share a key.
    """
    if jax.default_backend() != "gpu":
        return None
    try:
        from llama import attention_kernel
    except ImportError:
        return None
    return attention_kernel if attention_kernel.is_possible(head_dim, shared) else None
