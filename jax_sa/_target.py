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

from jax_sa import _prefill
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
GROUPS = Role("groups")
GROUP_IDS = Role(ROW_AXIS, names="groups")
WHOLE = Role(None)


class Operand(NamedTuple):
    """An operand of a target."""

    name: str
    """For messages, such as "state.tokens"."""
    role: Role
    is_given: bool = True
    """Whether it is there. Handlers get an int32 array without elements for one that is not."""
    rank: int = 1
    """The axes of that array."""


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
    table: str | None
    """The table that calls may be split by."""
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
    def rows_are_entries(self) -> bool:
        """Whether row b is entry b of the table, as no operand says whose each row is."""
        names = [operand.role.names for operand in self.given]
        return self.table is not None and self.table not in names


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

    What is vmapped is joined along one axis for the handler, but for tables that are updated in
    place: XLA would copy them if they were reshaped first, so the handler counts through them.
    """
    shapes = axis_shapes(target, operands)
    given = [
        value if number in target.updated else _join(target.given[number].role, value)
        for number, value in enumerate(operands)
    ]
    rest = iter(given)
    values = [
        next(rest) if operand.is_given else jnp.zeros((0,) * operand.rank, jnp.int32)
        for operand in target.operands
    ]
    values = _prefill.run(target.op, values)
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
    results = call(*values, **{name: _attribute(v) for name, v in target.attributes})
    return [
        value if isinstance(result, int) else _own(result, value, shapes)
        for result, value in zip(target.results, results, strict=True)
    ]


def _own(result: Result, value: jax.Array, shapes: dict[str | None, tuple[int, ...]]) -> jax.Array:
    # XLA for GPUs may run a call once more where a loop stacks one of its results, on copies of the
    # arrays that it updates. It does not see through a barrier.
    value = jax.lax.optimization_barrier(value)
    if not result.role.vmapped:
        return value
    return value.reshape(*shapes[result.role.axis], *value.shape[1:])


def _join(role: Role, value: jax.Array) -> jax.Array:
    return value.reshape(-1, *value.shape[role.vmapped + 1 :]) if role.vmapped else value


def _result_type(
    target: Target,
    result: Result,
    shapes: dict[str | None, tuple[int, ...]],
    operands: Sequence[jax.Array],
) -> Any:
    """A result that varies as all operands do; rows and entries are sharded as the table is."""
    types = [jax.typeof(operand) for operand in operands]
    # Of what was made here, such as zeros for `groups`, none is on an Explicit mesh.
    like = next((type_ for type_ in types if not type_.sharding.mesh.empty), types[0])
    axis = result.role.axis
    spec: list[Any] = [] if axis is None else [None]
    follows = axis == target.table or (axis == ROW_AXIS and target.rows_are_entries)
    if axis is not None and follows:
        index = [operand.role.axis for operand in target.given].index(target.table)
        first = jax.typeof(operands[index]).sharding.spec[:1]
        spec = [*first, None][:1] if not result.role.vmapped else [None]
    spec = jax.sharding.PartitionSpec(*spec, *[None] * len(result.shape))
    return like.update(
        shape=(*(() if axis is None else (math.prod(shapes[axis]),)), *result.shape),
        dtype=np.dtype(result.dtype),
        sharding=like.sharding.update(spec=spec),
    )


def _attribute(value: Any) -> Any:
    return np.array(value, np.int64) if isinstance(value, tuple) else value
