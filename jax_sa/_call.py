"""Calls a target: the one place that every op with a handler goes through.

`call` checks what is known of shardings while it traces, `_vmap.py` joins the calls of a vmapped
axis, `_partition.py` splits a call over devices, and `_target.py` calls the handler.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jax_sa import _partition, _vmap
from jax_sa._target import ROW_AXIS, Operand, Result, Role, Target


def call(
    op: str,
    operands: Sequence[tuple[str, Role, Any]],
    results: Sequence[Result | int],
    attributes: Mapping[str, Any] | None = None,
) -> list[jax.Array]:
    """Calls the handlers registered for an op.

    Args:
      op: the op's public name.
      operands: of each operand the name for messages, the role, and the array or None.
      results: what the handler returns; an int is the index of an operand updated in place.
      attributes: as in `Target`.

    Raises:
      ValueError: the arrays' shardings are known while tracing, and the call cannot follow them.
    """
    target = Target(
        op,
        tuple(Operand(name, role, value is not None) for name, role, value in operands),
        tuple(results),
        tuple((attributes or {}).items()),
    )
    values = [value for _, _, value in operands if value is not None]
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
