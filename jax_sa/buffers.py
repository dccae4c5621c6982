"""Copies into the prefixes of many persistent buffers at once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_array, check_int
from jax_sa._targets import result_type, target_name
from jax_sa._vmap import refuse_vmap

INSTEAD_OF_VMAP = "give it all copies as leaves of one pytree"

_FILL_BYTES = 16
"""What the target is given of a fill: any item fits a whole number of times."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copied:
    """What a copy left behind."""

    destinations: Any
    """The updated destinations, in the structure they were given in."""
    clamped: jax.Array
    """bool[leaves] for each destination, in the order of `jax.tree.leaves`: whether rows or
    columns from the device were negative or more than both arrays have, so that other than asked
    for was copied."""


def fused_copy(
    destinations: Any,
    sources: Any,
    *,
    rows: Any = None,
    columns: Any = None,
    extra_rows: Any = 0,
    fill: Any = None,
) -> Copied:
    """Copies each source into the beginning of its destination, all in one kernel launch.

    `destination[:rows]` or, of a matrix, `destination[:rows, :columns]` is overwritten with the
    same part of the source. The destinations are updated in place where they are donated or
    carried by a loop. (Of more than 24 tensors, each 24 take a launch.)

    `rows`, `columns`, `extra_rows` and `fill` are each one value for all leaves, or a pytree of
    values with a prefix of the destinations' structure.

    Args:
      destinations: a pytree of arrays of one or two axes and any dtype of whole bytes.
      sources: arrays in the same structure, of the same dtypes and numbers of axes. One array may
        be the source of several destinations.
      rows: how many rows (elements, of one axis) are copied: an int; int32[] on the device, so
        that one compiled program serves all sizes; or None, all that the source has.
      columns: likewise how many columns. It concerns matrices only.
      extra_rows: how many rows more a leaf has than `rows` says, as cumulative lengths have one.
        Without effect where `rows` is None.
      fill: the number that what lies beyond the copied part is set to. None keeps it.

    Raises:
      ValueError, TypeError: at trace time, naming the leaf: the structures, shapes or dtypes do
        not match, a static size is more than an array has, a fill is not in the dtype, or an array
        is a destination twice or also a source.
      JaxRuntimeError: on a GPU, at run time, for more than 2**31 rows or pieces of 4 KB, or for
        rows of more than 2**32 words, of the 1 to 16 bytes to which all rows are aligned.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(destinations)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    to = [leaf for _, leaf in paths]
    from_ = _flatten_sources(sources, names, structure)
    for name, source, destination in zip(names, from_, to, strict=True):
        _check_pair(name, source, destination)
    _check_overlap(names, from_, to)
    if not to:
        return Copied(destinations, jnp.zeros(0, bool))

    def per_leaf(argument: str, values: Any) -> list[Any]:
        try:
            return jax.tree.leaves(
                jax.tree.broadcast(values, destinations, is_leaf=_is_none), is_leaf=_is_none
            )
        except ValueError:
            raise ValueError(
                f"{argument}: expected one value or a prefix of {structure}, "
                f"got {jax.tree.structure(values)}"
            ) from None

    scalars: list[jax.Array] = []
    plans = [
        _plan(*leaf, scalars)
        for leaf in zip(
            names,
            from_,
            to,
            per_leaf("rows", rows),
            per_leaf("columns", columns),
            per_leaf("extra_rows", extra_rows),
            per_leaf("fill", fill),
            strict=True,
        )
    ]
    outputs = jax.ffi.ffi_call(
        target_name("fused_copy"),
        [*map(jax.typeof, to), result_type(to[0], (len(to),), jnp.bool_)],
        input_output_aliases={len(scalars) + len(to) + i: i for i in range(len(to))},
    )(*refuse_vmap("fused_copy", INSTEAD_OF_VMAP, [*scalars, *from_, *to]), **_attributes(plans))
    return Copied(jax.tree.unflatten(structure, outputs[:-1]), outputs[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayMetadata:
    """What a decode step reads besides weights and cache, for B rows.

    A compiled step reads it from buffers as large as its largest batch; each batch is copied into
    their beginning. Where a row has several query tokens, `input_ids`, `out_loc` and `positions`
    have an axis for them.
    """

    input_ids: Any
    """int32[B] or [B, Q] the tokens to process."""
    out_loc: Any
    """int32[B] or [B, Q] where in the cache their keys and values go."""
    cu_seqlens_k: Any
    """int32[B + 1] cumulative sequence lengths, from 0 on."""
    positions: Any
    """int32[B] or [B, Q] their positions in their texts."""
    seq_lens: Any
    """int32[B] sequence lengths."""
    page_table: Any
    """int32[B, P] pages of each row's cache."""


