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
    axes = _partition.table_axes(target, shardings)
    allowed = {(), axes} if target.rows_are_entries else {()}
    for operand, sharding in zip(target.given, shardings, strict=True):
        first, *others = [*map(_partition.as_axes, sharding.spec), ()]
        is_row = operand.role.axis == ROW_AXIS
        if (
            (is_row and first not in allowed)
            or (operand.role.axis is None and first)
            or any(others)
        ):
            expected = f"{operand.name}: expected " + (
                f"rows sharded like {target.table}, {PartitionSpec(axes)}, or not at all"
                if is_row and target.rows_are_entries
                else "to be sharded over nothing"
            )
            raise ValueError(f"{expected}, got {sharding.spec}")
