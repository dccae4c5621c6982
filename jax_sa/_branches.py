"""One of several branches, chosen by the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

BRANCHES_COPY = jax.__version_info__ < (0, 11, 2)
"""Whether XLA copies what a branch updates, as seen up to 0.10.2 and no longer in 0.11.2."""

Branch = Callable[[Any], tuple[Any, Any]]
"""`branch(operand) -> (result, operand)`, with the operand updated in place."""


def run_branch(index: jax.Array, branches: Sequence[Branch], operand: Any) -> tuple[Any, Any]:
    """The result of `branches[index](operand)`, int32[] `index`, and the operand as it left it.

    It is `jax.lax.switch`, but on a CPU a row of loops of one round or none: XLA's CPU backend
    spreads the work of a loop's body over threads, but not that of a conditional's branch. So it is
    on every platform where XLA copies what a conditional's branch updates.
    """
    if len(branches) == 1:
        return branches[0](operand)
    branches = [jax.jit(branch) for branch in branches]  # so that each is traced once for all
    loops = functools.partial(_run_loops, branches)
    if BRANCHES_COPY:
        return loops(index, operand)
    fenced = [functools.partial(_run_fenced, branch) for branch in branches]
    return jax.lax.platform_dependent(
        index,
        operand,
        cpu=loops,
        default=lambda index, operand: jax.lax.switch(index, fenced, operand),
    )


def _run_fenced(branch: Branch, operand: Any) -> tuple[Any, Any]:
    # Without a barrier, XLA for GPUs may copy an operand that several kernels in a row update, as
    # those of a model's layers do a cache. Where one branch did, steps by the others took up to
    # 2.5 times as long, too.
    return jax.lax.optimization_barrier(branch(operand))


def _run_loops(branches: Sequence[Branch], index: jax.Array, operand: Any) -> tuple[Any, Any]:
    shapes, _ = jax.eval_shape(branches[0], operand)
    # Made from the index, so that inside shard_map they vary over mesh axes as it does.
    result = jax.tree.map(functools.partial(_zeros, index), shapes)
    for number, branch in enumerate(branches):
        result, operand = _run_if(index == number, branch, result, operand)
    return result, operand


def _zeros(index: jax.Array, type_: jax.ShapeDtypeStruct) -> jax.Array:
    zeros = jnp.zeros_like(index, type_.dtype, type_.shape)
    is_split = type_.sharding is not None and any(type_.sharding.spec)  # mesh axes are Explicit
    return jax.sharding.reshard(zeros, type_.sharding) if is_split else zeros


def _run_if(chosen: jax.Array, branch: Branch, result: Any, operand: Any) -> tuple[Any, Any]:
    def body(carry: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
        return jnp.zeros_like(carry[0]), *branch(carry[2])

    return jax.lax.while_loop(lambda carry: carry[0], body, (chosen, result, operand))[1:]
