"""The rows of a packed decoder, and the choice of what a step does with each.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most, K draft tokens, T
places of a step's block, W widths.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa import budget, tree_budget
from jax_sa._checks import INT32_MAX
from jax_sa.automaton import DRAFT_FILL, Draft, reset
from jax_sa.cache_schema import BlockTable, claim_blocks, free_blocks
from jax_sa.draft_tree import DraftTree, is_node
from jax_sa.followers import NO_FOLLOWER, Followers, note_followers
from jax_sa.packed_blocks import Block
from jax_sa.pool import Pool
from jax_sa.pool_insert import insert_slots
from jax_sa.sampling import Sampling, of_first_step
from jax_sa.state import AnyState
from jax_sa.verify import Accepted, cut_at_stop, last_token

NUMBERS = (
    *("request", "prompt_lengths", "limits", "read", "lengths", "last"),
    *("steps", "drafted", "accepted"),
)
"""The columns of `Rows.numbers`, by the properties that give them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The requests that `B` rows are at work on, and all that the next step needs."""

    prompts: jax.Array
    """int32[N, P] the prompts that the rows read. N is B where the caller admits requests."""
    numbers: jax.Array
    """int32[B, 9] all that changes with a step and is one number for each row, in columns as
    `NUMBERS` names them: one array, which one kernel writes."""
    draft: Draft | DraftTree
    """The draft that the next step may verify."""
    record: budget.Record
    """The failures of the row's drafts, seen and expected."""
    cache: Any
    """The model's."""
    state: AnyState | None
    """The automata, of prompts and new tokens; None: no drafts."""
    sampling: Sampling | None
    """How tokens are drawn, with one number for all or N of them, and the next step's key; None:
    greedily."""
    pool: Pool | None
    """The texts of requests that ended, to draft from; None: no pool."""
    followers: Followers | None
    """What the model expected after each token, to draft trees from; None: not kept."""
    groups: jax.Array | None
    """int32[N] the group of the pool and of the followers that each prompt belongs to; None without
    them."""

    @property
    def request(self) -> jax.Array:
        """int32[B] the prompt of each row, an index among the N; of no account in an idle row."""
        return self._number("request")

    @property
    def prompt_lengths(self) -> jax.Array:
        """int32[B] its tokens; 0 in an idle row."""
        return self._number("prompt_lengths")

    @property
    def limits(self) -> jax.Array:
        """int32[B] new tokens at most, 0..G."""
        return self._number("limits")

    @property
    def read(self) -> jax.Array:
        """int32[B] tokens of the text, prompt and new ones, that the model's cache holds."""
        return self._number("read")

    @property
    def lengths(self) -> jax.Array:
        """int32[B] new tokens."""
        return self._number("lengths")

    @property
    def last(self) -> jax.Array:
        """int32[B] the last new token, which the model has not read."""
        return self._number("last")

    @property
    def steps(self) -> jax.Array:
        """int32[B] steps that emitted something for the request."""
        return self._number("steps")

    @property
    def drafted(self) -> jax.Array:
        """int32[B] drafted tokens of it that were verified."""
        return self._number("drafted")

    @property
    def accepted(self) -> jax.Array:
        """int32[B] those of them that were emitted."""
        return self._number("accepted")

    @property
    def idle(self) -> jax.Array:
        """bool[B] rows that can take a request."""
        return self.prompt_lengths == 0

    @property
    def decoding(self) -> jax.Array:
        """bool[B] rows whose prompt is read."""
        return ~self.idle & (self.read >= self.prompt_lengths)

    @property
    def unread(self) -> jax.Array:
        """int32[B] tokens of the prompt that are not read; 0 in an idle row."""
        return jnp.maximum(self.prompt_lengths - self.read, 0)

    @property
    def block_table(self) -> BlockTable | None:
        """The pages of the rows; None where the cache has none."""
        return getattr(self.cache, "block_table", None)

    def emits(self, counts: jax.Array) -> jax.Array:
        """bool[B] rows whose text ends with the int32[B] own tokens that a step reads of it."""
        return self.decoding | ((counts > 0) & (counts == self.unread))

    def _number(self, name: str) -> jax.Array:
        return self.numbers[:, NUMBERS.index(name)]


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """What the next step verifies, and in which block."""

    block: jax.Array
    """int32[] index among the blocks that are compiled for it."""
    drafts: jax.Array
    """bool[] whether it verifies drafts at all."""
    needed: jax.Array
    """float32[B, K] the places that all rows must have together for a drafted token, or a node of a
    tree, to be verified; infinite where it never is."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What the model says of a block."""

    accepted: Accepted
    """The tokens, of at most 1 + K places."""
    counts: jax.Array
    """int32[B] the own tokens of each row that it read."""
    draft: Draft | DraftTree
    """What was verified."""
    path: jax.Array | None
    """int32[B, 1 + K] the nodes of a tree that hold; None of chains."""
    cache: Any
    """The model's, after it."""
    followers: Followers | None
    """With what its logits say of the tokens that it read."""


