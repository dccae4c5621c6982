"""Calls a target that works on a state, of whichever index."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_sa._call import Argument, call, leaves_of
from jax_sa._target import SLOTS, Result


def call_on_state(
    op: str,
    arguments: Sequence[Argument],
    state: Any,
    results: Sequence[Result],
    attributes: Mapping[str, Any],
    *,
    updates: bool,
) -> tuple[list[jax.Array], Any]:
    """The results of a target, and the state as it left it.

    Args:
      op: the name of the target, without the prefix that all have.
      arguments: those before the state.
      state: a dataclass of arrays with the slot axis.
      results: those before the state.
      attributes: of the target.
      updates: whether the target updates the state, all of it, in place.
    """
    leaves = leaves_of("state", SLOTS, state)
    updated = range(len(arguments), len(arguments) + len(leaves)) if updates else ()
    outputs = call(op, SLOTS, [*arguments, *leaves], [*results, *updated], attributes)
    if updates:
        state = type(state)(*outputs[len(results) :])
    return outputs[: len(results)], state
