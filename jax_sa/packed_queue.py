"""Any number of prompts through the rows of a packed decoder: the queue, and the answers.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._shard_map import vary, varying_axes
from jax_sa.followers import Followers
from jax_sa.packed_rows import Rows, Step, admit, can_fit, free_pages, release
from jax_sa.pool import Pool
from jax_sa.prompts import to_lists
from jax_sa.state import AnyState

COUNTS = 5
"""The numbers behind the tokens of an answer: see `Work.answers`."""

REFILL_SHARE = 32
"""Prompts wait until one row in so many has ended, and begin together: a step that reads prompts
takes longer, however few they are, and rows that are idle for a few steps cost less."""


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
    followers: Followers | None
    """The followers, as they are known now, for the next call."""

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
    answers: jax.Array
    """int32[N, G + 5] of each prompt the new tokens so far; then their number, steps, drafted
    tokens, accepted ones, and whether it is finished: one array, so that one scatter updates it."""
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
    answers = jnp.zeros((count, max_new_tokens + COUNTS), jnp.int32)
    work = Work(
        rows=rows,
        begun=jnp.zeros((), jnp.int32),
        answers=answers.at[:, -1].set(queue.answered.astype(jnp.int32)),
        calls=jnp.zeros((), jnp.int32),
    )
    # The cache's arrays may vary over further axes; the loop needs them to vary over these.
    few = dataclasses.replace(rows, cache=rows.block_table)
    return vary((work, queue), varying_axes((few, queue)))


@functools.partial(jax.jit, donate_argnames="work")
def begin_again(work: Work) -> Work:
    """The work as if nothing of it were done, in the same memory.

    A GPU that finds the buffers of a program elsewhere than in its last run has to tell each of its
    kernels so, which takes longer than a few steps.
    """
    rows = release(work.rows, jnp.ones_like(work.rows.idle))
    return dataclasses.replace(work, rows=rows, begun=jnp.zeros_like(work.begun))


@functools.partial(jax.jit, donate_argnames="work")
def begin_no_more(work: Work, queue: Queue) -> Work:
    """The work without the prompts that have not begun; in the same memory."""
    return dataclasses.replace(work, begun=jnp.maximum(work.begun, queue.count))


def unfinished(work: Work, queue: Queue) -> jax.Array:
    """bool[] whether some row is at work, or could begin."""
    return jnp.any(~work.rows.idle) | (work.begun < queue.count)


def outlook(
    work: Work, queue: Queue, last: jax.Array, ended: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """bool[] whether it goes on; bool[] whether idle rows are to be given prompts first.

    Args:
      work: as it is now.
      queue: of its prompts.
      last: int32[] calls of the model at most.
      ended: bool[B] rows that have ended since idle rows were given prompts.
    """
    # One sum in place of two: on a GPU, each is a kernel.
    num_working, num_ended = jnp.sum(jnp.stack([~work.rows.idle, ended]).astype(jnp.int32), axis=1)
    waiting = queue.count - work.begun
    enough = num_ended >= jnp.clip(waiting, 1, max(1, ended.size // REFILL_SHARE))
    refills = (waiting > 0) & (enough | (num_working == 0))
    return (work.calls < last) & ((num_working > 0) | (waiting > 0)), refills


def refill(work: Work, queue: Queue) -> Work:
    """Gives idle rows the next prompts, as far as there are pages for them.

    Until a row ends, doing it again changes nothing.
    """
    rows = work.rows
    index = work.begun + jnp.cumsum(rows.idle.astype(jnp.int32)) - 1
    wanted = rows.idle & (index < queue.count)
    request = queue.order[jnp.where(wanted, index, 0)]
    lengths = jnp.where(wanted, queue.prompt_lengths[request], 0)
    were_idle = jnp.all(rows.idle)
    rows, begins = admit(rows, lengths, queue.limits[request], request)
    begun = work.begun + jnp.sum(begins.astype(jnp.int32))
    # Where no row is at work and none could begin, others hold the pages: end instead of waiting.
    begun = jnp.where(were_idle & ~jnp.any(begins), queue.count, begun)
    return dataclasses.replace(work, rows=rows, begun=begun)


def note(work: Work, rows: Rows, step: Step) -> Work:
    """The work after a step, whose tokens and counts are written to the answers."""
    finished = step.finished.astype(jnp.int32)
    counts = [rows.lengths, rows.steps, rows.drafted, rows.accepted, finished]
    width, most = step.tokens.shape[1], work.answers.shape[1] - COUNTS
    column = jnp.arange(width + COUNTS, dtype=jnp.int32)[None]
    token_place = (rows.lengths - step.length)[:, None] + column
    place = jnp.where(column < width, token_place, most + column - width)
    is_new = (column < step.length[:, None]) | (column >= width)
    is_new &= (~rows.idle | step.finished)[:, None]
    place = jnp.where(is_new, place, work.answers.shape[1])
    written = jnp.concatenate([step.tokens, jnp.stack(counts, axis=1)], axis=1)
    answers = work.answers.at[rows.request[:, None], place].set(written, mode="drop")
    # Behind a barrier it is a kernel of its own, beside others. XLA makes a CUDA graph of no fewer
    # than five, and a step of one row without drafts would have four: it took twice as long.
    calls = jax.lax.optimization_barrier(work.calls + 1)
    return dataclasses.replace(work, rows=rows, answers=answers, calls=calls)


def end(work: Work) -> Completions:
    """The answers, with the buffers that can serve the next call."""
    tokens, counts = jnp.split(work.answers, [work.answers.shape[1] - COUNTS], axis=1)
    lengths, steps, drafted, accepted, finished = counts.T
    return Completions(
        tokens=tokens,
        lengths=lengths,
        finished=finished > 0,
        steps=steps,
        drafted=drafted,
        accepted=accepted,
        calls=work.calls,
        cache=free_pages(work.rows),
        state=work.rows.state,
        pool=work.rows.pool,
        followers=work.rows.followers,
    )
