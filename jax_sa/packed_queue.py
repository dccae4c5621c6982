"""Any number of prompts through the rows of a packed decoder: the queue, and the answers.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa.automaton import reset
from jax_sa.packed_rows import Rows, Step, admit, can_fit, free_pages
from jax_sa.state import State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """The answers to `N` prompts."""

    tokens: jax.Array
    """int32[N, G] the new tokens, a stop token included; 0 beyond `lengths`."""
    lengths: jax.Array
    """int32[N] new tokens."""
    finished: jax.Array
    """bool[N] whether the prompt was answered. False for one that can never fit, or is empty."""
    steps: jax.Array
    """int32[N] steps that emitted something for the prompt."""
    drafted: jax.Array
    """int32[N] drafted tokens that were verified."""
    accepted: jax.Array
    """int32[N] those of them that saved a step."""
    calls: jax.Array
    """int32[] calls of the model for all prompts together."""
    cache: Any
    """The model's, for the next call."""
    state: State | None
    """The automata, for the next call."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Prompts in the order in which they begin."""

    prompts: jax.Array
    """int32[N, P]."""
    prompt_lengths: jax.Array
    """int32[N]."""
    limits: jax.Array
    """int32[N] new tokens at most, 0..G."""
    order: jax.Array
    """int32[N] prompts that can be answered, in order; then the others."""
    count: jax.Array
    """int32[] prompts that can be answered."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
    """All that is under way: the carry of the loop."""

    rows: Rows
    """The rows."""
    request: jax.Array
    """int32[B] the prompt of each row; N in an idle one."""
    begun: jax.Array
    """int32[] prompts of the queue that have begun."""
    done: Completions
    """What was written so far; without cache and state, which the rows have."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Pages:
    """The part of a cache that the admission of a request changes."""

    block_table: Any


def make_queue(
    cache: Any, prompts: jax.Array, prompt_lengths: jax.Array, limits: jax.Array
) -> Queue:
    """The prompts that can be answered come first, in the order given."""
    waits = can_fit(cache, prompt_lengths, limits, prompts.shape[1]) & (limits > 0)
    return Queue(
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        limits=limits,
        order=jnp.argsort(~waits, stable=True).astype(jnp.int32),
        count=jnp.sum(waits.astype(jnp.int32)),
    )


@functools.partial(jax.jit, static_argnames="max_new_tokens", donate_argnames="rows")
def begin(rows: Rows, queue: Queue, max_new_tokens: int) -> Work:
    """Work of which nothing is done yet, from idle rows."""
    (num_rows,) = rows.prompt_lengths.shape
    (count,) = queue.order.shape
    fits = can_fit(rows.cache, queue.prompt_lengths, queue.limits, queue.prompts.shape[1])
    none = jnp.zeros(count, jnp.int32)
    return Work(
        rows=rows,
        request=jnp.full(num_rows, count, jnp.int32),
        begun=jnp.zeros((), jnp.int32),
        done=Completions(
            tokens=jnp.zeros((count, max_new_tokens), jnp.int32),
            lengths=none,
            finished=fits & (queue.limits == 0),
            steps=none,
            drafted=none,
            accepted=none,
            calls=jnp.zeros((), jnp.int32),
            cache=None,
            state=None,
        ),
    )


def unfinished(work: Work, queue: Queue) -> jax.Array:
    """bool[] whether some row is at work, or could begin."""
    return jnp.any(~work.rows.idle) | (work.begun < queue.count)


def refill(work: Work, queue: Queue) -> Work:
    """Gives idle rows the next prompts, as far as there are pages for them."""
    rows = work.rows
    if queue.order.shape[0] == 0:
        return work
    cache, state = rows.cache, rows.state
    table = getattr(cache, "block_table", None)
    # Only the small arrays go through the branch: jax before 0.11.2 copies what a branch updates.
    small = dataclasses.replace(rows, cache=_Pages(table), state=None)
    waiting = jnp.any(rows.idle) & (work.begun < queue.count)
    small, request, begins = jax.lax.cond(
        waiting,
        lambda rows, request: _take(rows, request, queue, work.begun),
        lambda rows, request: (rows, request, rows.idle & False),
        small,
        work.request,
    )
    if table is not None:
        cache = dataclasses.replace(cache, block_table=small.cache.block_table)
    if state is not None:
        slot = jnp.arange(begins.shape[0], dtype=jnp.int32)
        state = reset(state, jnp.where(begins, slot, -1))
    begun = work.begun + jnp.sum(begins.astype(jnp.int32))
    # Where no row is at work and none could begin, others hold the pages: end instead of waiting.
    stuck = waiting & jnp.all(small.idle)
    begun = jnp.where(stuck, queue.count, begun)
    return dataclasses.replace(
        work,
        rows=dataclasses.replace(small, cache=cache, state=state),
        request=request,
        begun=begun,
    )


def _take(
    rows: Rows, request: jax.Array, queue: Queue, begun: jax.Array
) -> tuple[Rows, jax.Array, jax.Array]:
    """The rows after admission, their requests, and bool[B] which of them began."""
    rank = jnp.cumsum(rows.idle.astype(jnp.int32)) - 1
    index = begun + rank
    wanted = rows.idle & (index < queue.count)
    prompt = queue.order[jnp.where(wanted, index, 0)]
    lengths = jnp.where(wanted, queue.prompt_lengths[prompt], 0)
    rows, begins = admit(rows, queue.prompts[prompt], lengths, queue.limits[prompt])
    return rows, jnp.where(begins, prompt, request), begins


def note(work: Work, rows: Rows, step: Step) -> Work:
    """The work after a step, whose tokens are written to the answers."""
    done, count = work.done, work.done.lengths.shape[0]
    emits = step.length > 0
    column = jnp.arange(step.tokens.shape[1], dtype=jnp.int32)[None]
    place = (rows.lengths - step.length)[:, None] + column
    place = jnp.where(column < step.length[:, None], place, done.tokens.shape[1])
    request = work.request

    def add(total: jax.Array, values: jax.Array) -> jax.Array:
        return total.at[request].add(values.astype(jnp.int32), mode="drop")

    return dataclasses.replace(
        work,
        rows=rows,
        request=jnp.where(step.finished, count, request),
        done=dataclasses.replace(
            done,
            tokens=done.tokens.at[request[:, None], place].set(step.tokens, mode="drop"),
            lengths=add(done.lengths, step.length),
            finished=done.finished.at[request].max(step.finished, mode="drop"),
            steps=add(done.steps, emits),
            drafted=add(done.drafted, step.drafted),
            accepted=add(done.accepted, step.accepted),
            calls=done.calls + 1,
        ),
    )


def end(work: Work) -> Completions:
    """The answers, with the buffers that can serve the next call."""
    cache = free_pages(work.rows)
    return dataclasses.replace(work.done, cache=cache, state=work.rows.state)
