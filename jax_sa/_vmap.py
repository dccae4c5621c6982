"""A call under vmap: one call whose slots and rows are those of all elements of the vmapped axis.

The states of all elements become one state, with the slots of one element after the other, and so
do their rows: the leaves are reshaped, not copied, and still updated in place. A state that is
vmapped over nothing is shared where it is only read, and repeated where it is updated. Targets
whose operands belong to no table, such as `fused_copy`, are called for one element after the other.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jax_sa import _partition
from jax_sa._checks import INT32_MAX
from jax_sa._target import ROW_AXIS, Target, axis_sizes


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

    sizes = axis_sizes(target, [_element(v, x) for v, x in zip(is_vmapped, operands, strict=True)])
    arguments = []
    for operand, v, value in zip(target.given, is_vmapped, operands, strict=True):
        if operand.role.axis in joined:
            value = value if v else jnp.broadcast_to(value, (size, *value.shape))
            if operand.role.names in joined:
                value = _joined_ids(value, sizes[operand.role.names])
            value = value.reshape(-1, *value.shape[2:])
        arguments.append(value)
    results = run(target, *arguments)
    apart = [role.axis in joined for role in target.result_roles]
    return [
        result.reshape(size, -1, *result.shape[1:]) if a else result
        for a, result in zip(apart, results, strict=True)
    ], apart


def _with_ids(
    target: Target, is_vmapped: Sequence[bool], operands: Sequence[jax.Array]
) -> tuple[Target, list[bool], list[jax.Array]]:
    """The same call, but with ids that say that row b is entry b, so that rows can be joined."""
    is_vmapped, operands, position = list(is_vmapped), list(operands), 0
    for number, operand in enumerate(target.operands):
        if operand.role.names == target.table:
            entries = axis_sizes(target, operands)[target.table]
            named = (*target.operands[:number], operand._replace(is_given=True))
            target = dataclasses.replace(target, operands=(*named, *target.operands[number + 1 :]))
            is_vmapped.insert(position, False)
            operands.insert(position, jnp.arange(entries, dtype=jnp.int32))
            break
        position += operand.is_given
    return target, is_vmapped, operands


def _joined_ids(ids: jax.Array, entries: int) -> jax.Array:
    """int32[A, B] ids of each element's `entries` as ids of all; INT32_MAX for one out of range."""
    first = entries * jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]
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
