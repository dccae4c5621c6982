"""Work in stages, each of which chooses the next on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from jax_sa._branches import BRANCHES_COPY, run_branch

Work = TypeVar("Work")

Stage = Callable[[Work], tuple[jax.Array, Work]]
"""`stage(work) -> (number, work)`: the int32[] number of the next stage, and the work, updated in
place."""

STAGES = 8
"""Stages that run before the host is asked whether there are more. Behind the last, nothing is
done in their place."""


def run_stages(stages: Sequence[Stage], first: jax.Array, work: Work) -> Work:
    """The work after `number, work = stages[number](work)`, until there is no stage of that number.

    On a GPU each stage is one CUDA graph, if it holds no loop, and the host is asked once for each.
    On a CPU, and on every platform where XLA copies what a conditional's branch updates, stages of
    one number that follow each other are a loop (see `run_branch`).

    Args:
      stages: what there is to do.
      first: int32[] number of the first of them.
      work: a pytree.
    """
    stages = [jax.jit(stage) for stage in stages]  # so that each is traced once for all
    sweep = functools.partial(_sweep, stages)

    def run_some(carry: tuple[jax.Array, Work]) -> tuple[jax.Array, Work]:
        if BRANCHES_COPY:
            return sweep(carry)
        choose = functools.partial(_choose, stages)
        return jax.lax.platform_dependent(carry, cpu=sweep, default=choose)

    last = len(stages)
    return jax.lax.while_loop(lambda carry: carry[0] != last, run_some, (first, work))[1]


def _sweep(stages: Sequence[Stage], carry: tuple[jax.Array, Work]) -> tuple[jax.Array, Work]:
    """Runs each stage for as long as it is the next, one number after the other."""
    for number, stage in enumerate(stages):
        carry = jax.lax.while_loop(
            lambda carry, number=number: carry[0] == number,
            lambda carry, stage=stage: stage(carry[1]),
            carry,
        )
    return carry


def _choose(stages: Sequence[Stage], carry: tuple[jax.Array, Work]) -> tuple[jax.Array, Work]:
    """Runs `STAGES` stages, each a branch that the host chooses."""
    last = len(stages)

    def run(stage: Stage, carry: tuple[jax.Array, Work]) -> tuple[None, tuple[jax.Array, Work]]:
        return None, stage(carry[1])

    def do_nothing(carry: tuple[jax.Array, Work]) -> tuple[None, tuple[jax.Array, Work]]:
        return None, (_outside_of_graphs(carry[0], last), carry[1])

    branches = [*(functools.partial(run, stage) for stage in stages), do_nothing]
    # The host repeats what has a constant number of rounds without asking whether to.
    return jax.lax.fori_loop(
        0, STAGES, lambda _, carry: run_branch(carry[0], branches, carry)[1], carry
    )


def _outside_of_graphs(number: jax.Array, last: int) -> jax.Array:
    """int32[] `number`, which is `last`, by way of a loop without a round.

    XLA puts no loop into a CUDA graph, nor a choice among branches of which one has a loop. Where a
    graph has a choice in it, all kernels of all graphs of a program start later.
    """
    return jax.lax.while_loop(
        lambda number: number != last, lambda number: jnp.full_like(number, last), number
    )
