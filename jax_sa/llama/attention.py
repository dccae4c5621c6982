"""Attention of a flat block of tokens, of any rows, to what their rows have in the cache.

The tokens of a block may be trees: then what each attends to of the block is told apart from where
it is written (`jax_sa.TreeBlock`).

The keys and values of a row are in pages: position p is in the row's page p // S, at place p % S.
A cache without pages is one of a single large page a row. Every token of the block is written
first; then each attends to the places of its row up to its own. What a page holds beyond, of
refused tokens or of other texts, is never seen.

On a GPU a kernel computes it (`jax_sa.llama.attention_kernel`), elsewhere plain XLA, its reference.

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

import jax_sa
from jax_sa.llama.weights import AXIS

Memory = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""Keys and values: one array [L, N, G, S, H] of all layers, or for each layer one [1, N, ...]."""
CHUNK = 256
"""Places of a chunk where pages are not larger: enough that a CPU's products are not small."""
LOW = -1e30
"""In place of minus infinity, of which the difference is no number."""
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
    tiles: jax.Array
    """int32[I, 4] of each tile its first token, how many it has, their row, and how many places of
    that row they see. All 0 for a tile without tokens. One array, which one kernel writes."""
    tile: jax.Array
    """int32[T] of each token; means nothing for padding."""
    tree: jax_sa.TreeBlock | None
    """What the tokens attend to where the block holds trees, [T, ...]; None where it holds none."""
    width: int = dataclasses.field(metadata={"static": True})
    """W."""
    is_dense: bool = dataclasses.field(metadata={"static": True})
    """Whether row b has page b alone, and the block T / B tokens of each row."""

    @property
    def text_positions(self) -> jax.Array:
        """int32[T] tokens of its row's text before each token, which the rotary embedding wants."""
        return self.positions if self.tree is None else self.tree.positions


