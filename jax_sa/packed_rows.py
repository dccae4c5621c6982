"""The rows of a packed decoder, and the choice of what a step does with each.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most, K draft tokens, T
places of a step's block, W widths.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa import budget, tree_budget
from jax_sa._checks import INT32_MAX
from jax_sa.automaton import Draft, reset
from jax_sa.cache_schema import claim_blocks, free_blocks
from jax_sa.draft_tree import DraftTree, is_node
from jax_sa.pool import Pool
from jax_sa.pool_insert import insert_slots
from jax_sa.sampling import Sampling
from jax_sa.state import AnyState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The requests that `B` rows are at work on, and all that the next step needs."""

    prompts: jax.Array
    """int32[N, P] the prompts that the rows read. N is B where the caller admits requests."""
    request: jax.Array
    """int32[B] the prompt of each row, an index among the N; of no account in an idle row."""
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
    draft: Draft | DraftTree
    """The draft that the next step may verify."""
    record: budget.Record
    """The failures of the row's drafts, seen and expected."""
    cache: Any
    """The model's."""
    state: AnyState | None
    """The automata, of prompts and new tokens; None: no drafts."""
    sampling: Sampling | None
    """How tokens are drawn, with one number for all or N of them; None: greedily."""
    pool: Pool | None
    """The texts of requests that ended, to draft from; None: no pool."""
    groups: jax.Array | None
    """int32[N] the group of the pool that each prompt belongs to; None without a pool."""

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
    draft: Draft | DraftTree
    """The drafts as cut for this block."""


@functools.partial(jax.jit, donate_argnames=("cache", "state", "pool"))
def idle_rows(
    cache: Any,
    state: AnyState | None,
    sampling: Sampling | None,
    prompts: jax.Array,
    request: jax.Array,
    draft: Draft | DraftTree,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
) -> Rows:
    """Rows without requests: as many as int32[B] `request` has."""
    none = jnp.zeros_like(request)
    if pool is not None and groups is None:
        groups = jnp.zeros_like(prompts[:, 0])
    # Copies, because the rows are donated from step to step, and these are the caller's.
    copied = jax.tree.map(jnp.copy, (prompts, request, sampling, groups))
    prompts, request, sampling, groups = copied
    return Rows(
        prompts=prompts,
        request=request,
        prompt_lengths=none,
        limits=none,
        read=none,
        lengths=none,
        last=none,
        draft=draft,
        record=budget.init_record(none),
        cache=cache,
        state=state,
        sampling=sampling,
        pool=pool,
        groups=groups,
    )


def no_drafts(rows: int, max_draft: int) -> Draft:
    """Drafts without tokens."""
    none = jnp.zeros(rows, jnp.int32)
    return Draft(jnp.zeros((rows, max_draft), jnp.int32), none, none, none, none)


def has_room_for_trees(block: Block, rows: Rows) -> bool:
    """Whether a block may hold trees. One with a place for each row is left to plain decoding."""
    return block.judged > rows.limits.size


def plan_step(rows: Rows, blocks: list[Block], costs: jax.Array) -> Plan:
    """Chooses the block with the most expected tokens per cost, and fills it.

    While rows read prompts, it is the shortest block for that whose room for prompts is at least
    half of what there is to read. The prompts have what the drafts leave of it. A width of cost 0
    or less is worth nothing.
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
    if isinstance(rows.draft, DraftTree):
        has_room = [has_room_for_trees(block, rows) for block in blocks]
        spare = jnp.where(jnp.asarray(has_room), spare, 0)
    held, cut = _share(rows.draft, strain, spare)
    too_small = 2 * (totals[num_widths:-1] - judged[-1]) < num_unread
    block = jnp.where(
        num_unread > 0,
        num_widths + jnp.sum(too_small.astype(jnp.int32)),
        budget.best_width(num_decoding.astype(jnp.float32) + held[:num_widths], costs),
    )

    draft = cut(block)
    places = totals[block] - num_decoding - jnp.sum(draft.length)
    before = jnp.cumsum(unread) - unread
    chunk = jnp.clip(places - before, 0, unread)
    return Plan(
        block=block,
        counts=jnp.where(decoding, 1, chunk),
        emits=decoding | ((unread > 0) & (chunk == unread)),
        draft=draft,
    )


def _share(
    draft: Draft | DraftTree, strain: jax.Array, budgets: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Shares int32[W] budgets of drafted tokens among the rows, each alone.

    Returns:
      float32[W] tokens that are expected to hold; a function that cuts the drafts to the budget of
      a number int32[].
    """
    if isinstance(draft, DraftTree):
        chances = tree_budget.survival(draft, strain)
        rank = tree_budget.rank(chances)
        is_kept = rank.ravel()[None] < budgets[:, None]
        held = jnp.sum(jnp.where(is_kept, chances.ravel()[None], 0.0), axis=1)
        return held, lambda i: tree_budget.keep(draft, (rank < budgets[i]) & (chances > 0.0))
    lengths = budget.shared_lengths(draft, budgets, 1.0 / strain)
    held = budget.expected_tokens(budget.survival(draft, strain), lengths)
    return held, lambda i: budget.cut_draft(draft, lengths[i])


