"""The metadata of attention over several query tokens of each row.

Letters: N rows, T places of the result.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import INT32_MAX, check_array, check_bool, check_int
from jax_sa._targets import result_type, target_name
from jax_sa._vmap import refuse_vmap

INSTEAD_OF_VMAP = "give it the rows of all batches, one batch after the other"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpandedSeqlens:
    """The query tokens of N rows, one row after the other."""

    values: jax.Array
    """int32[T] for each query token, the tokens of its row up to and including it; the fill from
    `required` on."""
    required: jax.Array
    """int32[] query tokens of all rows together, at most 2**31 - 1; more than T if some found no
    room."""
    offsets: jax.Array | None
    """int32[N + 1] query tokens of the rows before each row, the last entry being `required`; not
    cut off at T. None unless asked for."""
    row_ids: jax.Array | None
    """int32[T] the row of each query token; N from `required` on, an index that JAX's scatters and
    segment sums drop. None unless asked for."""


def expand_seqlens(
    kv_lens: jax.Array,
    q_lens: jax.Array | int,
    *,
    total: int,
    fill: int = 0,
    return_offsets: bool = False,
    return_row_ids: bool = False,
) -> ExpandedSeqlens:
    """How far each query token sees: row i contributes kv_i - q_i + 1, ..., kv_i.

    With q an int it is what a step needs that verifies drafts of one length; with q per row, what
    one needs whose rows have different numbers of new tokens, or none. In that mode it is one
    kernel launch. In the first, and for a single row, it is plain jnp: one fusion on a GPU, which
    takes no longer than the kernel, and which XLA may join with what is around it.

    Args:
      kv_lens: int32[N] tokens of each row, its query tokens included. Values that would be below 0
        are 0.
      q_lens: query tokens of each row, int32[N], of which negative ones count as 0; or an int for
        all rows.
      total: T, the length of the result; query tokens beyond it are left out, and `required` says
        how many places there should have been.
      fill: int32, what the places hold that no query token takes.
      return_offsets: whether to return `offsets`.
      return_row_ids: whether to return `row_ids`.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape, dtype or value.
    """
    (rows,) = check_array("kv_lens", kv_lens, jnp.int32, ("N",))
    total = check_int("total", total, 0)
    fill = check_int("fill", fill, -INT32_MAX - 1)
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
    """One call of the target, which leaves out results without elements."""
    sizes = ((total,), (), ((kv_lens.shape[0] + 1) * offsets,), (total * row_ids,))
    results = [result_type(kv_lens, size) for size in sizes]
    call = jax.ffi.ffi_call(target_name("expand_seqlens"), results)
    operands = refuse_vmap("expand_seqlens", INSTEAD_OF_VMAP, [kv_lens, q_lens])
    return ExpandedSeqlens(*call(*operands, fill=fill))


def _expand_one(kv_lens: Any, q_lens: Any, total: int, fill: int) -> ExpandedSeqlens:
    """The only row begins at place 0, so no row has to be found."""
    required = jnp.maximum(jnp.asarray(q_lens), 0)
    place = jnp.arange(total, dtype=jnp.int32)
    value = jnp.maximum(jnp.maximum(jnp.asarray(kv_lens), 0) - (required - 1 - place), 0)
    values = jnp.where(place < required, value, fill)
    row_ids = (place >= required).astype(jnp.int32)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), required])
    return ExpandedSeqlens(values, required[0], offsets, row_ids)


def _expand_uniform(kv_lens: Any, q_len: int, total: int, fill: int) -> ExpandedSeqlens:
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
