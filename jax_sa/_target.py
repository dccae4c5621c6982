"""What a target is called with: the axes of its operands and results, and the call itself.

A target is a handler that XLA calls, on all of its operands or on one device's part of them. What
has to be known to join calls (`_vmap.py`) or to split one (`_partition.py`) is said here, once for
every op: which axis counts rows, which one the slots of a state, and whose numbers name slots.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._targets import target_name

ROW_AXIS = "rows"
"""The axis that counts the rows of a call. Every other axis counts the entries of a table, such as
the slots of a state."""


class Role(NamedTuple):
    """What the entries along axis 0 of an operand or a result are, and what its numbers name."""

    axis: str | None
    """`ROW_AXIS`, or the table whose entries they are; None for what is the same for all rows."""
    names: str | None = None
    """The table whose entries int32[B] numbers name: -1 names none, and neither does a number that
    is out of range."""


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
    """The sizes of the axes after that of the role."""
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


def axis_sizes(target: Target, operands: tuple[jax.Array, ...]) -> dict[str | None, int]:
    """The sizes of the axes that the operands' roles name; rows without an array are entries."""
    sizes = {
        operand.role.axis: value.shape[0]
        for operand, value in zip(target.given, operands, strict=True)
        if operand.role.axis is not None
    }
    return {ROW_AXIS: sizes.get(target.table, 0)} | sizes


def run_here(target: Target, *operands: jax.Array) -> list[jax.Array]:
    """Calls the target on operands of one device; a device's part of them is as good as all."""
    sizes = axis_sizes(target, operands)
    given = iter(operands)
    values = [next(given) if operand.is_given else None for operand in target.operands]
    absent = jnp.zeros_like(operands[0], jnp.int32, (0,))  # varies over mesh axes as the rest does
    types = [
        jax.typeof(values[result])
        if isinstance(result, int)
        else _result_type(target, result, sizes, operands)
        for result in target.results
    ]
    aliases = {
        operand: index for index, operand in enumerate(target.results) if isinstance(operand, int)
    }
    call = jax.ffi.ffi_call(target_name(target.op), types, input_output_aliases=aliases or None)
    arguments = [absent if value is None else value for value in values]
    return list(call(*arguments, **{name: _attribute(v) for name, v in target.attributes}))


def _result_type(
    target: Target,
    result: Result,
    sizes: dict[str | None, int],
    operands: tuple[jax.Array, ...],
) -> Any:
    """Sharded as the operand is whose axis 0 it shares, and varying as all operands do."""
    like = jax.typeof(operands[0])
    axis = result.role.axis
    shape = result.shape if axis is None else (sizes[axis], *result.shape)
    split = target.table if axis == ROW_AXIS and target.rows_are_entries else axis
    specs = [
        jax.typeof(value).sharding.spec
        for operand, value in zip(target.given, operands, strict=True)
        if operand.role.axis == split and split is not None
    ]
    first = (specs[0][0] if specs and specs[0] else None,) if axis is not None else ()
    spec = jax.sharding.PartitionSpec(*first, *[None] * len(result.shape))
    return like.update(
        shape=shape, dtype=np.dtype(result.dtype), sharding=like.sharding.update(spec=spec)
    )


def _attribute(value: Any) -> Any:
    return np.array(value, np.int64) if isinstance(value, tuple) else value
