"""The lengths that attention needs where each row has several query tokens.

Letters: N rows, T places in the result.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._call import Argument, call
from jax_sa._checks import INT32_MAX, INT32_MIN, check_array, check_bool, check_int
from jax_sa._target import WHOLE, Result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpandedSeqlens:
    """The query tokens of N rows, one row after the other."""

    values: jax.Array
    """int32[T] the number of tokens of its row up to and including each query token. Places from
    `required` on hold the fill."""
    required: jax.Array
    """int32[] the query tokens of all rows together, at most 2**31 - 1. More than T where some
    found no place."""
    offsets: jax.Array | None
    """int32[N + 1] the number of query tokens in the rows before each row, not cut off at T. The
    last entry is `required`. None unless asked for."""
    row_ids: jax.Array | None
    """int32[T] the row of each query token. Places from `required` on hold N, an index that JAX's
    scatters and segment sums drop. None unless asked for."""


def expand_seqlens(
    kv_lens: jax.Array,
    q_lens: jax.Array | int,
    *,
    total: int,
    fill: int = 0,
    return_offsets: bool = False,
    return_row_ids: bool = False,
) -> ExpandedSeqlens:
    """Number of keys that each query token sees: kv - q + 1, ..., kv in a row of kv keys.

    The rows follow each other in the result. `q_lens` is one int where a step verifies drafts of
    one length, and an array where rows have different numbers of new tokens, or none. With an
    array the op is one kernel launch. With an int, or a single row, it is plain jnp: one fusion on
    a GPU, no slower than the kernel, and XLA may join it with the operations around it.

    Args:
      kv_lens: int32[N] keys of each row, those of its query tokens included. Values of the result
        that would be below 0 are 0.
      q_lens: query tokens of each row: int32[N], whose negative entries count as 0, or an int for
        all rows.
      total: T, the length of the result. Query tokens beyond it are left out; `required` is the T
        that would have held them all.
      fill: int32, the value of the places that no query token takes.
      return_offsets: whether to return `offsets`.
      return_row_ids: whether to return `row_ids`.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape, dtype or value.
    """
    (rows,) = check_array("kv_lens", kv_lens, jnp.int32, ("N",))
    total = check_int("total", total, 0)
    fill = check_int("fill", fill, INT32_MIN)
    return_offsets = check_bool("return_offsets", return_offsets)
    return_row_ids = check_bool("return_row_ids", return_row_ids)
    if isinstance(q_lens, jax.Array | np.ndarray):
        check_array("q_lens", q_lens, jnp.int32, (rows,))
        if rows == 1:
            expanded = _expand_one(kv_lens, q_lens, total, fill)
        else:
            expanded = _expand(kv_lens, q_lens, total, fill, return_offsets, return_row_ids)
    else:
        expanded = _expand_uniform(kv_lens, check_int("q_lens", q_lens, 0), total, fill)
    return dataclasses.replace(
        expanded,
        offsets=expanded.offsets if return_offsets else None,
        row_ids=expanded.row_ids if return_row_ids else None,
    )


def _expand(
    kv_lens: Any, q_lens: Any, total: int, fill: int, offsets: bool, row_ids: bool
) -> ExpandedSeqlens:
    """One call of the target, which skips results without elements."""
    sizes = ((total,), (), ((kv_lens.shape[0] + 1) * offsets,), (total * row_ids,))
    results = [Result(WHOLE, size) for size in sizes]
    arguments = [Argument("kv_lens", WHOLE, kv_lens), Argument("q_lens", WHOLE, q_lens)]
    return ExpandedSeqlens(*call("expand_seqlens", WHOLE, arguments, results, {"fill": fill}))


def _expand_one(kv_lens: Any, q_lens: Any, total: int, fill: int) -> ExpandedSeqlens:
    """A single row in plain jnp: it begins at place 0, so no place has to find its row."""
    required = jnp.maximum(jnp.asarray(q_lens), 0)
    place = jnp.arange(total, dtype=jnp.int32)
    value = jnp.maximum(jnp.maximum(jnp.asarray(kv_lens), 0) - (required - 1 - place), 0)
    values = jnp.where(place < required, value, fill)
    row_ids = (place >= required).astype(jnp.int32)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), required])
    return ExpandedSeqlens(values, required[0], offsets, row_ids)


def _expand_uniform(kv_lens: Any, q_len: int, total: int, fill: int) -> ExpandedSeqlens:
    """Rows of one query length in plain jnp: a place finds its row by a division."""
    rows = kv_lens.shape[0]
    offsets = np.minimum(np.arange(rows + 1, dtype=np.int64) * q_len, INT32_MAX).astype(np.int32)
    required = offsets[-1]
    place = jnp.arange(total, dtype=jnp.int32)
    if required == 0 or total == 0:
        values, row_ids = jnp.full(total, fill, jnp.int32), jnp.full(total, rows, jnp.int32)
    else:
        row = jax.lax.div(place, jnp.int32(q_len))
        still_to_come = (q_len - 1) - jax.lax.rem(place, jnp.int32(q_len))
        last = jnp.asarray(kv_lens).at[row].get(mode="clip")
        # Clamped before the subtraction, which could otherwise wrap around.
        value = jnp.maximum(jnp.maximum(last, 0) - still_to_come, 0)
        values = jnp.where(place < required, value, fill)
        row_ids = jnp.where(place < required, row, rows)
    return ExpandedSeqlens(values, jnp.asarray(required), jnp.asarray(offsets), row_ids)
