"""Copies into the beginnings of many persistent buffers at once."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._call import Argument, call
from jax_sa._checks import check_array, check_int
from jax_sa._dtypes import has_whole_bytes
from jax_sa._target import WHOLE, Result

_FILL_BYTES = 16
"""The bytes of a fill that the target gets; an item of any dtype fits a whole number of times."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copied:
    """The result of a copy."""

    destinations: Any
    """The updated destinations, in the structure they were given in."""
    clamped: jax.Array
    """bool[leaves], one for each destination in the order of `jax.tree.leaves`. True where `rows`
    or `columns` came from the device and were negative or more than both arrays have: then less or
    more was copied than was asked for."""


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

    `destination[:rows]`, or `destination[:rows, :columns]` of a matrix, is overwritten with the
    same part of the source. The destinations are updated in place where they are donated or
    carried by a loop. One launch takes 24 tensors; more take a launch for each 24.

    `rows`, `columns`, `extra_rows` and `fill` are each one value for all leaves, or a pytree of
    values with a prefix of the destinations' structure.

    Args:
      destinations: a pytree of arrays of one or two axes and any dtype of whole bytes. As in every
        pytree of JAX, None in it is an empty place, not a leaf.
      sources: arrays in the same structure, of the same dtypes and numbers of axes. One array may
        be the source of several destinations.
      rows: the number of rows (elements, of one axis) to copy: an int; int32[] on the device, so
        that one compiled program serves all sizes; or None for all that the source has.
      columns: likewise the number of columns to copy. It concerns matrices only.
      extra_rows: an int, the rows that a leaf has beyond `rows`; cumulative lengths have one.
        Without effect where `rows` is None.
      fill: the number that everything beyond the copied part is set to, known at trace time and
        rounded to the dtype. None keeps what is there.

    Raises:
      ValueError, TypeError: at trace time, naming the leaf: the structures, shapes or dtypes do
        not match, a static size is more than an array has, the dtype does not hold the fill (an
        integer out of its range, or an infinity or NaN that it lacks), the fill is traced, or an
        array is a destination twice or also a source.
      JaxRuntimeError: on a GPU, at run time, for more than 2**31 rows or pieces of 4 KB, or for
        rows of more than 2**32 words. A word is the 1 to 16 bytes to which all rows are aligned.
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

    scalars: list[jax.Array] = []
    plans = [
        _plan(*leaf, scalars)
        for leaf in zip(
            names,
            from_,
            to,
            _per_leaf("rows", rows, destinations),
            _per_leaf("columns", columns, destinations),
            _per_leaf("extra_rows", extra_rows, destinations),
            _per_leaf("fill", fill, destinations),
            strict=True,
        )
    ]
    arguments = [
        *(Argument("rows or columns", WHOLE, scalar) for scalar in scalars),
        *(Argument(f"sources{name}", WHOLE, x) for name, x in zip(names, from_, strict=True)),
        *(Argument(f"destinations{name}", WHOLE, x) for name, x in zip(names, to, strict=True)),
    ]
    updated = range(len(arguments) - len(to), len(arguments))
    clamped = Result(WHOLE, (len(to),), jnp.bool_)
    outputs = call("fused_copy", WHOLE, arguments, [*updated, clamped], _attributes(plans))
    return Copied(jax.tree.unflatten(structure, outputs[:-1]), outputs[-1])


def _per_leaf(argument: str, values: Any, destinations: Any) -> list[Any]:
    """The value of an argument for each leaf of the destinations."""
    result: list[Any] = []
    try:
        jax.tree.map(
            lambda value, part: result.extend([value] * len(jax.tree.leaves(part))),
            values,
            destinations,
            is_leaf=_is_none,
        )
    except (ValueError, TypeError):
        raise ValueError(
            f"{argument}: expected one value or a prefix of {jax.tree.structure(destinations)}, "
            f"got {jax.tree.structure(values)}"
        ) from None
    return result


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The work on one leaf, as the target's attributes say it."""

    max_rows: int
    """Rows to copy; where the device says how many, the most that it may say."""
    max_columns: int
    """Columns likewise; 1 for a leaf of one axis."""
    rows_scalar: int
    """Index of the operand that says how many rows; -1 for none."""
    columns_scalar: int
    """Index of the operand that says how many columns; -1 for none."""
    extra_rows: int
    """Rows to copy beyond the number in that operand."""
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
    """The most that is copied of an axis, and the index of the scalar that says how much, or -1."""
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


def _attributes(plans: Sequence[_Plan]) -> dict[str, tuple[int, ...]]:
    """The plans as the target's attributes."""
    columns = zip(*map(dataclasses.astuple, plans), strict=True)
    return {
        field.name: tuple(np.array(column, np.int64).ravel().tolist())
        for field, column in zip(dataclasses.fields(_Plan), columns, strict=True)
    }


def _fill_words(name: str, fill: Any, dtype: Any) -> tuple[int, int]:
    """The bytes of a fill, repeated to 16 bytes."""
    expected = f"fill: expected a number that {dtype} of destinations{name} holds, got {fill!r}"
    if isinstance(fill, jax.core.Tracer):
        raise TypeError(f"{expected}: its value must be known when the call is traced")
    value = np.asarray(fill)
    number = value.item() if value.ndim == 0 else None
    if not isinstance(number, bool | int | float | complex):
        raise TypeError(expected)
    if isinstance(number, complex) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(expected)
    item = _as_item(number, dtype)
    if item is None:
        raise ValueError(expected)
    low, high = np.frombuffer(item.tobytes() * (_FILL_BYTES // item.itemsize), np.int64)
    return int(low), int(high)


def _as_item(number: complex, dtype: Any) -> np.ndarray | None:
    """The number in a dtype; None where the dtype has no such number, even rounded."""
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer):
        low, high = (0, 1) if dtype == jnp.bool_ else _integer_range(dtype)
        in_range = low <= number <= high and number == int(number)
        return np.array(int(number)).astype(dtype) if in_range else None
    try:
        exact = complex(number)
    except OverflowError:  # an int beyond every float
        return None
    with np.errstate(all="ignore"):
        item = np.array(exact if jnp.issubdtype(dtype, jnp.complexfloating) else exact.real)
        item = item.astype(dtype)
    rounded = complex(item.item())
    same = _same_kind(rounded.real, exact.real) and _same_kind(rounded.imag, exact.imag)
    return item if same else None


def _integer_range(dtype: Any) -> tuple[int, int]:
    info = jnp.iinfo(dtype)
    return int(info.min), int(info.max)


def _same_kind(a: float, b: float) -> bool:
    """Whether both are finite, both NaN, or both the same infinity."""
    if math.isfinite(a) or math.isfinite(b):
        return math.isfinite(a) and math.isfinite(b)
    return a == b or (math.isnan(a) and math.isnan(b))


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
    if not isinstance(dtype, np.dtype) or not has_whole_bytes(dtype):
        raise TypeError(f"destinations{name}: expected a dtype of whole bytes, got {dtype}")
    check_array(f"sources{name}", source, dtype, ("R", "C")[: destination.ndim])


def _check_overlap(names: list[str], sources: list[Any], destinations: list[Any]) -> None:
    """Refuses an array that is written twice or both read and written: its order is undefined."""
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
