"""Any number of prompts through the rows of a packed decoder: the queue, and the answers.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._shard_map import vary, varying_axes
from jax_sa.packed_rows import Rows, Step, admit, can_fit, free_pages
from jax_sa.pool import Pool
from jax_sa.prompts import to_lists
from jax_sa.state import AnyState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """The answers to `N` prompts."""

    tokens: jax.Array
    """int32[N, G] the new tokens, a stop token included; 0 beyond `lengths`."""
    lengths: jax.Array
    """int32[N] new tokens."""
    finished: jax.Array
    """bool[N] whether the prompt was answered. False for one that is empty or can never fit, and
    where pages that no row of this call holds were missing."""
    steps: jax.Array
    """int32[N] steps that emitted something for the prompt."""
    drafted: jax.Array
    """int32[N] drafted tokens that were verified."""
    accepted: jax.Array
    """int32[N] drafted tokens that were emitted: each saved a step."""
    calls: jax.Array
    """int32[] calls of the model for all prompts together."""
    cache: Any
    """The model's, for the next call."""
    state: AnyState | None
    """The automata, for the next call."""
    pool: Pool | None
    """The pool, with the texts that ended, for the next call."""

    def to_lists(self) -> list[list[int]]:
        """The new tokens for each prompt, on the host."""
        return to_lists(self.tokens, self.lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Prompts in the order in which they begin."""

    prompt_lengths: jax.Array
    """int32[N]."""
    limits: jax.Array
    """int32[N] new tokens at most, 0..G."""
    answered: jax.Array
    """bool[N] prompts that fit and need no new token."""
    order: jax.Array
    """int32[N] prompts that can be answered, in order; then the others."""
    count: jax.Array
    """int32[] prompts that can be answered."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
    """All that is under way: the carry of the loop."""

    rows: Rows
    """The rows, and all prompts."""
    begun: jax.Array
    """int32[] prompts of the queue that have begun."""
    tokens: jax.Array
    """int32[N, G] the new tokens so far."""
    counts: jax.Array
    """int32[N, 5] of each prompt its new tokens, steps, drafted tokens, accepted ones, and whether
    it is finished: one array, so that one scatter updates it."""
    calls: jax.Array
    """int32[] calls of the model."""


@functools.partial(jax.jit, static_argnames=("capacity", "max_prompt"))
def make_queue(
    prompt_lengths: jax.Array, limits: jax.Array, *, capacity: int, max_prompt: int
) -> Queue:
    """The prompts that can be answered come first, in the order given."""
    fits = can_fit(capacity, prompt_lengths, limits, max_prompt)
    waits = fits & (limits > 0)
    return Queue(
        prompt_lengths=prompt_lengths,
        limits=limits,
        answered=fits & (limits == 0),
        order=jnp.argsort(~waits, stable=True).astype(jnp.int32),
        count=jnp.sum(waits.astype(jnp.int32)),
    )


@functools.partial(jax.jit, static_argnames="max_new_tokens", donate_argnames="rows")
def begin(rows: Rows, queue: Queue, max_new_tokens: int) -> tuple[Work, Queue]:
    """Work of which nothing is done yet, from idle rows; inside shard_map, both vary alike."""
    (count,) = queue.order.shape
    none = jnp.zeros(count, jnp.int32)
    work = Work(
        rows=rows,
        begun=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((count, max_new_tokens), jnp.int32),
        counts=jnp.stack([none, none, none, none, queue.answered.astype(jnp.int32)], axis=1),
        calls=jnp.zeros((), jnp.int32),
    )
    # The cache's arrays may vary over further axes; the loop needs them to vary over these.
    table = getattr(rows.cache, "block_table", None)
    return vary((work, queue), varying_axes((dataclasses.replace(rows, cache=table), queue)))


def unfinished(work: Work, queue: Queue) -> jax.Array:
    """bool[] whether some row is at work, or could begin."""
    return jnp.any(~work.rows.idle) | (work.begun < queue.count)


def refill(work: Work, queue: Queue) -> Work:
    """Gives idle rows the next prompts, as far as there are pages for them."""
    rows = work.rows
    index = work.begun + jnp.cumsum(rows.idle.astype(jnp.int32)) - 1
    wanted = rows.idle & (index < queue.count)
    request = queue.order[jnp.where(wanted, index, 0)]
    lengths = jnp.where(wanted, queue.prompt_lengths[request], 0)
    rows, begins = admit(rows, lengths, queue.limits[request])
    begun = work.begun + jnp.sum(begins.astype(jnp.int32))
    # Where no row is at work and none could begin, others hold the pages: end instead of waiting.
    begun = jnp.where(jnp.all(rows.idle), queue.count, begun)
    request = jnp.where(begins, request, rows.request)
    return dataclasses.replace(work, rows=dataclasses.replace(rows, request=request), begun=begun)


def note(work: Work, rows: Rows, step: Step) -> Work:
    """The work after a step, whose tokens are written to the answers."""
    request = rows.request
    column = jnp.arange(step.tokens.shape[1], dtype=jnp.int32)[None]
    place = (rows.lengths - step.length)[:, None] + column
    place = jnp.where(column < step.length[:, None], place, work.tokens.shape[1])
    counts = [step.length, step.length > 0, step.drafted, step.accepted, step.finished]
    counts = jnp.stack([count.astype(jnp.int32) for count in counts], axis=1)
    return dataclasses.replace(
        work,
        rows=rows,
        tokens=work.tokens.at[request[:, None], place].set(step.tokens, mode="drop"),
        counts=work.counts.at[request].add(counts),
        calls=work.calls + 1,
    )


def end(work: Work) -> Completions:
    """The answers, with the buffers that can serve the next call."""
    lengths, steps, drafted, accepted, finished = work.counts.T
    return Completions(
        tokens=work.tokens,
        lengths=lengths,
        finished=finished > 0,
        steps=steps,
        drafted=drafted,
        accepted=accepted,
        calls=work.calls,
        cache=free_pages(work.rows),
        state=work.rows.state,
        pool=work.rows.pool,
    )
