"""The rows of a packed decoder, and the choice of what a step does with each.

Letters: B rows, P tokens of the longest prompt, G new tokens at most, K draft tokens, T places of a
step's block, W widths.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa import budget
from jax_sa.automaton import Draft
from jax_sa.cache_schema import claim_blocks, free_blocks
from jax_sa.sampling import Sampling
from jax_sa.state import State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The requests that `B` rows are at work on, and all that the next step needs."""

    prompts: jax.Array
    """int32[B, P] the prompt of each row's request."""
    prompt_lengths: jax.Array
    """int32[B] its tokens; 0 in an idle row."""
    limits: jax.Array
    """int32[B] new tokens at most, 0..G."""
    read: jax.Array
    """int32[B] tokens of the text, prompt and new ones, that the model's cache holds."""
    lengths: jax.Array
    """int32[B] new tokens."""
    last: jax.Array
    """int32[B] the last new token, which the model has not read."""
    draft: Draft
    """The draft that the next step may verify."""
    record: budget.Record
    """How well the row's drafts did."""
    cache: Any
    """The model's."""
    state: State | None
    """The automata, of prompts and new tokens; None: no drafts."""
    sampling: Sampling | None
    """How tokens are drawn; None: greedily."""

    @property
    def idle(self) -> jax.Array:
        """bool[B] rows that can take a request."""
        return self.prompt_lengths == 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """The outcome of one step, for B rows."""

    tokens: jax.Array
    """int32[B, 1 + K] the new tokens; `DRAFT_FILL` beyond `length`."""
    length: jax.Array
    """int32[B] how many; 0 while a row reads its prompt, and in an idle row."""
    finished: jax.Array
    """bool[B] rows whose request ended with this step. They are idle now."""
    drafted: jax.Array
    """int32[B] drafted tokens that were verified."""
    accepted: jax.Array
    """int32[B] those of them that were emitted."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The static sizes of a block."""

    total: int
    """T."""
    judged: int
    """Places whose logits are read at most. The others hold prompt tokens."""
    reads_prompts: bool
    """Whether it is for steps in which some row reads its prompt."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The content of a step's block, before it is laid out."""

    block: jax.Array
    """int32[] index among the blocks that are compiled."""
    counts: jax.Array
    """int32[B] the row's own tokens in the block."""
    emits: jax.Array
    """bool[B] rows whose own tokens end at the end of their text."""
    draft: Draft
    """The drafts as cut for this block."""


@functools.partial(
    jax.jit, static_argnames=("rows", "max_prompt", "max_draft"), donate_argnames=("cache", "state")
)
def idle_rows(
    cache: Any,
    state: State | None,
    sampling: Sampling | None,
    rows: int,
    max_prompt: int,
    max_draft: int,
) -> Rows:
    """Rows without requests."""
    none = jnp.zeros(rows, jnp.int32)
    return Rows(
        prompts=jnp.zeros((rows, max_prompt), jnp.int32),
        prompt_lengths=none,
        limits=none,
        read=none,
        lengths=none,
        last=none,
        draft=Draft(jnp.zeros((rows, max_draft), jnp.int32), none, none, none),
        record=budget.init_record(none),
        cache=cache,
        state=state,
        # A copy, because the rows are donated from step to step, and the key is the caller's.
        sampling=jax.tree.map(jnp.copy, sampling),
    )