@functools.partial(jax.jit, donate_argnames=("cache", "state", "pool", "followers"))
def idle_rows(
    cache: Any,
    state: AnyState | None,
    sampling: Sampling | None,
    prompts: jax.Array,
    request: jax.Array,
    draft: Draft | DraftTree,
    pool: Pool | None = None,
    followers: Followers | None = None,
    groups: jax.Array | None = None,
) -> Rows:
    """Rows without requests: as many as int32[B] `request` has."""
    none = jnp.zeros_like(request)
    numbers = [request if name == "request" else none for name in NUMBERS]
    if groups is None and (pool is not None or followers is not None):
        groups = jnp.zeros_like(prompts[:, 0])
    # Copies, because the rows are donated from step to step, and these are the caller's.
    prompts, groups = jax.tree.map(jnp.copy, (prompts, groups))
    return Rows(
        prompts=prompts,
        numbers=jnp.stack(numbers, axis=1),
        draft=draft,
        record=budget.init_record(none),
        cache=cache,
        state=state,
        sampling=sampling and of_first_step(sampling),
        pool=pool,
        followers=followers,
        groups=groups,
    )


def changed_by_block(rows: Rows) -> dict[str, Any]:
    """The fields that a step's block changes, by their names. All else is the same for each."""
    names = "numbers", "record", "cache", "state", "followers"
    return {name: getattr(rows, name) for name in names}


def with_numbers(rows: Rows, **changed: jax.Array) -> Rows:
    """The rows with some of the `NUMBERS` changed, int32[B] each."""
    columns = {name: getattr(rows, name) for name in NUMBERS} | changed
    return dataclasses.replace(rows, numbers=jnp.stack(list(columns.values()), axis=1))


def no_drafts(like: jax.Array, max_draft: int) -> Draft:
    """Drafts without tokens, for as many rows as int32[B] `like` has.

    Inside shard_map they vary as it does.
    """
    none = jnp.zeros_like(like)
    return Draft(jnp.broadcast_to(none[:, None], (none.size, max_draft)), none)


def has_room_for_drafts(block: Block, rows: Rows) -> bool:
    """Whether a block may hold drafts. One with a place for each row is left to plain decoding."""
    return block.judged > rows.numbers.shape[0]


def plan_step(rows: Rows, blocks: list[Block], costs: jax.Array) -> Plan:
    """Chooses the block with the most expected tokens per cost, and the drafts for it.

    While rows read prompts, it is the shortest block for that whose room for prompts is at least
    half of what there is to read, and that has room for drafts if the best width has. The prompts
    have what the drafts leave of it. A width of cost 0 or less is worth nothing.
    """
    num_widths = costs.size
    room = [b.judged if has_room_for_drafts(b, rows) else 0 for b in blocks[:num_widths]]
    room = jnp.asarray(room, jnp.float32)
    chances, needed = _share(rows)

    # All sums at once, as each is a kernel on a GPU: of the tokens that a step of each width is
    # expected to emit, and of those that are not read.
    own = [*[rows.decoding.astype(jnp.float32)] * num_widths, rows.unread.astype(jnp.float32)]
    verified = needed[None] <= room[:, None, None]
    held = jnp.where(verified, chances[None], 0.0)
    held = jnp.pad(held, ((0, 1), (0, 0), (0, 0)))
    sums = jnp.sum(jnp.concatenate([held, jnp.stack(own)[..., None]], axis=2), axis=(1, 2))
    num_unread = sums[-1]
    best = budget.best_width(sums[:num_widths], costs)
    reading = _reading_block(blocks, num_unread, drafts=best > 0)
    return Plan(jnp.where(num_unread > 0, reading, best), best > 0, needed)


