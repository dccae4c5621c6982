"""Calls a target that works on a state, of whichever index."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_sa._call import call
from jax_sa._target import SLOTS, Result, Role

NamedOperand = tuple[str, Role, Any]


def call_on_state(
    op: str,
    operands: Sequence[NamedOperand],
    state: Any,
    results: Sequence[Result],
    attributes: Mapping[str, Any],
    *,
    updates: bool,
) -> tuple[list[jax.Array], Any]:
    """The results of a target, and the state as it left it.

    Args:
      op: the name of the target, without the prefix that all have.
      operands: those before the state: of each the name, the role, and the array or None.
      state: a dataclass of arrays with the slot axis.
      results: those before the state.
      attributes: of the target.
      updates: whether the target updates the state, all of it, in place.
    """
    leaves = leaves_of("state", SLOTS, state)
    updated = range(len(operands), len(operands) + len(leaves)) if updates else ()
    outputs = call(op, [*operands, *leaves], [*results, *updated], attributes)
    if updates:
        state = type(state)(*outputs[len(results) :])
    return outputs[: len(results)], state


def leaves_of(name: str, role: Role, state: Any) -> list[NamedOperand]:
    """The arrays of a state as operands."""
    fields = dataclasses.fields(state)
    return [(f"{name}.{field.name}", role, getattr(state, field.name)) for field in fields]
