"""`jax_sa.llama.attention.plain_attention` as a kernel for GPUs, with the scores on the chip only.

A program computes one tile of one group of heads: W tokens times the R query heads of the group
are the rows of its products, and it goes over the keys of the tile's row block by block, up to the
last place that the tile sees, keeping a running maximum and sum of each row's softmax (Milakov and
Gimelshein 2018; FlashAttention, Dao et al. 2022). Where there are few tiles, several programs
share one, and what they found is put together afterwards (Flash-Decoding, Dao et al. 2023).

Letters: as in `jax_sa.llama.attention`; P programs of a tile.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jax_sa.llama.attention import Block

KEYS = 128
"""Places of a block of keys at most."""
KEY_BYTES = 16384
"""Bytes of a block of keys at most: two of keys and two of values fit every GPU's shared memory."""
WARPS = 4
STAGES = 2
PROGRAMS = 256
"""A tile is shared until there are so many programs: two for each multiprocessor of a GPU."""
MOST_PARTS = 8
MOST_BLOCKS = 8
"""Blocks of keys of a program: for more, a tile is shared even so, if not in too many parts."""
WORD = 32
"""Nodes of a tree whose bits are one int32."""
LOW = -1e30
"""In place of minus infinity, of which the difference is no number."""


def is_possible(head_dim: int, shared: int) -> bool:
    """Whether heads of this size, of which so many share a key, fit the tensor cores' products."""
    return head_dim in (16, 32, 64, 128, 256) and shared <= 64


def tile_width(mean: int, shared: int) -> int:
    """W, for blocks of so many tokens a row: 16 rows of a product, more for prompts.

    Wider tiles read keys less often, but there are fewer of them, and each takes longer.
    """
    return max(64 if mean >= 64 else 16, shared) // shared