def cut_for(plan: Plan, rows: Rows, block: Block) -> Draft | DraftTree:
    """The drafts of the rows as far as a block has room for them."""
    draft = rows.draft
    if not has_room_for_drafts(block, rows):
        return no_drafts(rows.last, 0)
    if block.judged >= draft.tokens.size + rows.last.size and not block.reads_prompts:
        return _with_places(rows)  # there is room for all, so nothing is to be chosen
    places = jnp.where(plan.drafts, block.judged, 0)
    if block.reads_prompts:  # a row that comes to the end of its prompt is judged too
        places -= jnp.sum(~rows.decoding)
    if isinstance(draft, DraftTree):
        return tree_budget.keep(draft, plan.needed <= places.astype(jnp.float32))
    # The tokens of a chain stay where they are: `length` says how many count.
    return dataclasses.replace(draft, length=budget.lengths_within(plan.needed, places))


def _reading_block(blocks: list[Block], num_unread: jax.Array, drafts: jax.Array) -> jax.Array:
    """int32[] the block for a step that reads some of float32[] prompt tokens.

    Each adds something to the one before it: room for drafts, which is wanted if bool[] `drafts`
    says so, or more room for prompts, which is wanted if half of what there is to read finds none.
    """
    reading = [(number, block) for number, block in enumerate(blocks) if block.reads_prompts]
    chosen = jnp.full_like(num_unread, reading[0][0], jnp.int32)
    for (_, shorter), (number, block) in itertools.pairwise(reading):  # in one kernel on a GPU
        wanted = drafts if block.judged > shorter.judged else jnp.zeros_like(drafts)
        room = shorter.total - shorter.judged
        if block.total - block.judged > room:
            wanted |= 2.0 * room < num_unread
        chosen = jnp.where(wanted, number, chosen)
    return chosen


def own_counts(rows: Rows, drafted: jax.Array, total: int) -> jax.Array:
    """int32[B] the own tokens of each row in a block of `total` places that reads prompts.

    They are the last one of a row that decodes. What these and int32[B] drafts leave of the block
    is for the prompts, of the first rows first.
    """
    decoding, unread = rows.decoding.astype(jnp.int32), rows.unread
    places = total - jnp.sum(decoding + drafted)
    before = jnp.cumsum(unread) - unread
    return jnp.where(rows.decoding, 1, jnp.clip(places - before, 0, unread))


def settle(rows: Rows, verified: Verified, stop_tokens: tuple[int, ...]) -> tuple[Rows, Step]:
    """The rows after the model has read a block, with its cache, and what the step emitted."""
    counts, draft, path = verified.counts, verified.draft, verified.path
    emits = rows.emits(counts)
    accepted, stopped = cut_at_stop(verified.accepted, emits, stop_tokens)
    lengths = rows.lengths + accepted.length
    finished = ~rows.idle & (stopped | (emits & (lengths >= rows.limits)))
    confirmed = jnp.maximum(accepted.length - 1, 0)
    record = rows.record
    if path is not None:
        record = tree_budget.update_record(record, draft, path, confirmed)
    elif draft.tokens.shape[1] > 0:
        record = budget.update_record(record, draft, confirmed)
    after = with_numbers(
        rows,
        prompt_lengths=jnp.where(finished, 0, rows.prompt_lengths),
        read=rows.read + counts + confirmed,
        lengths=lengths,
        last=last_token(accepted, rows.last),
        steps=rows.steps + (accepted.length > 0).astype(jnp.int32),
        drafted=rows.drafted + draft.length,
        accepted=rows.accepted + confirmed,
    )
    missing = 1 + rows.draft.tokens.shape[1] - accepted.tokens.shape[1]
    tokens = jnp.pad(accepted.tokens, ((0, 0), (0, missing)), constant_values=DRAFT_FILL)
    step = Step(tokens, accepted.length, finished, draft.length, confirmed)
    changed = {"cache": verified.cache, "followers": verified.followers}
    return dataclasses.replace(after, record=record, **changed), step


