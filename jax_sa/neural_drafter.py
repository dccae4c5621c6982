"""A drafter with parameters, and whether it is worth its time.

Letters: B rows, P prompt tokens, M tokens of a neural draft, W widths.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa import budget
from jax_sa._branches import run_branch
from jax_sa._checks import check_array, check_int
from jax_sa._shard_map import vary_like
from jax_sa.draft_tree import NO_TOKEN

BEST_CHANCE = 0.9
"""A neural drafter's token holds with no better chance, if all before it do: of DeepSeek-V3's
second tokens 85 to 90 % do (arXiv 2412.19437, section 5.4.3)."""

READING_MARGIN = 0.1
"""A drafter reads prompts only where it promises so much more tokens per cost than no drafts: the
reading is paid for at once, and what it gains is less where answers end early, or where the rows of
a batch wait for the slowest (6 % of the steps of 16 rows and 128 tokens)."""

PATIENCE = 1.0
"""A neural drafter runs no more once it has lost the time of so many steps."""


class NeuralDrafter(NamedTuple):
    """A drafter with parameters, such as a multi-token prediction module.

    Its memory is part of the model's cache. Both functions are called while
    `cache.length` counts every token but the last, and return the tokens int32[B, M] that they
    expect after the last, and the cache. Drafts for a row without tokens are ignored.
    """

    prefill: Callable[..., tuple[jax.Array, Any]]
    """`prefill(params, prompts int32[B, P], lengths int32[B], last int32[B], cache)`: the model
    has read the prompts; `prompts[b, :lengths[b]]` count, and `last[b]` comes next."""
    draft: Callable[..., tuple[jax.Array, Any]]
    """`draft(params, accepted, cache)`: the step has emitted `accepted`, a `jax_sa.Accepted` of
    the width of the block, whose last token the model has not read."""
    max_draft: int
    """M."""
    memory: tuple[str, ...] = ()
    """Fields of the model's cache that only the drafter reads, such as hidden states. Where it does
    not run, the reading of the prompts leaves them as they are, and nothing is computed for them.
    """


class StepCosts(NamedTuple):
    """The costs of steps with a drafter and without."""

    running: jax.Array
    """float32[W] of steps in which it runs."""
    alone: jax.Array
    """float32[W] of steps in which it does not; 0, so worth nothing, where that is not known."""
    can_pay: jax.Array
    """bool[] whether it would pay for itself if its tokens held as often as any drafter's."""


def check_drafter(drafter: Any) -> NeuralDrafter:
    """The drafter; TypeError or ValueError if it is none."""
    if not isinstance(drafter, NeuralDrafter):
        expected = "a jax_sa.NeuralDrafter"
        raise TypeError(f"drafter: expected {expected}, got {type(drafter).__name__}")
    memory = drafter.memory
    if not isinstance(memory, tuple) or not all(isinstance(name, str) for name in memory):
        raise TypeError(f"drafter.memory: expected a tuple of names, got {memory!r}")
    return drafter._replace(max_draft=check_int("drafter.max_draft", drafter.max_draft, 1))


def weigh(
    costs: jax.Array, widths: Sequence[int], max_draft: int, max_new_tokens: int
) -> StepCosts:
    """Sorts a decoder's costs, and compares the drafter at its best with none.

    Each step bears its share of the reading: as many would be needed with the best of drafts.

    Args:
      costs: float32[2 + W] of its reading of the prompts, of the narrowest step without it, and of
        each width with it.
      widths: drafted tokens of a row.
      max_draft: M.
      max_new_tokens: of a row.
    """
    reading, alone, steps = jnp.where(costs[0] > 0.0, costs[0], 0.0), costs[1], costs[2:]
    tokens = 1 + np.minimum(widths, max_draft)
    most = jnp.asarray((1.0 - BEST_CHANCE**tokens) / (1.0 - BEST_CHANCE), jnp.float32)
    with_reading = steps + reading * most / max_new_tokens
    promised = jnp.max(budget.tokens_per_cost(most, with_reading))
    can_pay = promised > (1.0 + READING_MARGIN) * budget.tokens_per_cost(1.0, alone)
    return StepCosts(steps, jnp.where(alone > 0.0, steps - (steps[0] - alone), 0.0), can_pay)


def update_loss(loss: jax.Array, running: jax.Array, alone: jax.Array) -> jax.Array:
    """float32[] the time in steps that a drafter has lost of late, after one step more.

    The step is judged by what the drafts promise, with the rows' own records: a step that gains
    makes up for one that lost before, but for none that comes after it, since texts change.

    Args:
      loss: float32[] before.
      running: float32[] tokens per cost that all drafts promise in a step with the drafter.
      alone: float32[] those that the automata's drafts promise in a step without it.
    """
    lost = jnp.where(alone > 0.0, 1.0 - running / alone, -1.0)
    return jnp.maximum(loss + lost, 0.0)


def read_with(
    drafter: NeuralDrafter,
    runs: jax.Array,
    read: Callable[[Any], Any],
    prefill: Callable[[Any], tuple[jax.Array, Any]],
    like: jax.Array,
    cache: Any,
) -> tuple[jax.Array, Any]:
    """What the drafter's `prefill(cache)` gives after the model's `read(cache)`, as `run_if` does.

    Where the drafter does not run and has memory in the cache, that is a reading without it.

    Raises:
      ValueError: the memory is no field of the cache.
    """
    for name in drafter.memory:
        if not hasattr(cache, name):
            raise ValueError(f"drafter.memory: expected fields of the cache, got {name!r}")

    def read_without(cache: Any) -> Any:
        memory = {name: getattr(cache, name) for name in drafter.memory}
        return dataclasses.replace(read(cache), **memory)

    if drafter.memory:
        draft, otherwise = jax.jit(lambda cache: prefill(read(cache))), read_without
    else:  # one reading for both is less to compile
        draft, otherwise, cache = jax.jit(prefill), _leave, read(cache)
    cache = vary_like(cache, jax.eval_shape(draft, cache)[1])
    return run_if(drafter, runs, draft, like, cache, otherwise)


def _leave(cache: Any) -> Any:
    return cache


def run_if(
    drafter: NeuralDrafter,
    runs: jax.Array,
    draft: Callable[[Any], tuple[jax.Array, Any]],
    like: jax.Array,
    cache: Any,
    otherwise: Callable[[Any], Any] = _leave,
) -> tuple[jax.Array, Any]:
    """The drafter's tokens int32[B, M] and the cache: `draft(cache)` if bool[] `runs` says so.

    Otherwise `NO_TOKEN`s, for as many rows as int32[B] `like` has, and `otherwise(cache)`.
    """
    shape = like.size, drafter.max_draft
    none = jnp.broadcast_to(jnp.full_like(like, NO_TOKEN)[:, None], shape)

    def run(cache: Any) -> tuple[jax.Array, Any]:
        tokens, cache = draft(cache)
        check_array("drafter's tokens", tokens, jnp.int32, shape)
        return tokens, cache

    return run_branch(runs.astype(jnp.int32), (lambda cache: (none, otherwise(cache)), run), cache)
