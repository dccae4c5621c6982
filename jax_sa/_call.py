"""Calls a target: the one place that every op with a handler goes through.

`call` checks what is known of shardings while it traces, `_vmap.py` joins the calls of a vmapped
axis, `_partition.py` splits a call over devices, and `_target.py` calls the handler.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jax_sa import _partition, _vmap
from jax_sa._target import ROW_AXIS, Operand, Result, Role, Target


class Argument(NamedTuple):
    """An operand and its value."""

    name: str
    """For messages, such as "state.tokens"."""
    role: Role
    value: Any
    """The array; None where there is none, which a handler gets as an array without elements."""
    rank: int = 1
    """The axes of that array."""


def leaves_of(name: str, role: Role, table: Any) -> list[Argument]:
    """The arrays of a dataclass, all with the same role."""
    fields = dataclasses.fields(table)
    return [Argument(f"{name}.{field.name}", role, getattr(table, field.name)) for field in fields]


def call(
    op: str,
    split: Role,
    arguments: Sequence[Argument],
    results: Sequence[Result | int],
    attributes: Mapping[str, Any] | None = None,
) -> list[jax.Array]:
    """Calls the handlers registered for an op.

    Args:
      op: the op's public name.
      split: the role of the table that the call may be split by, such as `SLOTS`, or `WHOLE`.
      arguments: as the handler takes them.
      results: what the handler returns; an int is the index of an argument updated in place.
      attributes: as in `Target`.

    Raises:
      ValueError: the arrays' shardings are known while tracing, and the call cannot follow them.
    """
    target = Target(
        op,
        split.axis,
        tuple(Operand(a.name, a.role, a.value is not None, a.rank) for a in arguments),
        tuple(results),
        tuple((attributes or {}).items()),
    )
    values = [argument.value for argument in arguments if argument.value is not None]
    _check_shardings(target, values)
    return _run(target, *values)


_run = jax.jit(_vmap.run, static_argnums=0, inline=True)
"""Jitted, so that an op called outside of jit is traced and compiled once."""


def _check_shardings(target: Target, values: Sequence[Any]) -> None:
    """ValueError, naming the operand, where mesh axes are explicit and do not fit."""
    shardings = [jax.typeof(value).sharding for value in values]
    if all(sharding.mesh.empty for sharding in shardings):
        return
    split = _partition.table_split(target, shardings)
    for operand, sharding in zip(target.given, shardings, strict=True):
        if operand.role.axis not in (None, ROW_AXIS):
            continue
        axes = [*map(_partition.as_axes, sharding.spec)]
        follows = operand.role.axis == ROW_AXIS and target.rows_are_entries
        if any(axes) and not (follows and axes[:1] == split and not any(axes[1:])):
            expected = (
                f"like {target.table}, {PartitionSpec(*split)}" if follows else "over nothing"
            )
            raise ValueError(
                f"{operand.name}: expected to be sharded {expected}, got {sharding.spec}"
            )
