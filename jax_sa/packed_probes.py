"""The probes of a packed model, which is made one of blocks [B, T] for `jax_sa.model_probes`.

Letters: B rows, C capacity of a row, T places of a flat block, R places whose logits are read, V
vocabulary. What only a flat block has is probed here: rows with different numbers of tokens, and
padding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.cache_schema import claim_blocks
from jax_sa.draft import DRAFT_FILL
from jax_sa.model_contract import check_same_arrays
from jax_sa.model_probes import BLOCK, TEXT, Broken, Probed, Words

OF_FLAT_BLOCKS = Words(
    "jax_sa.PackedDecoder",
    "positions[t]",
    "rows and positions",
    "Write token t at positions[t] of row rows[t], and mask it by these.",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockCache:
    """The cache of a packed model, with the length that the probes set."""

    length: jax.Array
    """int32[B]."""
    packed: Any
    """The model's."""

    def move(self, start: jax.Array, path: jax.Array) -> "BlockCache":
        """The path of a tree in order."""
        return dataclasses.replace(self, packed=self.packed.move(start, path))


@dataclasses.dataclass(frozen=True)
class BlockModel:
    """A packed model as one of blocks [B, T]."""

    model: Callable[..., Any]

    def read(
        self,
        params: Any,
        tokens: jax.Array,
        rows: jax.Array,
        positions: jax.Array,
        cache: Any,
        places: jax.Array,
        *tree: Any,
    ) -> tuple[jax.Array, Any]:
        """Logits [R, V] of places int32[R] of a flat block, and the cache."""
        logits, cache = self.model(params, tokens, rows, positions, cache, *tree)
        return logits(places) if callable(logits) else logits[places], cache

    def __call__(
        self, params: Any, tokens: jax.Array, cache: BlockCache, *tree: Any
    ) -> tuple[jax.Array, BlockCache]:
        """Logits [B, T, V] of a block, and the cache with it."""
        rows, width = tokens.shape
        column = jnp.arange(width, dtype=jnp.int32)[None]
        row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], tokens.shape)
        of = [x.reshape(-1) for x in (tokens, row, cache.length[:, None] + column)]
        places = jnp.arange(tokens.size, dtype=jnp.int32)
        tree = jax.tree.map(lambda x: x.reshape(tokens.size, *x.shape[2:]), tree)
        logits, packed = self.read(params, *of, cache.packed, places, *tree)
        logits = logits.reshape(rows, width, -1)
        return logits, dataclasses.replace(cache, packed=packed)


def with_pages(cache: Any, rows: int, capacity: int) -> BlockCache:
    """The cache of a packed model; if it has pages, each row gets those for C tokens.

    Raises:
      ValueError: there are too few.
    """
    length = jnp.zeros(rows, jnp.int32)
    if (table := getattr(cache, "block_table", None)) is None:
        return BlockCache(length, cache)
    table, granted = claim_blocks(table, jnp.concatenate([length[:1], length + capacity]))
    if not granted.all():
        raise ValueError(f"cache.block_table: expected pages for {capacity} tokens in {rows} rows")
    return BlockCache(length, dataclasses.replace(cache, block_table=table))


def check_flat_shapes(probed: Probed) -> None:
    """Probes the clause `shapes`."""
    cache = probed.make_cache().packed
    try:
        for width in (1, BLOCK):
            total = probed.rows * width
            flat = jax.ShapeDtypeStruct((total,), jnp.int32)
            given = probed.params, flat, flat, flat, cache, flat
            logits, returned = jax.eval_shape(probed.model.read, *given)
            check_same_arrays(returned, cache)
            if logits.ndim != 2 or logits.shape[0] != total:
                raise Broken(
                    f"logits: expected [T, V] = [{total}, V], or a function that maps places "
                    f"int32[R] to [R, V], got {logits.dtype}{list(logits.shape)}."
                )
    except (TypeError, ValueError, IndexError) as error:
        raise Broken(str(error)) from error
    probed.take_vocabulary(logits)


def check_layout(probed: Probed) -> None:
    """Probes the clause `layout`."""
    block, expected = _ragged_block(probed)
    backwards = np.arange(expected.shape[0])[::-1]
    logits, _ = _read(probed, block, probed.after(probed.text(TEXT), TEXT // 2), backwards)
    if probed.differ(logits[::-1], expected):
        raise Broken(
            "Logits are wrong in a block whose rows have different numbers of tokens, from "
            "positions of their own. Take nothing from T or the place of a token, but rows and "
            "positions; and where logits are a function, give those of places[r], in that order."
        )


def check_padding(probed: Probed) -> None:
    """Probes the clause `padding`."""
    block, expected = _ragged_block(probed)
    padding = np.full((BLOCK, 3), (DRAFT_FILL, probed.rows, 0), np.int32)
    padded = np.concatenate([block, padding])
    before = probed.after(probed.text(TEXT), TEXT // 2)
    logits, cache = _read(probed, padded, before, np.arange(len(block)))
    ends = np.flatnonzero(np.diff(block[:, 1], append=probed.rows))
    after = block[ends] + np.asarray([[0, 0, 1]])
    after[:, 0] = probed.text(TEXT)[after[:, 1], after[:, 2]]
    next_logits, _ = _read(probed, after, cache, np.arange(len(after)))
    next_expected = probed.truth[after[:, 1], after[:, 2]]
    if probed.differ(logits, expected) or probed.differ(next_logits, next_expected):
        raise Broken(
            "A place with rows[t] == B is padding, but what it holds is written to a row, or seen. "
            'Write with .at[rows, positions].set(..., mode="drop"), and do not clip rows before.'
        )


def _ragged_block(probed: Probed) -> tuple[np.ndarray, np.ndarray]:
    """int32[T, 3] tokens, rows and positions, and their logits [T, V].

    Each row has another number of tokens than the next, and begins at another position.
    """
    row = np.arange(probed.rows)
    starts, counts = TEXT // 2 - row % 2, np.asarray([BLOCK, 1, BLOCK - 1, 2])[row % 4]
    rows = np.repeat(row, counts)
    positions = np.concatenate([s + np.arange(n) for s, n in zip(starts, counts, strict=True)])
    tokens = probed.text(TEXT)[rows, positions]
    block = np.stack([tokens, rows, positions], axis=1).astype(np.int32)
    return block, probed.truth[rows, positions]


def _read(
    probed: Probed, block: np.ndarray, cache: BlockCache, places: np.ndarray
) -> tuple[np.ndarray, BlockCache]:
    """Logits [R, V] of places of int32[T, 3] tokens, rows and positions, and the cache."""
    of = (jnp.asarray(column) for column in block.T)
    places = jnp.asarray(places, jnp.int32)
    logits, packed = jax.jit(probed.model.read)(probed.params, *of, cache.packed, places)
    return np.asarray(logits, np.float32), dataclasses.replace(cache, packed=packed)
