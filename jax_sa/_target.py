"""What a target is called with: the axes of its operands and results, and the call itself.

A target is a handler that XLA calls, on all of its operands or on one device's part of them. What
has to be known to join calls (`_vmap.py`) or to split one (`_partition.py`) is said here, once for
every op: which axis counts rows, which one the slots of a state, and whose numbers name slots.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._targets import target_name

ROW_AXIS = "rows"
"""The axis that counts the rows of a call. Every other axis counts the entries of a table, such as
the slots of a state."""


class Role(NamedTuple):
    """What the entries along an operand's or a result's axis are, and what its numbers name."""

    axis: str | None
    """`ROW_AXIS`, or the table whose entries they are; None for what is the same for all rows."""
    names: str | None = None
    """The table whose entries int32[B] numbers name: -1 names none, and neither does a number that
    is out of range. Where the table has vmapped axes, they count its entries through."""
    vmapped: int = 0
    """The vmapped axes before that axis: all that count the same have as many."""


SLOTS = Role("slots")
ROWS = Role(ROW_AXIS)
SLOT_IDS = Role(ROW_AXIS, names="slots")
WHOLE = Role(None)


class Operand(NamedTuple):
    """An operand of a target."""

    name: str
    """For messages, such as "state.tokens"."""
    role: Role
    is_given: bool = True
    """Whether it is there. Handlers get int32[0] for one that is not."""


class Result(NamedTuple):
    """A result of a target that is no operand updated in place."""

    role: Role
    shape: tuple[int, ...]
    """The sizes of the axes after those of the role."""
    dtype: Any = jnp.int32


@dataclasses.dataclass(frozen=True)
class Target:
    """A target, as the static argument of all functions that call it."""

    op: str
    """The op's public name."""
    operands: tuple[Operand, ...]
    """All, those that are not given included."""
    results: tuple[Result | int, ...]
    """An int is the index of an operand that is updated in place."""
    attributes: tuple[tuple[str, Any], ...]
    """Names and values: int, float, bool, or a tuple of ints."""

    @property
    def given(self) -> tuple[Operand, ...]:
        """The operands that are arrays, as the functions that call the target take them."""
        return tuple(operand for operand in self.operands if operand.is_given)

    @property
    def result_roles(self) -> tuple[Role, ...]:
        """The role of each result."""
        return tuple(
            self.operands[result].role if isinstance(result, int) else result.role
            for result in self.results
        )

    @property
    def updated(self) -> dict[int, int]:
        """The operands updated in place, by index among those given, and which result each is."""
        index_given = np.cumsum([operand.is_given for operand in self.operands]) - 1
        return {
            int(index_given[operand]): result
            for result, operand in enumerate(self.results)
            if isinstance(operand, int)
        }

    @property
    def table(self) -> str | None:
        """The table that calls are split by: that of the first operand that is part of one."""
        tables = (operand.role.axis for operand in self.given)
        return next((axis for axis in tables if axis not in (None, ROW_AXIS)), None)

    @property
    def rows_are_entries(self) -> bool:
        """Whether row b is entry b of the table, as no operand says whose each row is."""
        return all(operand.role.names != self.table for operand in self.given)


def axis_shapes(target: Target, operands: Sequence[Any]) -> dict[str | None, tuple[int, ...]]:
    """The sizes of the vmapped axes and of the axis itself, for each axis that roles name."""
    shapes = {
        operand.role.axis: tuple(value.shape[: operand.role.vmapped + 1])
        for operand, value in zip(target.given, operands, strict=True)
        if operand.role.axis is not None
    }
    return {ROW_AXIS: shapes.get(target.table, ())} | shapes


def run_here(target: Target, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on operands of one device; a device's part of them is as good as all.

    Rows have one axis for a handler, but tables keep their vmapped axes, which the handler counts
    through: XLA would copy a table that is reshaped before it is updated in place.
    """
    shapes = axis_shapes(target, operands)
    given = iter(operands)
    values = [
        _join_rows(operand.role, next(given)) if operand.is_given else None
        for operand in target.operands
    ]
    types = [
        jax.typeof(values[result])
        if isinstance(result, int)
        else _result_type(target, result, shapes, operands)
        for result in target.results
    ]
    aliases = {
        operand: index for index, operand in enumerate(target.results) if isinstance(operand, int)
    }
    call = jax.ffi.ffi_call(target_name(target.op), types, input_output_aliases=aliases or None)
    arguments = [jnp.zeros(0, jnp.int32) if value is None else value for value in values]
    results = call(*arguments, **{name: _attribute(v) for name, v in target.attributes})
    return [
        result.reshape(*shapes[ROW_AXIS], *result.shape[1:])
        if role.axis == ROW_AXIS and role.vmapped
        else result
        for role, result in zip(target.result_roles, results, strict=True)
    ]


def _join_rows(role: Role, value: jax.Array) -> jax.Array:
    if role.axis != ROW_AXIS or not role.vmapped:
        return value
    return value.reshape(-1, *value.shape[role.vmapped + 1 :])


def _result_type(
    target: Target,
    result: Result,
    shapes: dict[str | None, tuple[int, ...]],
    operands: Sequence[jax.Array],
) -> Any:
    """A result that varies as all operands do; rows and entries are sharded as the table is."""
    like = jax.typeof(operands[0])
    axis = result.role.axis
    shape = () if axis is None else shapes[axis]
    spec: list[Any] = [None] * len(shape)
    if axis == target.table or (axis == ROW_AXIS and target.rows_are_entries):
        index = [operand.role.axis for operand in target.given].index(target.table)
        spec[: len(shape)] = [*jax.typeof(operands[index]).sharding.spec, *spec][: len(shape)]
    if axis == ROW_AXIS and len(shape) > 1:
        shape, spec = (math.prod(shape),), [None]
    spec = jax.sharding.PartitionSpec(*spec, *[None] * len(result.shape))
    return like.update(
        shape=(*shape, *result.shape),
        dtype=np.dtype(result.dtype),
        sharding=like.sharding.update(spec=spec),
    )


def _attribute(value: Any) -> Any:
    return np.array(value, np.int64) if isinstance(value, tuple) else value
