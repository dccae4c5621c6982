"""A call split over devices: each device works on the slots that it has.

A target follows the sharding of its table, such as a state's slots. Where rows are slots, each
device has the rows of its slots, and nothing is communicated. Where `slots` says whose each row is,
every device sees all rows and takes those of its own slots; the results, which are zeros in the
other rows, are added up. That is an all-reduce of the results, never of the table.

XLA calls `_partition` and `_infer` while it compiles a program for several devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_sa._checks import INT32_MAX
from jax_sa._target import ROW_AXIS, Role, Target, axis_sizes, run_here

MeshAxes = tuple[str, ...]


def table_axes(target: Target, shardings: Sequence[Any]) -> MeshAxes:
    """The mesh axes that the target's table is split over.

    Args:
      target: the target.
      shardings: of the operands that are given.

    Raises:
      ValueError: naming the operand, for a table whose arrays are not all split over their first
        axis alone, and by the same mesh axes; for another table that is split at all.
    """
    axes = None
    for operand, sharding in zip(target.given, shardings, strict=True):
        if operand.role.axis in (None, ROW_AXIS):
            continue
        if not isinstance(sharding, NamedSharding):
            raise ValueError(f"{operand.name}: expected a NamedSharding, got {sharding}")
        first, *others = [*map(as_axes, sharding.spec), ()]
        is_split = operand.role.axis == target.table
        if any(others) or (first and not is_split):
            where = f"over its {target.table} alone" if is_split else "over nothing"
            raise ValueError(f"{operand.name}: expected to be sharded {where}, got {sharding.spec}")
        if is_split:
            axes = first if axes is None else axes
            if first != axes:
                raise ValueError(
                    f"{operand.name}: expected to be sharded over {axes} like the rest of its "
                    f"{target.table}, got {sharding.spec}"
                )
    return axes or ()


def run(target: Target, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on operands that may be sharded."""
    return _run(target, *operands)


_run = custom_partitioning(run_here, static_argnums=(0,))


def _partition(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> tuple[Mesh, Callable[..., Any], list[NamedSharding], tuple[NamedSharding, ...]]:
    axes = table_axes(target, [operand.sharding for operand in operands])
    _check_divides(target, mesh, axes, operands)

    def run_part(*parts: jax.Array) -> list[jax.Array]:
        return _run_part(target, axes, *parts)

    return (
        mesh,
        run_part,
        _result_shardings(target, mesh, axes, results),
        tuple(
            NamedSharding(mesh, _spec(target, operand.role, axes, value.ndim))
            for operand, value in zip(target.given, operands, strict=True)
        ),
    )


def _infer(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> list[NamedSharding]:
    """The shardings of the results, for GSPMD."""
    axes = table_axes(target, [operand.sharding for operand in operands])
    return _result_shardings(target, mesh, axes, results)


def _rule(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> SdyShardingRule:
    """The same for Shardy: the table's axis may be split, and all others are left as they are."""
    operand_roles = [operand.role for operand in target.given]
    updated = {result: operand for operand, result in target.updated.items()}

    def factors(kind: str, number: int, role: Role, value: Any) -> tuple[str, ...]:
        names = [f"{kind}{number}_{axis}" for axis in range(value.rank)]
        if role.axis is not None:
            names[0] = target.table if _is_split(target, role) else role.axis
        return tuple(names)

    whole = {role.axis for role in (*operand_roles, *target.result_roles)}
    whole = {axis for axis in whole if axis is not None and not _is_split(target, Role(axis))}
    return SdyShardingRule(
        tuple(
            factors("operand", number, role, value)
            for number, (role, value) in enumerate(zip(operand_roles, operands, strict=True))
        ),
        tuple(
            factors("operand", updated[number], role, value)
            if number in updated
            else factors("result", number, role, value)
            for number, (role, value) in enumerate(zip(target.result_roles, results, strict=True))
        ),
        need_replication_factors=tuple(sorted(whole)),
    )


_run.def_partition(_partition, infer_sharding_from_operands=_infer, sharding_rule=_rule)


def _run_part(target: Target, axes: MeshAxes, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on one device's part of the table."""
    if not axes or target.rows_are_entries:
        return run_here(target, *operands)
    size = axis_sizes(target, operands)[target.table]
    first = jax.lax.axis_index(axes) * size
    results = run_here(
        target,
        *(
            _local_ids(value, first, size) if operand.role.names == target.table else value
            for operand, value in zip(target.given, operands, strict=True)
        ),
    )
    of_rows = [i for i, role in enumerate(target.result_roles) if role.axis == ROW_AXIS]
    if of_rows:
        added = jax.lax.psum([results[i] for i in of_rows], axes)
        for i, result in zip(of_rows, added, strict=True):
            results[i] = result
    return results


def _local_ids(ids: jax.Array, first: jax.Array, size: int) -> jax.Array:
    """Ids among the `size` entries from `first` on; INT32_MAX, out of range, for all others."""
    here = (ids >= first) & (ids < first + size)
    return jnp.where(here, ids - first, jnp.where(ids == -1, -1, INT32_MAX))


def _check_divides(target: Target, mesh: Mesh, axes: MeshAxes, operands: Sequence[Any]) -> None:
    parts = math.prod(mesh.shape[axis] for axis in axes)
    size = axis_sizes(target, tuple(operands)).get(target.table, 0)
    if size % parts:
        raise ValueError(
            f"{target.op}: expected {target.table} in equal parts on {parts} devices, got {size}"
        )


def _result_shardings(
    target: Target, mesh: Mesh, axes: MeshAxes, results: Sequence[Any]
) -> list[NamedSharding]:
    return [
        NamedSharding(mesh, _spec(target, role, axes, value.ndim))
        for role, value in zip(target.result_roles, results, strict=True)
    ]


def _spec(target: Target, role: Role, axes: MeshAxes, ndim: int) -> PartitionSpec:
    spec: list[Any] = [None] * ndim
    if _is_split(target, role) and axes:
        spec[0] = axes
    return PartitionSpec(*spec)


def _is_split(target: Target, role: Role) -> bool:
    """Whether axis 0 is split as the table is."""
    if role.axis is None:
        return False
    return role.axis == target.table or (role.axis == ROW_AXIS and target.rows_are_entries)


def as_axes(entry: Any) -> MeshAxes:
    """The mesh axes of an entry of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