def paged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: jax.Array,
    block: Block,
    *,
    parts: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The result of `jax_sa.llama.attention.plain_attention`, for the same arguments.

    Args:
      q: [T, G, R, H].
      keys: [L, N, G, S, H].
      values: likewise.
      layer: int32[].
      block: of the tokens.
      parts: P; None: as many as keep a GPU busy.
      interpret: whether to compute it without a GPU, slowly.
    """
    total, groups, shared, head_dim = q.shape
    tiles = block.tiles.shape[0]
    if parts is None:
        parts = _num_parts(tiles * groups, block.pages.shape[1] * keys.shape[3], keys)
    whole = parts == 1
    of_rows = (total, groups, shared)
    shapes = [jax.ShapeDtypeStruct((parts, *of_rows, head_dim), q.dtype if whole else jnp.float32)]
    if not whole:
        shapes += [jax.ShapeDtypeStruct((parts, *of_rows), jnp.float32)] * 2
    tree = ()
    if block.tree is not None:
        tree = (block.tree.start, _words(block.tree.nodes))
    found = pl.pallas_call(
        functools.partial(_kernel, width=block.width, parts=parts, has_tree=bool(tree)),
        grid=(tiles, groups, parts),
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="paged_attention",
    )(layer[None], block.tiles, block.positions, block.pages, q, keys, values, *tree)
    return found[0][0] if whole else _join(*found).astype(q.dtype)


def _num_parts(programs: int, places: int, keys: jax.Array) -> int:
    """P, where so many programs are there anyway, for rows of so many places at most."""
    blocks = pl.cdiv(places, _keys_of_a_block(keys))
    wanted = max(PROGRAMS // programs, pl.cdiv(blocks, MOST_BLOCKS))
    return min(wanted, blocks, MOST_PARTS)


def _keys_of_a_block(keys: jax.Array) -> int:
    """Places of a block of keys."""
    return min(KEYS, KEY_BYTES // (keys.shape[-1] * keys.dtype.itemsize))


def _join(out: jax.Array, highest: jax.Array, total: jax.Array) -> jax.Array:
    """The results of the parts of a tile, [P, T, G, R, ...], as one."""
    scale = jnp.exp(highest - jnp.max(highest, axis=0, keepdims=True))
    total = jnp.sum(scale * total, axis=0)
    return jnp.sum(scale[..., None] * out, axis=0) / total[..., None]


def _kernel(
    layer_ref, tiles_ref, positions_ref, pages_ref, q_ref, k_ref, v_ref, *refs,
    width, parts, has_tree,
):  # fmt: skip
    tree, (out_ref, *found) = (refs[:2], refs[2:]) if has_tree else ((), refs)
    _, _, shared, head_dim = q_ref.shape
    num_pages, size = k_ref.shape[1], k_ref.shape[3]
    max_pages = pages_ref.shape[1]
    group, part, layer = pl.program_id(1), pl.program_id(2), layer_ref[0]
    first, count, row, num_places = (tiles_ref[pl.program_id(0), column] for column in range(4))

    line = jnp.arange(max(16, pl.next_power_of_2(width * shared)), dtype=jnp.int32)
    member, head = line // shared, line % shared
    token, is_in = first + member, member < count
    position = triton.load(positions_ref.at[token], mask=is_in, other=-1)
    is_seen = _is_seen(*tree, token, is_in) if tree else lambda place: place <= position[:, None]
    # An array for every axis of what is read: a slice is not possible in all modes of Pallas.
    lane = jnp.arange(head_dim, dtype=jnp.int32)[None]
    q = triton.load(
        q_ref.at[token[:, None], group, head[:, None], lane], mask=is_in[:, None], other=0
    )

    keys = _keys_of_a_block(k_ref)
    num_blocks = (num_places + keys - 1) // keys
    share = (num_blocks + parts - 1) // parts
    scale = math.log2(math.e) / math.sqrt(head_dim)  # powers of two are what the chip has
    product = functools.partial(
        jax.lax.dot_general,
        precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )

    def visit(i, carry):
        out, highest, sums = carry
        place = i * keys + jnp.arange(keys, dtype=jnp.int32)
        is_there = place < num_places
        nth = jnp.minimum(place // size, max_pages - 1)
        page = triton.load(pages_ref.at[row, nth], mask=is_there, other=0)
        page = jnp.minimum(page, num_pages - 1)
        at = (layer, page[:, None], group, (place % size)[:, None], lane)
        k = triton.load(k_ref.at[at], mask=is_there[:, None], other=0)
        v = triton.load(v_ref.at[at], mask=is_there[:, None], other=0)
        scores = product(q, k, (((1,), (1,)), ((), ()))) * scale
        scores = jnp.where(is_seen(place[None]), scores, LOW)
        new = jnp.maximum(highest, jnp.max(scores, axis=1))
        kept, share = jnp.exp2(highest - new), jnp.exp2(scores - new[:, None])
        sums = sums * kept + jnp.sum(share, axis=1)
        seen = product(share.astype(v.dtype), v, (((1,), (0,)), ((), ())))
        return out * kept[:, None] + seen, new, sums

    start = (
        jnp.zeros((line.shape[0], head_dim), jnp.float32),
        jnp.full(line.shape, LOW, jnp.float32),
        jnp.zeros(line.shape, jnp.float32),
    )
    begin = part * share
    out, highest, sums = jax.lax.fori_loop(
        begin, jnp.minimum(begin + share, num_blocks), visit, start
    )
    if not found:
        out = out / sums[:, None]
    at = (part, token[:, None], group, head[:, None], lane)
    triton.store(out_ref.at[at], out.astype(out_ref.dtype), mask=is_in[:, None])
    for ref, value in zip(found, (highest * math.log(2), sums), strict=False):
        triton.store(ref.at[part, token, group, head], value, mask=is_in)


def _words(nodes: jax.Array) -> jax.Array:
    """int32[T, W] of bool[T, N] nodes: bit i of word w is node 32 w + i."""
    total, max_nodes = nodes.shape
    padded = jnp.pad(nodes, ((0, 0), (0, -max_nodes % WORD))).reshape(total, -1, WORD)
    bits = padded.astype(jnp.int32) << jnp.arange(WORD, dtype=jnp.int32)[None, None]
    return jnp.sum(bits, axis=-1, dtype=jnp.int32)


def _is_seen(start_ref, words_ref, token, is_in):
    """Whether the tokens of the lines attend to places [1, C], of trees."""
    start = triton.load(start_ref.at[token], mask=is_in, other=0)[:, None]
    # In registers: nothing is loaded for each place.
    words = [
        triton.load(words_ref.at[token, word], mask=is_in, other=0)[:, None]
        for word in range(words_ref.shape[1])
    ]

    def is_seen(place):
        node = place - start
        seen = node < 0
        for nth, word in enumerate(words):
            bit = node - nth * WORD
            is_set = (word >> (bit & (WORD - 1))) & 1
            seen |= (bit >= 0) & (bit < WORD) & (is_set > 0)
        return seen

    return is_seen