def unread_tokens(rows: Rows, width: int) -> jax.Array:
    """int32[B, width] the tokens of each prompt that the model has not read, the next one first."""
    column = rows.read[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    return rows.prompts.at[rows.request[:, None], column].get(mode="clip")


def own_tokens(rows: Rows, width: int) -> jax.Array:
    """int32[B, width] the tokens that the model has not read: of a prompt, or the last one."""
    reading = rows.read < rows.prompt_lengths
    return jnp.where(reading[:, None], unread_tokens(rows, width), rows.last[:, None])


def append_tokens(
    rows: Rows, prompt_counts: jax.Array, emitted: jax.Array, width: int
) -> jax.Array:
    """int32[B, width + 1 + K] of each row the prompt tokens that a step read, then its new tokens.

    Args:
      rows: before the step.
      prompt_counts: int32[B] prompt tokens that it read.
      emitted: int32[B, 1 + K].
      width: static; a step reads no more tokens of a prompt.
    """
    column = jnp.arange(width + emitted.shape[1], dtype=jnp.int32)[None]
    after = jnp.maximum(column - prompt_counts[:, None], 0)
    new = jnp.take_along_axis(emitted, after, axis=1, mode="clip")
    read = column < prompt_counts[:, None]
    return jnp.where(read, unread_tokens(rows, column.size), new)


def admit(rows: Rows, prompt_lengths: jax.Array, limits: jax.Array) -> tuple[Rows, jax.Array]:
    """Frees the pages of idle rows, and gives those that can begin a request its pages.

    Lengths and limits are those of `PackedDecoder.admit`; the prompts themselves are up to the
    caller.

    Returns:
      The rows, and bool[B] which of them began.
    """
    begins = rows.idle & (prompt_lengths > 0) & (limits > 0)
    begins &= prompt_lengths <= rows.prompts.shape[1]
    cache, state = rows.cache, rows.state
    if (table := getattr(cache, "block_table", None)) is not None:
        none = jnp.zeros(1, jnp.int32)  # the padding slot's
        table = free_blocks(table, jnp.concatenate([none > 0, rows.idle]))
        needed = jnp.where(begins, prompt_lengths + limits, 0)
        table, granted = claim_blocks(table, jnp.concatenate([none, needed]))
        cache = dataclasses.replace(cache, block_table=table)
        begins &= granted[1:]
    if state is not None:
        slot = jnp.arange(begins.shape[0], dtype=jnp.int32)
        state = reset(state, jnp.where(begins, slot, -1))

    def put(new: Any, old: jax.Array) -> jax.Array:
        return jnp.where(begins, new, old)

    zero = jnp.zeros_like(prompt_lengths)
    return dataclasses.replace(
        rows,
        prompt_lengths=put(prompt_lengths, rows.prompt_lengths),
        limits=put(limits, rows.limits),
        read=put(zero, rows.read),
        lengths=put(zero, rows.lengths),
        record=jax.tree.map(lambda old: put(jnp.zeros_like(old), old), rows.record),
        cache=cache,
        state=state,
    ), begins


def insert_texts(
    rows: Rows, state: AnyState, finished: jax.Array, *, responses_only: bool
) -> Pool | None:
    """The pool with the texts, or responses, of rows that ended with a step.

    Args:
      rows: before the step.
      state: after it.
      finished: bool[B] rows that ended.
      responses_only: whether prompts stay out.
    """
    if rows.pool is None:
        return None
    slots = jnp.where(finished, jnp.arange(finished.size, dtype=jnp.int32), -1)
    starts = jnp.minimum(rows.prompt_lengths, state.length) if responses_only else None
    groups = rows.groups[rows.request]
    return insert_slots(rows.pool, state, slots, starts=starts, groups=groups)


def release(rows: Rows, mask: jax.Array) -> Rows:
    """Makes the rows of bool[B] `mask` idle. Their pages are freed at the next admission."""
    draft = rows.draft
    if isinstance(draft, DraftTree):
        draft = tree_budget.keep(draft, is_node(draft) & ~mask[:, None])
    else:
        draft = budget.cut_draft(draft, jnp.where(mask, 0, draft.length))
    return dataclasses.replace(
        rows,
        prompt_lengths=jnp.where(mask, 0, rows.prompt_lengths),
        draft=draft,
    )


def free_pages(rows: Rows) -> Any:
    """The cache without the pages of idle rows."""
    if (table := getattr(rows.cache, "block_table", None)) is None:
        return rows.cache
    idle = jnp.concatenate([jnp.zeros(1, bool), rows.idle])
    return dataclasses.replace(rows.cache, block_table=_free_blocks(table, idle))


def row_capacity(cache: Any) -> int:
    """Tokens that a row with all pages to itself could hold; 2**31 - 1 where there are no pages."""
    if (table := getattr(cache, "block_table", None)) is None:
        return INT32_MAX
    return min(table.pages.shape[1], table.unclaimed.shape[0] - 1) * table.block_size


def can_fit(capacity: int, prompt_lengths: Any, limits: Any, max_prompt: int) -> Any:
    """bool[N] requests that have a prompt, and that a row of `capacity` tokens could hold."""
    fits = (prompt_lengths >= 1) & (prompt_lengths <= max_prompt)
    return fits & (prompt_lengths <= capacity - limits)


_free_blocks = jax.jit(free_blocks)