def _with_places(rows: Rows) -> Draft | DraftTree:
    """The drafts, as far as the cache has places for them: as many as a row may still write tokens.

    A chain is never longer. But a tree may have more nodes than that, and each takes a place.
    """
    if not isinstance(rows.draft, DraftTree):
        return rows.draft
    places = jnp.minimum(rows.draft.length, rows.limits - rows.lengths)
    return dataclasses.replace(rows.draft, length=places)


def _share(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Shares places among the rows, each of which has its last token there if it decodes.

    Returns:
      float32[B, K] the chance that a drafted token holds; `Plan.needed`.
    """
    draft, strain, own = rows.draft, rows.record.strain(), rows.decoding.astype(jnp.int32)
    if not isinstance(draft, DraftTree):
        return budget.survival(draft, strain), budget.budget_needed(draft, 1.0 / strain, own)
    chances = tree_budget.survival(_with_places(rows), strain)
    needed = (jnp.sum(own) + 1 + tree_budget.rank(chances)).astype(jnp.float32)
    return chances, jnp.where(chances > 0.0, needed, jnp.inf)


def unread_tokens(rows: Rows, width: int) -> jax.Array:
    """int32[B, width] the tokens of each prompt that the model has not read, the next one first."""
    column = rows.read[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    return rows.prompts.at[rows.request[:, None], column].get(mode="clip")


def own_tokens(rows: Rows, width: int) -> jax.Array:
    """int32[B, width] the tokens that the model has not read: of a prompt, or the last one."""
    reading = rows.read < rows.prompt_lengths
    return jnp.where(reading[:, None], unread_tokens(rows, width), rows.last[:, None])


def admit(
    rows: Rows, prompt_lengths: jax.Array, limits: jax.Array, request: jax.Array | None = None
) -> tuple[Rows, jax.Array]:
    """Frees the pages of idle rows, and gives those that can begin a request its pages.

    Lengths and limits are those of `PackedDecoder.admit`; the prompts themselves are up to the
    caller, and so is which they are: int32[B] `request`, None for those that the rows have.

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
    begun = {"prompt_lengths": prompt_lengths, "limits": limits}
    if request is not None:
        begun["request"] = request
    zero = jnp.zeros_like(prompt_lengths)
    for name in ("read", "lengths", "steps", "drafted", "accepted"):
        begun[name] = zero
    put = functools.partial(jnp.where, begins)
    changed = {name: put(new, getattr(rows, name)) for name, new in begun.items()}
    rows = with_numbers(rows, **changed)
    record = jax.tree.map(lambda old: put(jnp.zeros_like(old), old), rows.record)
    return dataclasses.replace(rows, record=record, cache=cache, state=state), begins


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


def note_read(rows: Rows, tokens: jax.Array, row: jax.Array, logits: jax.Array) -> Followers | None:
    """The followers, with what the logits [R, V] say of int32[R] tokens of int32[R] rows."""
    if rows.followers is None:
        return None
    is_read = row < rows.limits.size
    groups = rows.groups[rows.request[jnp.where(is_read, row, 0)]]
    tokens = jnp.where(is_read, tokens, NO_FOLLOWER)
    return note_followers(rows.followers, tokens, logits, groups=groups)


def release(rows: Rows, mask: jax.Array) -> Rows:
    """Makes the rows of bool[B] `mask` idle. Their pages are freed at the next admission."""
    draft = rows.draft
    if isinstance(draft, DraftTree):
        draft = tree_budget.keep(draft, is_node(draft) & ~mask[:, None])
    else:
        draft = budget.cut_draft(draft, jnp.where(mask, 0, draft.length))
    rows = with_numbers(rows, prompt_lengths=jnp.where(mask, 0, rows.prompt_lengths))
    return dataclasses.replace(rows, draft=draft)


def free_pages(rows: Rows) -> Any:
    """The cache without the pages of idle rows."""
    if (table := rows.block_table) is None:
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
