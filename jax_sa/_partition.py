"""A call split over devices: each device works on the slots that it has.

A target follows the sharding of its table, such as a state's slots. Where rows are slots, each
device has the rows of its slots, and nothing is communicated. Where `slots` says whose each row is,
every device sees all rows and takes those of its own slots; the results of each row are those of
the device that has its slot. That is an all-reduce of the results, never of the table.

XLA calls `_partition` and `_infer` while it compiles a program for several devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jax_sa._checks import INT32_MAX
from jax_sa._target import ROW_AXIS, Role, Target, axis_shapes, run_here

MeshAxes = tuple[str, ...]


def table_split(target: Target, shardings: Sequence[Any]) -> list[MeshAxes]:
    """The mesh axes that the target's table is split over, for its vmapped axes and its own.

    Args:
      target: the target.
      shardings: of the operands that are given.

    Raises:
      ValueError: naming the operand, for a table whose arrays are not all split over these axes
        alone, and by the same mesh axes; for another table that is split at all.
    """
    split = None
    for operand, sharding in zip(target.given, shardings, strict=True):
        if operand.role.axis in (None, ROW_AXIS):
            continue
        number = operand.role.vmapped + 1
        axes = [*map(as_axes, sharding.spec), *[()] * number]
        is_split = operand.role.axis == target.table
        if any(axes[number:] if is_split else axes):
            where = f"over its {target.table} alone" if is_split else "over nothing"
            raise ValueError(f"{operand.name}: expected to be sharded {where}, got {sharding.spec}")
        if is_split:
            split = axes[:number] if split is None else split
            if axes[:number] != split:
                raise ValueError(
                    f"{operand.name}: expected to be sharded like the rest of its {target.table}, "
                    f"{PartitionSpec(*split)}, got {sharding.spec}"
                )
    return split or []


def run(target: Target, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on operands that may be sharded."""
    mesh = jax.typeof(operands[0]).sharding.mesh
    left = [mesh.shape[axis] for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if mesh.manual_axes and math.prod(left) == 1:
        # Inside a shard_map that leaves nothing to split, where JAX's partitioning would fail.
        return run_here(target, *operands)
    return _run(target, *operands)


_run = custom_partitioning(run_here, static_argnums=(0,))


def _partition(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> tuple[Mesh, Callable[..., Any], list[NamedSharding], tuple[NamedSharding, ...]]:
    shardings = [operand.sharding for operand in operands]
    if not isinstance(shardings[0], NamedSharding):
        return _partition_inside(target, mesh, shardings, results)
    split = table_split(target, shardings)
    _check_whole(target, shardings)
    _check_divides(target, mesh, split, operands)
    _check_follows(target, split, results)
    shapes = axis_shapes(target, operands)

    def run_part(*parts: jax.Array) -> list[jax.Array]:
        # Or a mesh around the program, whose axes are Explicit, would shard the parts once more.
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            return _run_part(target, split, shapes.get(target.table, ()), *parts)

    return (
        mesh,
        run_part,
        _result_shardings(target, mesh, split, results),
        tuple(
            NamedSharding(mesh, _spec(target, operand.role, split, value.ndim))
            for operand, value in zip(target.given, operands, strict=True)
        ),
    )


def _partition_inside(
    target: Target, mesh: Mesh, shardings: Sequence[Any], results: Sequence[Any]
) -> tuple[Mesh, Callable[..., Any], list[Any], tuple[Any, ...]]:
    """Inside a shard_map over some mesh axes, where JAX does not tell which the others are."""
    for operand, sharding in zip(target.given, shardings, strict=True):
        if operand.role.axis not in (None, ROW_AXIS) and not sharding.is_fully_replicated:
            raise ValueError(
                f"{operand.name}: expected to be sharded over no mesh axis but those of the "
                f"jax.shard_map around, got {sharding}"
            )
    whole = next(sharding for sharding in shardings if sharding.is_fully_replicated)
    run_whole = functools.partial(run_here, target)
    return mesh, run_whole, [whole] * len(results), tuple(whole for _ in shardings)


def _infer(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> list[NamedSharding]:
    """The shardings of the results, as far as they are known, for GSPMD; it must not raise."""
    known = [
        [*map(as_axes, value.sharding.spec)][: operand.role.vmapped + 1]
        for operand, value in zip(target.given, operands, strict=True)
        if operand.role.axis == target.table and isinstance(value.sharding, NamedSharding)
    ]
    return _result_shardings(target, mesh, known[0] if known else [], results)


def _rule(
    target: Target, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> SdyShardingRule:
    """The same for Shardy: the table's axes may be split, and rows may not where ids name slots."""
    roles = [operand.role for operand in target.given]
    updated = {result: operand for operand, result in target.updated.items()}

    def factors(prefix: str, role: Role, value: Any) -> tuple[str, ...]:
        names = [f"{prefix}_{axis}" for axis in range(value.rank)]
        if role.axis is not None:
            axis = target.table if _is_split(target, role) else role.axis
            names[: role.vmapped + 1] = [f"{axis}_{i}" for i in range(role.vmapped + 1)]
        return tuple(names)

    operand_factors = tuple(
        factors(f"operand{number}", role, value)
        for number, (role, value) in enumerate(zip(roles, operands, strict=True))
    )
    result_factors = tuple(
        factors(
            f"operand{updated[number]}" if number in updated else f"result{number}", role, value
        )
        for number, (role, value) in enumerate(zip(target.result_roles, results, strict=True))
    )
    whole = {
        f"{role.axis}_{i}"
        for role in (*roles, *target.result_roles)
        if role.axis is not None and not _is_split(target, role)
        for i in range(role.vmapped + 1)
    }
    # Shardy wants them in the order in which they appear.
    in_order = dict.fromkeys(name for names in operand_factors + result_factors for name in names)
    return SdyShardingRule(
        operand_factors,
        result_factors,
        need_replication_factors=tuple(name for name in in_order if name in whole),
    )


_run.def_partition(_partition, infer_sharding_from_operands=_infer, sharding_rule=_rule)


def _run_part(
    target: Target, split: list[MeshAxes], shape: tuple[int, ...], *operands: jax.Array
) -> list[jax.Array]:
    """Calls the target on one device's part of a table that is of `shape` on all of them."""
    mesh_axes = tuple(axis for axes in split for axis in axes)
    if not mesh_axes or target.rows_are_entries:
        return run_here(target, *operands)
    local = axis_shapes(target, operands)[target.table]
    is_ids = [operand.role.names == target.table for operand in target.given]
    results = run_here(
        target,
        *(
            _local_ids(value, split, shape, local) if ids else value
            for ids, value in zip(is_ids, operands, strict=True)
        ),
    )
    of_rows = [i for i, role in enumerate(target.result_roles) if role.axis == ROW_AXIS]
    if of_rows:
        ids = operands[is_ids.index(True)]
        owned = _local_ids(ids, split, shape, local) < math.prod(local)
        nowhere = (ids < 0) | (ids >= math.prod(shape))  # the first device has such rows
        owned = jnp.where(nowhere, jax.lax.axis_index(mesh_axes) == 0, owned)
        added = jax.lax.psum([_keep(results[i], owned) for i in of_rows], mesh_axes)
        for i, result in zip(of_rows, added, strict=True):
            results[i] = result
    return results


def _keep(result: jax.Array, rows: jax.Array) -> jax.Array:
    """The result in the rows that bool[..., B] names, and zeros elsewhere."""
    kept = rows.reshape(*rows.shape, *[1] * (result.ndim - rows.ndim))
    return jnp.where(kept, result, jnp.zeros((), result.dtype))


def _local_ids(
    ids: jax.Array, split: list[MeshAxes], shape: tuple[int, ...], local: tuple[int, ...]
) -> jax.Array:
    """Ids among a table's entries on one device; INT32_MAX, out of range, for all others."""
    here, result, rest = ids >= 0, jnp.zeros_like(ids), ids
    for number in reversed(range(len(shape))):
        place = rest % shape[number] if number else rest
        rest = rest // shape[number]
        axes = split[number]
        place = place - (jax.lax.axis_index(axes) * local[number] if axes else 0)
        here &= (place >= 0) & (place < local[number])
        result += place * math.prod(local[number + 1 :])
    return jnp.where(here, result, jnp.where(ids == -1, -1, INT32_MAX))


def _check_whole(target: Target, shardings: Sequence[Any]) -> None:
    """ValueError where an array that is updated as a whole, or one copied to it, is in parts."""
    if not any(target.given[number].role.axis is None for number in target.updated):
        return
    for operand, sharding in zip(target.given, shardings, strict=True):
        if operand.role.axis is None and any(map(as_axes, sharding.spec)):
            raise ValueError(
                f"{operand.name}: expected to be sharded over nothing, got {sharding.spec}; "
                "inside jax.shard_map, each device may have its own"
            )


def _check_divides(
    target: Target, mesh: Mesh, split: list[MeshAxes], operands: Sequence[Any]
) -> None:
    for axes, size in zip(split, axis_shapes(target, operands).get(target.table, ()), strict=False):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(
                f"{target.op}: expected {target.table} in {parts} equal parts, got {size}"
            )


def _check_follows(target: Target, split: list[MeshAxes], results: Sequence[Any]) -> None:
    """ValueError where a table that is whole would come back in parts, after a copy of it."""
    for operand, result in target.updated.items():
        spec = results[result].sharding.spec
        if not any(split) and any(map(as_axes, spec)):
            raise ValueError(
                f"{target.given[operand].name}: expected to be sharded like the rows of the call "
                f"and what is made of its results, {spec}, got none: shard the {target.table} too"
            )


def _result_shardings(
    target: Target, mesh: Mesh, split: list[MeshAxes], results: Sequence[Any]
) -> list[NamedSharding]:
    return [
        NamedSharding(mesh, _spec(target, role, split, value.ndim))
        for role, value in zip(target.result_roles, results, strict=True)
    ]


def _spec(target: Target, role: Role, split: list[MeshAxes], ndim: int) -> PartitionSpec:
    axes = split if _is_split(target, role) else []
    return PartitionSpec(*(a or None for a in axes), *[None] * (ndim - len(axes)))


def _is_split(target: Target, role: Role) -> bool:
    """Whether its axis is split as the table's is."""
    if role.axis is None:
        return False
    return role.axis == target.table or (role.axis == ROW_AXIS and target.rows_are_entries)


def as_axes(entry: Any) -> MeshAxes:
    """The mesh axes of an entry of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