def plan_step(rows: Rows, blocks: list[Block], costs: jax.Array) -> Plan:
    """Chooses the block with the most expected tokens per cost, and fills it.

    While rows read prompts, it is the smallest block for that which holds all there is to read.
    The prompts have what the drafts leave of it.
    """
    decoding = ~rows.idle & (rows.read >= rows.prompt_lengths)
    unread = jnp.maximum(rows.prompt_lengths - rows.read, 0)
    totals = jnp.asarray([block.total for block in blocks], jnp.int32)
    judged = jnp.asarray([block.judged for block in blocks], jnp.int32)
    num_widths = sum(not block.reads_prompts for block in blocks)
    num_rows = jnp.asarray(decoding.shape[0], jnp.int32)
    num_decoding = jnp.sum(decoding.astype(jnp.int32))
    num_unread = jnp.sum(unread)

    strain = rows.record.strain()
    spare = judged - jnp.where(jnp.arange(len(blocks)) < num_widths, num_decoding, num_rows)
    lengths = budget.shared_lengths(rows.draft, spare, 1.0 / strain)
    held = budget.expected_tokens(budget.survival(rows.draft, strain), lengths[:num_widths])
    worth = (num_decoding.astype(jnp.float32) + held) / costs
    holds_all = totals[num_widths:] >= jnp.minimum(judged[-1] + num_unread, totals[-1])
    block = jnp.where(
        num_unread > 0,
        num_widths + jnp.argmax(holds_all).astype(jnp.int32),
        jnp.argmax(worth).astype(jnp.int32),
    )

    draft = budget.cut_draft(rows.draft, lengths[block])
    places = totals[block] - num_decoding - jnp.sum(draft.length)
    before = jnp.cumsum(unread) - unread
    chunk = jnp.clip(places - before, 0, unread)
    return Plan(
        block=block,
        counts=jnp.where(decoding, 1, chunk),
        emits=decoding | ((unread > 0) & (chunk == unread)),
        draft=draft,
    )


def own_tokens(rows: Rows, width: int) -> jax.Array:
    """int32[B, width] the tokens that the model has not read: of a prompt, or the last one."""
    column = rows.read[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    unread = jnp.take_along_axis(rows.prompts, column, axis=1, mode="clip")
    return jnp.where((rows.read < rows.prompt_lengths)[:, None], unread, rows.last[:, None])


def admit(
    rows: Rows, prompts: jax.Array, prompt_lengths: jax.Array, limits: jax.Array
) -> tuple[Rows, jax.Array]:
    """Frees the pages of idle rows, and gives those that can begin a request its pages.

    Arguments and results are those of `PackedDecoder.admit`. The automata are not reset: that is
    for the caller, outside of any branch.
    """
    begins = rows.idle & (prompt_lengths > 0) & (limits > 0)
    begins &= prompt_lengths <= rows.prompts.shape[1]
    cache = rows.cache
    if (table := getattr(cache, "block_table", None)) is not None:
        none = jnp.zeros(1, jnp.int32)  # the padding slot's
        table = free_blocks(table, jnp.concatenate([none > 0, rows.idle]))
        needed = jnp.where(begins, prompt_lengths + limits, 0)
        table, granted = claim_blocks(table, jnp.concatenate([none, needed]))
        cache = dataclasses.replace(cache, block_table=table)
        begins &= granted[1:]

    def put(new: Any, old: jax.Array) -> jax.Array:
        return jnp.where(begins, new, old)

    zero = jnp.zeros_like(prompt_lengths)
    return dataclasses.replace(
        rows,
        prompts=jnp.where(begins[:, None], prompts, rows.prompts),
        prompt_lengths=put(prompt_lengths, rows.prompt_lengths),
        limits=put(limits, rows.limits),
        read=put(zero, rows.read),
        lengths=put(zero, rows.lengths),
        record=jax.tree.map(lambda old: put(jnp.zeros_like(old), old), rows.record),
        cache=cache,
    ), begins


def free_pages(rows: Rows) -> Any:
    """The cache without the pages of idle rows."""
    if (table := getattr(rows.cache, "block_table", None)) is None:
        return rows.cache
    idle = jnp.concatenate([jnp.zeros(1, bool), rows.idle])
    return dataclasses.replace(rows.cache, block_table=free_blocks(table, idle))


def can_fit(cache: Any, prompt_lengths: Any, limits: Any, max_prompt: int) -> Any:
    """bool[N] requests that have a prompt, and that a row with all pages to itself could hold."""
    fits = (prompt_lengths >= 1) & (prompt_lengths <= max_prompt)
    if (table := getattr(cache, "block_table", None)) is not None:
        most = min(table.pages.shape[1], table.unclaimed.shape[0] - 1) * table.block_size
        fits &= prompt_lengths <= most - limits
    return fits