def copy_replay_metadata(
    buffers: ReplayMetadata,
    batch: ReplayMetadata,
    *,
    rows: jax.Array | int | None = None,
    pages: jax.Array | int | None = None,
    fill: Any = None,
) -> Copied:
    """Copies a batch's metadata into the buffers that a compiled decode step reads.

    Args:
      buffers: as large as the largest batch; `page_table` may have more columns than the batch's.
      batch: as large or, with `rows` and `pages` from the device, larger than what is copied.
      rows: B, as in `fused_copy`; of `cu_seqlens_k`, B + 1 are copied.
      pages: columns of `page_table` to copy, as in `fused_copy`.
      fill: as in `fused_copy`.

    Raises:
      ValueError, TypeError: as `fused_copy`.
    """
    none = ReplayMetadata(*[None] * 6)
    zero = ReplayMetadata(*[0] * 6)
    return fused_copy(
        buffers,
        batch,
        rows=rows,
        columns=dataclasses.replace(none, page_table=pages),
        extra_rows=dataclasses.replace(zero, cu_seqlens_k=1),
        fill=fill,
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is done to one leaf, as the target's attributes say it."""

    max_rows: int
    """Rows that are copied, or at most if the device says how many."""
    max_columns: int
    """Likewise; 1 for a leaf of one axis."""
    rows_scalar: int
    """Which operand says how many rows; -1: none."""
    columns_scalar: int
    extra_rows: int
    """Rows beyond what that operand says."""
    fills: int
    """1, or 0 if what lies beyond the copied part is kept."""
    fill_words: tuple[int, int]
    """The fill's bytes."""


def _plan(
    name: str,
    source: Any,
    destination: Any,
    rows: Any,
    columns: Any,
    extra_rows: Any,
    fill: Any,
    scalars: list[jax.Array],
) -> _Plan:
    extra_rows = check_int(f"extra_rows of {name}" if name else "extra_rows", extra_rows, 0)
    if rows is None:
        extra_rows = 0
    max_rows, rows_scalar = _plan_axis(
        "rows", name, rows, extra_rows, source.shape[0], destination.shape[0], scalars
    )
    max_columns, columns_scalar = (1, -1)
    if source.ndim == 2:
        max_columns, columns_scalar = _plan_axis(
            "columns", name, columns, 0, source.shape[1], destination.shape[1], scalars
        )
    return _Plan(
        max_rows,
        max_columns,
        rows_scalar,
        columns_scalar,
        extra_rows,
        int(fill is not None),
        (0, 0) if fill is None else _fill_words(name, fill, destination.dtype),
    )


def _plan_axis(
    axis: str,
    name: str,
    asked: Any,
    extra: int,
    source_size: int,
    destination_size: int,
    scalars: list[jax.Array],
) -> tuple[int, int]:
    """How much of an axis is copied at most, and which scalar says how much, -1 for none."""
    both = min(source_size, destination_size)
    if asked is None:
        if source_size > destination_size:
            raise ValueError(
                f"sources{name}: expected at most the destination's {destination_size} {axis}, "
                f"got {source_size}"
            )
        return source_size, -1
    if not isinstance(asked, jax.Array):
        size = check_int(axis, asked, 0) + extra
        if size > both:
            raise ValueError(
                f"{axis}: expected at most what sources{name} and destinations{name} both have, "
                f"{both}, got {size}"
            )
        return size, -1
    check_array(axis, asked, jnp.int32, ())
    known = [i for i, scalar in enumerate(scalars) if scalar is asked]
    if not known:
        scalars.append(asked)
    return both, known[0] if known else len(scalars) - 1


def _attributes(plans: Sequence[_Plan]) -> dict[str, np.ndarray]:
    """Always these types, because XLA compares them by value only."""
    return {
        field.name: np.array([getattr(plan, field.name) for plan in plans], np.int64).ravel()
        for field in dataclasses.fields(_Plan)
    }


def _fill_words(name: str, fill: Any, dtype: Any) -> tuple[int, int]:
    """The fill over and over, in 16 bytes."""
    value = np.asarray(fill)
    expected = f"fill: expected a number that {dtype} of destinations{name} holds, got {fill!r}"
    if value.ndim != 0 or value.dtype.kind not in "biufc":
        raise TypeError(expected)
    if value.dtype.kind == "c" and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(expected)
    with np.errstate(all="ignore"):
        item = value.astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_:
        holds = item.astype(value.dtype) == value
    else:
        holds = np.isfinite(item.astype(complex)) == np.isfinite(value)
    if not holds:
        raise ValueError(expected)
    low, high = np.frombuffer(item.tobytes() * (_FILL_BYTES // item.itemsize), np.int64)
    return int(low), int(high)


def _flatten_sources(sources: Any, names: list[str], structure: Any) -> list[Any]:
    paths, got = jax.tree_util.tree_flatten_with_path(sources)
    if got != structure:
        others = [jax.tree_util.keystr(path) for path, _ in paths]
        unpaired = sorted(set(names).symmetric_difference(others))
        where = f" (differing at {', '.join(map(repr, unpaired))})" if unpaired else ""
        raise ValueError(
            f"sources: expected the structure of destinations, {structure}, got {got}{where}"
        )
    return [leaf for _, leaf in paths]


def _check_pair(name: str, source: Any, destination: Any) -> None:
    if not isinstance(destination, jax.Array):
        raise TypeError(
            f"destinations{name}: expected a jax.Array, got {type(destination).__name__}"
        )
    dtype = destination.dtype
    if destination.ndim not in (1, 2):
        raise ValueError(
            f"destinations{name}: expected one or two axes, got {dtype}{list(destination.shape)}"
        )
    if not isinstance(dtype, np.dtype) or not _has_whole_bytes(dtype):
        raise TypeError(f"destinations{name}: expected a dtype of whole bytes, got {dtype}")
    check_array(f"sources{name}", source, dtype, ("R", "C")[: destination.ndim])


def _has_whole_bytes(dtype: np.dtype) -> bool:
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits % 8 == 0
    return not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits % 8 == 0


def _check_overlap(names: list[str], sources: list[Any], destinations: list[Any]) -> None:
    """The same array cannot be written twice, or be read and written: the result would be open."""
    owner: dict[int, str] = {}
    for name, destination in zip(names, destinations, strict=True):
        other = owner.setdefault(id(destination), name)
        if other != name:
            raise ValueError(
                f"destinations{name}: overlapping buffers: expected an array of its own, "
                f"got that of destinations{other}"
            )
    for name, source in zip(names, sources, strict=True):
        if id(source) in owner:
            raise ValueError(
                f"sources{name}: overlapping buffers: expected an array that is no destination, "
                f"got that of destinations{owner[id(source)]}"
            )


def _is_none(value: Any) -> bool:
    return value is None
