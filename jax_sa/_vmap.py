"""A call under vmap: one call whose slots and rows are those of all elements of the vmapped axis.

The states of all elements count as one state with the slots of one element after the other, and so
do their rows; nothing is moved, and what is updated in place still is. A state that is the same for
all elements is shared where it is only read, and repeated where it is updated. Targets whose
operands belong to no table, such as `fused_copy`, are called for one element after the other.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jax_sa import _partition
from jax_sa._checks import INT32_MAX
from jax_sa._target import ROW_AXIS, Target, axis_shapes


def run(target: Target, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on operands that may be vmapped."""

    @custom_vmap
    def call(*operands: jax.Array) -> list[jax.Array]:
        return _partition.run(target, *operands)

    @call.def_vmap
    def call_elements(
        size: int, is_vmapped: Sequence[bool], *operands: jax.Array
    ) -> tuple[list[jax.Array], list[bool]]:
        return _run_elements(target, size, is_vmapped, *operands)

    return call(*operands)


def _run_elements(
    target: Target, size: int, is_vmapped: Sequence[bool], *operands: jax.Array
) -> tuple[list[jax.Array], list[bool]]:
    """The results of all elements, with a leading axis of `size` unless they are the same for all.

    Args:
      target: of one element.
      size: the elements.
      is_vmapped: for each operand, whether it has a leading axis of `size`.
      operands: of the target.
    """
    updated = {target.given[operand].role.axis for operand in target.updated}
    joined = {operand.role.axis for operand, v in zip(target.given, is_vmapped, strict=True) if v}
    joined |= updated | {ROW_AXIS}
    if target.rows_are_entries and target.table not in joined:
        target, is_vmapped, operands = _with_ids(target, is_vmapped, operands)
    if None in joined or (target.rows_are_entries and target.table not in joined):
        return _run_in_turn(target, size, is_vmapped, operands)

    shapes = axis_shapes(
        target, [_element(v, x) for v, x in zip(is_vmapped, operands, strict=True)]
    )
    arguments = []
    for operand, v, value in zip(target.given, is_vmapped, operands, strict=True):
        if operand.role.axis in joined:
            value = value if v else jnp.broadcast_to(value, (size, *value.shape))
            if operand.role.names in joined:
                value = _joined_ids(value, math.prod(shapes[operand.role.names]))
        arguments.append(value)
    return run(_join(target, joined), *arguments), [r.axis in joined for r in target.result_roles]


def _join(target: Target, joined: set[str | None]) -> Target:
    """The target with one more vmapped axis in all operands and results of some axes."""

    def join(part: Any) -> Any:
        if isinstance(part, int) or part.role.axis not in joined:
            return part
        return part._replace(role=part.role._replace(vmapped=part.role.vmapped + 1))

    return dataclasses.replace(
        target, operands=tuple(map(join, target.operands)), results=tuple(map(join, target.results))
    )


def _with_ids(
    target: Target, is_vmapped: Sequence[bool], operands: Sequence[jax.Array]
) -> tuple[Target, list[bool], list[jax.Array]]:
    """The same call, but with ids that say that row b is entry b, so that rows can be joined."""
    is_vmapped, operands, position = list(is_vmapped), list(operands), 0
    for number, operand in enumerate(target.operands):
        if operand.role.names == target.table:
            shape = axis_shapes(target, operands)[target.table]
            ids = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
            named = (*target.operands[:number], operand._replace(is_given=True))
            target = dataclasses.replace(target, operands=(*named, *target.operands[number + 1 :]))
            is_vmapped.insert(position, False)
            operands.insert(position, ids)
            break
        position += operand.is_given
    return target, is_vmapped, operands


def _joined_ids(ids: jax.Array, entries: int) -> jax.Array:
    """Ids of each element's `entries`, as ids of all; INT32_MAX for one that is out of range."""
    first = entries * jax.lax.broadcasted_iota(jnp.int32, ids.shape, 0)
    in_range = (ids >= 0) & (ids < entries)
    return jnp.where(in_range, first + ids, jnp.where(ids == -1, -1, INT32_MAX))


def _run_in_turn(
    target: Target, size: int, is_vmapped: Sequence[bool], operands: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[bool]]:
    """The results of one element after the other, those updated in place in a loop's carry."""
    elements = [_element(v, x) for v, x in zip(is_vmapped, operands, strict=True)]
    types = jax.eval_shape(functools.partial(run, target), *elements)
    carry = [jnp.zeros_like(operands[0], t.dtype, (size, *t.shape)) for t in types]
    for operand, result in target.updated.items():
        value = operands[operand]
        carry[result] = (
            value if is_vmapped[operand] else jnp.broadcast_to(value, carry[result].shape)
        )

    def body(i: jax.Array, carry: list[jax.Array]) -> list[jax.Array]:
        def element(number: int) -> jax.Array:
            if number in target.updated:
                return carry[target.updated[number]][i]
            return operands[number][i] if is_vmapped[number] else operands[number]

        results = run(target, *map(element, range(len(operands))))
        return [
            jax.lax.dynamic_update_index_in_dim(all_, result, i, 0)
            for all_, result in zip(carry, results, strict=True)
        ]

    return jax.lax.fori_loop(0, size, body, carry), [True] * len(carry)


def _element(is_vmapped: bool, value: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape[1:] if is_vmapped else value.shape, value.dtype)