def make_block(
    rows: jax.Array,
    positions: jax.Array,
    pages: jax.Array,
    memory: Memory,
    shared: int,
    *,
    is_dense: bool = False,
    tree: jax_sa.TreeBlock | None = None,
) -> Block:
    """The block of tokens that are written at `positions` of `rows`, int32[T] both.

    Args:
      rows: of the tokens; what is not 0..B-1 is padding.
      positions: of the tokens.
      pages: int32[B, M] of each row; N for none.
      memory: of the cache.
      shared: R.
      is_dense: whether row b has page b alone, and the block T / B tokens of each row.
      tree: of a block that holds trees, [T, ...].
    """
    _, num_pages, _, size, head_dim = memory[0][0].shape
    num_rows, max_pages = pages.shape
    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    is_valid = (rows >= 0) & (rows < num_rows)
    nth = positions // size
    page = pages[jnp.where(is_valid, rows, 0), jnp.minimum(nth, max_pages - 1)]
    nowhere = ~is_valid | (nth >= max_pages) | (page >= num_pages)
    kernel = gpu_kernel(head_dim, shared)
    mean = index.size // min(index.size, num_rows)
    if kernel:
        width = kernel.tile_width(mean, shared)
    elif is_dense or index.size <= num_rows:
        width = mean
    else:
        width = min(index.size, 2 * mean)  # few tiles are not full, and none of a row's is small
    # Each row has one tile, and one more for every W tokens beyond its first.
    most = min(index.size, num_rows)
    most = most * -(-mean // width) if is_dense else most + (index.size - most) // width
    tiles, tile = _tiles(rows, positions, is_valid, width, most)
    return Block(
        rows=rows,
        positions=positions,
        pages=pages,
        page=jnp.where(nowhere, num_pages + index, page),  # no two the same: see `_write`
        place=positions % size,
        tiles=tiles,
        tile=tile,
        tree=tree,
        width=width,
        is_dense=is_dense,
    )


def _tiles(
    rows: jax.Array, positions: jax.Array, is_valid: jax.Array, width: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """`tiles` int32[most, 4] and `tile` of a block."""
    index = jnp.arange(rows.size, dtype=jnp.int32)
    differs, one = rows[1:] != rows[:-1], jnp.ones(1, bool)
    start = jax.lax.cummax(jnp.where(jnp.concatenate([one, differs]), index, 0))
    nth = (index - start) % width
    begins = is_valid & (nth == 0)
    tile = jnp.cumsum(begins, dtype=jnp.int32) - 1
    # The last token of a tile, which sees the most, tells of it.
    is_last = is_valid & (jnp.concatenate([differs, one]) | (nth == width - 1))
    of_tile = jnp.stack([index - nth, nth + 1, rows, positions + 1], axis=1)
    tiles = jnp.zeros((most, of_tile.shape[1]), jnp.int32)
    return tiles.at[jnp.where(is_last, tile, most)].set(of_tile, mode="drop"), tile


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
    """The attention of queries [T, G, R, H] to their rows; keys and values [L, ...] with the block.

    Reads and writes at int32[] `layer` of the arrays, without a copy of that part.
    """
    keys, values = write(keys, layer, block, k), write(values, layer, block, v)
    kernel = gpu_kernel(q.shape[-1], q.shape[-2])
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


def move(
    memory: Memory, start: jax.Array, path: jax.Array, pages: jax.Array | None, mesh: Mesh | None
) -> Memory:
    """The memory with the entries of accepted paths in order: see `jax_sa.move_entries`.

    Args:
      memory: keys and values.
      start: int32[B]
      path: int32[B, 1 + N]
      pages: int32[B, M] of each row; None: row b has page b alone.
      mesh: the devices that share the key/value heads, if any.
    """
    if mesh is not None or not gpu_kernel(memory[0][0].shape[-1], 1):
        return jax_sa.move_entries(memory, start, path, axes=(1, 3), pages=pages)
    from jax_sa.llama import move_kernel

    if pages is None:
        pages = jnp.arange(start.size, dtype=jnp.int32)[:, None]
    moved = [
        move_kernel.move_entries(*pair, start, path, pages) for pair in zip(*memory, strict=True)
    ]
    keys, values = zip(*moved, strict=True)
    return keys, values


def plain_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, layer: jax.Array, block: Block
) -> jax.Array:
    """[T, G, R, H] of queries [T, G, R, H]: softmax(q k / sqrt(H)) v, float32 in between.

    It goes over the places of all rows chunk by chunk, up to the last that any token sees, and
    keeps a running maximum and sum of each softmax (Milakov and Gimelshein 2018).
    """
    firsts, rows = block.tiles[:, 0], block.tiles[:, 2]
    tokens = firsts[:, None] + jnp.arange(block.width, dtype=jnp.int32)[None]
    tokens = jnp.minimum(tokens, q.shape[0] - 1)
    # [I, G, R, W, H]: the query heads of a group are rows of one product.
    queries = jnp.transpose(q[tokens], (0, 2, 3, 1, 4))
    width = _chunk_width(keys.shape[3], block)

    def visit(i: jax.Array, carry: tuple) -> tuple:
        out, highest, total = carry
        own_keys, place = _chunk(keys, layer, block, rows, i * width, width)
        own_values, _ = _chunk(values, layer, block, rows, i * width, width)
        scores = jnp.einsum(
            "igrwh,igch->igrwc", queries, own_keys, preferred_element_type=jnp.float32
        )
        seen = (place >= i * width) & _is_seen(place, tokens, block)
        scores = jnp.where(seen, scores / math.sqrt(q.shape[-1]), LOW)
        new = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
        kept, share = jnp.exp(highest - new), jnp.exp(scores - new)
        total = total * kept + jnp.sum(share, axis=-1, keepdims=True)
        out = out * kept + jnp.einsum(
            "igrwc,igch->igrwh",
            share.astype(q.dtype),
            own_values,
            preferred_element_type=jnp.float32,
        )
        return out, new, total

    of_lines = (*queries.shape[:-1], 1)
    start = (
        jnp.zeros(queries.shape, jnp.float32),
        jnp.full(of_lines, LOW, jnp.float32),
        jnp.zeros(of_lines, jnp.float32),
    )
    last = jnp.max(jnp.where(block.page < keys.shape[1], block.positions, 0))
    out, _, total = jax.lax.fori_loop(0, last // width + 1, visit, start)
    out = jnp.transpose(out / total, (0, 3, 1, 2, 4)).astype(q.dtype)
    index = jnp.arange(q.shape[0], dtype=jnp.int32)
    return out.at[block.tile, index - firsts[block.tile]].get(mode="clip")


def _is_seen(place: jax.Array, tokens: jax.Array, block: Block) -> jax.Array:
    """bool[I, 1, 1, W, C] whether `tokens` int32[I, W] attend to places int32[1, 1, 1, 1, C]."""

    def along_lines(of_tokens: jax.Array) -> jax.Array:
        return of_tokens[tokens][:, None, None, :, None]

    if block.tree is None:
        return place <= along_lines(block.positions)
    node = place - along_lines(block.tree.start)
    max_nodes = block.tree.nodes.shape[1]
    nodes = block.tree.nodes[tokens][:, None, None]
    attends = jnp.take_along_axis(nodes, jnp.clip(node, 0, max_nodes - 1), axis=-1)
    return (node < 0) | (attends & (node < max_nodes))


def _chunk_width(size: int, block: Block) -> int:
    """Places of a chunk: whole pages, or a part of the row's only one."""
    return min(CHUNK, size) if block.is_dense else max(CHUNK // size, 1) * size


def _chunk(
    pool: jax.Array, layer: jax.Array, block: Block, rows: jax.Array, start: jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
    """The keys or values [I, G, C, H] at C = `width` places of `rows` int32[I], and the places.

    The places, int32[1, 1, 1, 1, C], begin with `start`, or before, where a row ends.
    """
    _, num_rows, groups, size, head_dim = pool.shape
    if block.is_dense:
        start = jnp.minimum(start, size - width)
        shape = (1, num_rows, groups, width, head_dim)
        chunk = jax.lax.dynamic_slice(pool, (layer, 0, 0, start, 0), shape)
    else:
        nth = start // size + jnp.arange(width // size, dtype=jnp.int32)
        pages = block.pages.at[rows[:, None, None], nth[None, None]].get(mode="clip")
        chunk = pool.at[layer, pages, jnp.arange(groups, dtype=jnp.int32)[None, :, None]]
        chunk = chunk.get(mode="clip")  # of a page that is none, some other page, never seen
    place = start + jnp.arange(width, dtype=jnp.int32)
    return chunk.reshape(-1, groups, width, head_dim), place[None, None, None, None]


def gpu_kernel(head_dim: int, shared: int) -> ModuleType | None:
    """The kernel's module, where there is a GPU, this JAX still has Pallas for Triton, and the
    kernel can have heads of this size, of which so many share a key.
    """
    if jax.default_backend() != "gpu":
        return None
    try:
        from jax_sa.llama import attention_kernel
    except ImportError:
        return None
    return attention_kernel if attention_kernel.is_possible(head_dim, shared) else None
