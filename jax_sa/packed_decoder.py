"""Continuous batching on the device: any number of prompts through a few rows, without padding.

Letters: N prompts, B rows, P tokens of the longest prompt, G new tokens at most, K draft tokens, or
nodes of a tree of drafts, T places of a step's block, W widths, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa import budget
from jax_sa._branches import run_branch
from jax_sa._checks import INT32_MAX, INT32_MIN, check_array, check_choice, check_int
from jax_sa._options import DraftOptions, normalise
from jax_sa._stages import run_stages
from jax_sa.automaton import DRAFT_FILL, Draft, extend, extend_lookup
from jax_sa.cache_schema import BlockTable
from jax_sa.calibration import CALIBRATION_TOKENS, Calibration, measure_costs
from jax_sa.draft_tree import MAX_NODES, DraftTree, extend_lookup_tree, no_trees
from jax_sa.followers import NO_FOLLOWER, Followers, check_followers
from jax_sa.model_check import check_packed_on_copies
from jax_sa.model_contract import check_logits_fn, check_state_room
from jax_sa.packed_blocks import Block, make_blocks, step_widths
from jax_sa.packed_queue import (
    Completions,
    Queue,
    Work,
    begin,
    begin_again,
    begin_no_more,
    end,
    make_queue,
    note,
    outlook,
    refill,
    unfinished,
)
from jax_sa.packed_rows import (
    Plan,
    Rows,
    Step,
    Verified,
    admit,
    can_fit,
    changed_by_block,
    cut_for,
    has_room_for_drafts,
    idle_rows,
    insert_texts,
    no_drafts,
    note_read,
    own_counts,
    own_tokens,
    plan_step,
    release,
    row_capacity,
    settle,
    unread_tokens,
)
from jax_sa.packing import pack
from jax_sa.pool import Pool, check_pool
from jax_sa.prompts import known
from jax_sa.sampling import Sampling, check_sampling, of_next_step, spread
from jax_sa.seqlens import expand_seqlens
from jax_sa.state import AnyState, check_state
from jax_sa.tree_block import packed_tree_block
from jax_sa.verify import accept_greedy, accept_sampled
from jax_sa.verify_tree import accept_tree_greedy, accept_tree_sampled

CALIBRATION_PROMPT = 32
"""Tokens that `calibrate` reads of a prompt at most."""


class _Course(NamedTuple):
    """Work that is under way, between two stages."""

    work: Work
    ended: jax.Array
    """bool[B] rows that have ended since idle rows were given prompts."""
    plan: Plan
    """Of the next step."""


@dataclasses.dataclass(frozen=True)
class PackedDecoder(DraftOptions):
    """Decodes through a flat block: each step has one budget of places, which the rows share.

    A step's block holds, one row after the other, a chunk of the prompt of each row that reads
    one, and of each row that writes its last token and as much of its draft as is worth verifying.
    Rows without a draft take one place.

    The model is a function `model(params, tokens int32[T], rows int32[T], positions int32[T],
    cache) -> (logits, cache)`. Token t belongs to row `rows[t]` and stands at `positions[t]` of
    its text. The model keeps what it must remember of it there, and attends to the row's tokens up
    to that position and to no other row's. Tokens of a row are consecutive, their positions
    ascending. A place with `rows[t] == B` is padding, which may stand anywhere: it must write
    nothing. What the cache holds of a row from the position of its first token in the block on is
    overwritten before it is attended to, so a refused token, or a request that ended, needs no
    cleanup. T is static, and differs from call to call. `logits` is [T, V], or, so that only what
    is read is computed, a function that maps places int32[R] to their logits [R, V]; it is called
    once.
    `jax_sa.check_model(..., packed=True)` finds out whether a model does all this.

    With `tree_nodes`, drafts are trees (`jax_sa.lookup_tree`), and blocks that have room for drafts
    come with a sixth argument, `model(params, tokens, rows, positions, cache, tree)`, a
    `jax_sa.TreeBlock`: the model keeps token t where `positions[t]` says as ever, but reads it as
    the one at `tree.positions[t]` of the text, and attends to what `tree.start` and `tree.nodes`
    say. Then `cache.move(start int32[B], path int32[B, 1 + K])` returns the cache in which, for
    each j, entry `start[b] + j` holds what entry `start[b] + path[b, j]` did; see
    `jax_sa.move_entries`.

    The cache is any pytree of B rows. If it has a field `block_table`, a
    `jax_sa.cache_schema.BlockTable` of B + 1 slots, its pages are claimed and freed here: row b is
    slot b + 1, and a request starts once there are pages for its prompt and all of its new tokens.
    Until then it waits. A cache without such a field must have room for every prompt and its new
    tokens in every row.

    `generate` runs any number of prompts to their ends on the device. An engine that streams, and
    whose requests come one by one, goes step by step:

        decoder = jax_sa.PackedDecoder(model, stop_tokens=(2,))
        rows = decoder.init(cache, rows=8, max_prompt=512, state=jax_sa.init(8, 576))
        while requests or not rows.idle.all():
            prompts, prompt_lengths, limits = choose(requests, rows.idle)  # a prompt for each row
            rows, began = decoder.admit(rows, prompts, prompt_lengths, limits)
            requests = remove(requests, began)
            rows, step = decoder.step(params, rows)
            emit(step.tokens, step.length, step.finished)

    Whatever is returned updated is donated. Compiled code is cached per decoder, and shared by
    decoders that hold the same functions and equal options.

    Inside `jax.shard_map`, each shard decodes prompts of its own through rows of its own. Shards
    stop at different steps, so the model must not communicate over the axes that these are sharded
    over.

    Raises:
      ValueError, TypeError: naming the option.
    """

    model: Callable[..., tuple[Any, Any]]
    """The model, as described above."""
    max_draft: int = dataclasses.field(default=32, kw_only=True)
    """K, the maximum number of drafted tokens of a row."""
    stop_tokens: tuple[int, ...] = ()
    """A row ends with the first of them that it emits."""
    budget: int = 1024
    """Places of a block at most, for prompts, drafts and last tokens of all rows together."""
    tree_nodes: int | None = None
    """The nodes of a row's tree of drafts at most; None: drafts are chains."""
    inserts: str = "text"
    """The part of a text that ends which goes into the pool, where there is one: "text", all of it,
    "response", all but the prompt, or "nothing". Released requests do not end."""
    logits_fn: Callable[..., jax.Array] | None = None
    """`logits_fn(logits [R, V], tokens int32[R], rows int32[R], positions int32[R], requests)`
    returns the logits that count, such as without tokens that a prompt forbids. `logits[r]` choose
    what follows `tokens[r]`, which stands at `positions[r]` of the text of row `rows[r]`; those of
    a place with `rows[r] == B` are not used. R are all places of the block, or those whose logits
    the model's function is asked for. A row's places are consecutive: its own tokens, then its
    draft. `requests` are the `Rows` before the step, without cache: row b answers
    `requests.prompts[requests.request[b]]`, and slot b of `requests.state` has the prompt tokens
    that it has read and the tokens that it has written. Of a tree, the places before are not all
    above, so it is an error with `tree_nodes`. None: the model's logits count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.model):
            raise TypeError(f"model: expected a function, got {type(self.model).__name__}")
        if not isinstance(self.stop_tokens, tuple):
            raise TypeError(f"stop_tokens: expected a tuple of ints, got {self.stop_tokens!r}")
        check_logits_fn(self.logits_fn, self.tree_nodes)
        normalise(
            self,
            stop_tokens=tuple(check_int("stop_tokens", t, INT32_MIN) for t in self.stop_tokens),
            budget=check_int("budget", self.budget, 1),
            tree_nodes=None
            if self.tree_nodes is None
            else check_int("tree_nodes", self.tree_nodes, 1, MAX_NODES),
            inserts=check_choice("inserts", self.inserts, ("text", "response", "nothing")),
        )

    def widths(self, rows: int, *, drafts: bool = True) -> tuple[int, ...]:
        """The places of the blocks that are compiled for steps of `rows` rows without prompts.

        Args:
          rows: B.
          drafts: whether there are automata; without, a step has one place for each row.
        """
        if self.budget < rows:
            raise ValueError(
                f"budget: expected at least {rows}, one for each row, got {self.budget}"
            )
        drafted = self.max_draft if self.tree_nodes is None else self.tree_nodes
        return step_widths(rows, drafted if drafts else 0, self.budget)

    def init(
        self,
        cache: Any,
        *,
        rows: int,
        max_prompt: int,
        state: AnyState | None = None,
        sampling: Sampling | None = None,
        pool: Pool | None = None,
        followers: Followers | None = None,
    ) -> Rows:
        """Idle rows.

        Args:
          cache: the model's, of B rows; donated.
          rows: B.
          max_prompt: P.
          state: automata of B slots, donated; reset as requests begin. None: no drafts.
          sampling: how tokens are drawn, with one number or an array of one per row. None:
            greedily.
          pool: texts to draft from, into which requests go as they end (`inserts`); donated.
            None: no pool.
          followers: what the model expected after each token of its vocabulary, to draft trees
            from and noted at every step; donated. Only with `tree_nodes`. None: not kept.

        Raises:
          ValueError, TypeError: naming the argument.
        """
        rows = check_int("rows", rows, 1)
        max_prompt = check_int("max_prompt", max_prompt, 1)
        prompts = jnp.zeros((rows, max_prompt), jnp.int32)
        request = jnp.arange(rows, dtype=jnp.int32)
        return self._idle_rows(cache, state, sampling, prompts, request, pool, followers)

    def _idle_rows(
        self,
        cache: Any,
        state: AnyState | None,
        sampling: Sampling | None,
        prompts: jax.Array,
        request: jax.Array,
        pool: Pool | None = None,
        followers: Followers | None = None,
        groups: jax.Array | None = None,
    ) -> Rows:
        """Idle rows of checked buffers, with int32[N, P] prompts of which each has one."""
        (rows,) = request.shape
        self.widths(rows)  # which checks the budget
        _check_buffers(cache, state, rows)
        if sampling is not None:
            sampling = check_sampling(sampling, prompts.shape[0])
        self._check_sources(state, pool, followers, groups, prompts.shape[0])
        draft = no_drafts(request, 0 if state is None else self.max_draft)
        if state is not None and self.tree_nodes is not None:
            draft = no_trees(rows, self.tree_nodes)
        return idle_rows(cache, state, sampling, prompts, request, draft, pool, followers, groups)

    def generate(
        self,
        params: Any,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        cache: Any,
        *,
        rows: int,
        max_new_tokens: int,
        state: AnyState | None = None,
        limits: jax.Array | None = None,
        sampling: Sampling | None = None,
        costs: jax.Array | None = None,
        pool: Pool | None = None,
        followers: Followers | None = None,
        groups: jax.Array | None = None,
        check: bool = False,
    ) -> Completions:
        """Answers any number of prompts through `rows` rows, in one jitted `lax.while_loop`.

        A row that ends takes the next prompt. The answers are those of plain decoding: token for
        token (`accept_greedy`) for a model whose logits do not depend on T, or, with `sampling`,
        in distribution (`accept_sampled`).

        Args:
          params: the model's parameters, a pytree.
          prompts: int32[N, P].
          prompt_lengths: int32[N] in 1..P.
          cache: the model's, of B rows; donated.
          rows: B.
          max_new_tokens: G.
          state: automata of B slots, donated, with room for each prompt and its new tokens; reset
            as prompts begin. None: no drafts.
          limits: int32[N] new tokens of each prompt at most, clipped to 0..G. None: G.
          sampling: one number for all prompts, or an array of one per prompt. None: greedy.
          costs: float32[W] the relative cost of a step of each of `widths(rows)`, as `calibrate`
            measures them; with `drafts=False` where there is no state. A width whose cost is not
            above 0, or is infinite or NaN, is not used; if all are so, the least is. None: an
            estimate for the default backend.
          pool: texts to draft from too, as in `jax_sa.lookup`, into which texts go as they end
            (`inserts`); donated. None: no pool.
          followers: what the model expected after each token of its vocabulary
            (`jax_sa.init_followers`), to draft trees from and noted at every step; donated. Only
            with `tree_nodes`. None: not kept.
          groups: int32[N] the group of the pool and of the followers that each prompt sees and goes
            into; -1 for none. None: group 0.
          check: whether to run `jax_sa.check_model(..., packed=True)` first, on copies of the
            cache; not inside jit.

        Returns:
          The answers. A prompt that cannot be answered is not `finished`; the others are.

        Raises:
          ValueError, TypeError: naming the argument; and, where lengths and limits are known, for
            a prompt that is empty or can never fit, naming it; with `check`, saying what the model
            does wrong.
        """
        rows = check_int("rows", rows, 1)
        max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1)
        prompts, prompt_lengths = _check_prompts(prompts, prompt_lengths)
        count, width = prompts.shape
        if limits is None:
            limits = jnp.full(count, max_new_tokens, jnp.int32)
        check_array("limits", limits, jnp.int32, (count,))
        limits = jnp.clip(limits, 0, max_new_tokens)
        costs = self._costs(costs, rows, state)
        _check_buffers(cache, state, rows)
        capacity = row_capacity(cache)
        _check_requests(capacity, width, prompt_lengths, limits)
        if state is not None:
            check_state_room(prompt_lengths, limits, width, max_new_tokens, state)
        if check:
            trees = state is not None and self.tree_nodes is not None
            room = width + max_new_tokens
            check_packed_on_copies(self.model, params, cache, rows, room, trees=trees)
        queue = make_queue(prompt_lengths, limits, capacity=capacity, max_prompt=width)
        first = jnp.zeros(rows, jnp.int32)
        idle = self._idle_rows(cache, state, sampling, prompts, first, pool, followers, groups)
        work, queue = begin(idle, queue, max_new_tokens)
        return end(self._run(params, queue, work, costs, jnp.asarray(INT32_MAX, jnp.int32)))

    @functools.partial(jax.jit, static_argnames="self", donate_argnames="work")
    def _run(
        self, params: Any, queue: Queue, work: Work, costs: jax.Array, max_calls: jax.Array
    ) -> Work:
        """Goes on until all is done, or for so many calls of the model.

        A stage is a step in one of the blocks, or, behind these, the giving of prompts.
        """
        last = work.calls + jnp.minimum(max_calls, INT32_MAX - work.calls)
        blocks = self._blocks(work.rows)

        def look_ahead(work: Work, ended: jax.Array) -> tuple[jax.Array, _Course]:
            stage, plan = self._next_stage(queue, work, ended, costs, last)
            return stage, _Course(work, ended, plan)

        def run_step(block: Block, course: _Course) -> tuple[jax.Array, _Course]:
            work = course.work
            rows, emitted = self._step(params, work.rows, course.plan, [block])
            ended = course.ended | emitted.finished
            return look_ahead(note(work, rows, emitted), ended)

        def give_prompts(course: _Course) -> tuple[jax.Array, _Course]:
            return look_ahead(refill(course.work, queue), jnp.zeros_like(course.ended))

        steps = [functools.partial(run_step, block) for block in blocks]
        first, course = look_ahead(work, jnp.ones_like(work.rows.idle))
        return run_stages([*steps, give_prompts], first, course).work

    @functools.partial(jax.jit, static_argnames="self")  # so that it is traced once for all stages
    def _next_stage(
        self, queue: Queue, work: Work, ended: jax.Array, costs: jax.Array, last: jax.Array
    ) -> tuple[jax.Array, Plan]:
        """int32[] the number of the next stage of `_run`; the plan of the next step.

        Args:
          queue: of the prompts.
          work: as it is now.
          ended: bool[B] as in `_Course`.
          costs: float32[W].
          last: int32[] calls of the model at most.
        """
        blocks = self._blocks(work.rows)
        goes_on, gives = outlook(work, queue, last, ended)
        plan = plan_step(work.rows, blocks, costs)
        stage = jnp.where(gives, len(blocks), plan.block)
        return jnp.where(goes_on, stage, len(blocks) + 1), plan

    def calibrate(
        self,
        params: Any,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        cache: Any,
        *,
        rows: int,
        max_new_tokens: int,
        state: AnyState | None = None,
        sampling: Sampling | None = None,
        pool: Pool | None = None,
        followers: Followers | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Calibration:
        """Measures the cost of a step of each width, on the user's model and device.

        It takes a few seconds and, if a `generate` of the same shapes follows, compiles nothing
        that would not be compiled for that. The first B prompts are decoded, of each at most
        `CALIBRATION_PROMPT` tokens. It runs on the host, so not inside jit.

        Args:
          params: as in `generate`, like all that follows up to `sampling`.
          prompts: int32[N, P].
          prompt_lengths: int32[N].
          cache: donated.
          rows: B.
          max_new_tokens: G, at least 8.
          state: donated.
          sampling: as in `generate`.
          pool: as in `generate`; left as it is. An empty one of its size is used, and let go of.
          followers: likewise, with none that is known.
          on_progress: called with the number of widths that were measured, and of all.

        Raises:
          ValueError, TypeError: as `generate`; and if the model ends every answer at once, so that
            there is nothing to measure.
        """
        rows = check_int("rows", rows, 1)
        max_new_tokens = check_int("max_new_tokens", max_new_tokens, CALIBRATION_TOKENS)
        prompts, prompt_lengths = _check_prompts(prompts, prompt_lengths)
        count, width = prompts.shape
        limits = jnp.full(count, max_new_tokens, jnp.int32)
        estimate = self._costs(None, rows, state)
        _check_buffers(cache, state, rows)
        self._check_sources(state, pool, followers, None, count)
        capacity = row_capacity(cache)
        _check_requests(capacity, width, prompt_lengths, limits)
        if state is not None:
            check_state_room(prompt_lengths, limits, width, max_new_tokens, state)
        lengths = jnp.where(jnp.arange(count) < rows, prompt_lengths, 0)
        lengths = jnp.minimum(lengths, CALIBRATION_PROMPT)
        waiting = make_queue(lengths, limits, capacity=capacity, max_prompt=width)
        one = jnp.ones((), jnp.int32)

        first = jnp.zeros(rows, jnp.int32)
        texts = jax.tree.map(jnp.zeros_like, pool)
        unknown = jax.tree.map(lambda known: jnp.full_like(known, NO_FOLLOWER), followers)
        idle = self._idle_rows(cache, state, sampling, prompts, first, texts, unknown)
        fresh, waiting = begin(idle, waiting, max_new_tokens)

        def restart(work: Work | None) -> Work:
            """Work of which some row decodes, if any can, none reads, and no further one begins."""
            work = fresh if work is None else begin_again(work)
            while not _decodes(work.rows) and unfinished(work, waiting):
                work = self._run(params, waiting, work, estimate, one)
            return begin_no_more(work, waiting)

        def advance(work: Work, costs: jax.Array, calls: int) -> tuple[Work, int]:
            before = int(work.calls)
            work = self._run(params, waiting, work, costs, jnp.asarray(calls, jnp.int32))
            return work, int(work.calls) - before

        costs, work = measure_costs(restart, advance, estimate.size, on_progress)
        done = end(work)
        return Calibration(costs, done.cache, done.state)

    def admit(
        self,
        rows: Rows,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        limits: jax.Array,
        groups: jax.Array | None = None,
    ) -> tuple[Rows, jax.Array]:
        """Gives idle rows a request; which row, and which request first, is the caller's choice.

        Args:
          rows: of B rows, donated.
          prompts: int32[B, P] a prompt for each row that is to begin one.
          prompt_lengths: int32[B] in 1..P; 0 for a row that is left alone.
          limits: int32[B] new tokens of each row at most; at least 1 in a row that is to begin.
          groups: int32[B] the group of the pool and of the followers that each request sees and
            goes into; -1 for none. None: group 0.

        Returns:
          The rows, and bool[B] which of them began. A row that is not idle does not, nor does one
          for whose prompt and new tokens, and those of the rows before it, there are no free pages
          now: ask again when others have ended.

        Raises:
          ValueError, TypeError: at trace time, naming the argument; and, where the values are
            known, for a request that can never fit.
        """
        count, width = rows.prompts.shape
        check_array("prompts", prompts, jnp.int32, (count, width))
        check_array("prompt_lengths", prompt_lengths, jnp.int32, (count,))
        check_array("limits", limits, jnp.int32, (count,))
        capacity = row_capacity(rows.cache)
        _check_requests(capacity, width, prompt_lengths, limits, of_rows=True)
        are_known = known(prompt_lengths) is not None and known(limits) is not None
        if rows.state is not None and are_known:
            check_state_room(prompt_lengths, limits, width, INT32_MAX, rows.state)
        _check_groups(rows.groups is not None, groups, count)
        return _admit(rows, prompts, prompt_lengths, limits, groups)

    def release(self, rows: Rows, mask: jax.Array) -> Rows:
        """Ends the requests of some rows at once, as when they are cancelled.

        The rows are idle then. Their pages are freed by the next `admit`.

        Args:
          rows: of B rows, donated.
          mask: bool[B] the rows to end; those that are idle stay so.

        Raises:
          ValueError, TypeError: at trace time, naming the argument.
        """
        check_array("mask", mask, jnp.bool_, rows.prompt_lengths.shape)
        return _release(rows, mask)

    @functools.partial(jax.jit, static_argnames="self", donate_argnames="rows")
    def step(self, params: Any, rows: Rows, costs: jax.Array | None = None) -> tuple[Rows, Step]:
        """Calls the model once: reads prompts, emits tokens, and drafts those that follow them.

        Args:
          params: the model's parameters, a pytree.
          rows: donated.
          costs: as in `generate`.

        Returns:
          The rows, and what each of them emitted.

        Raises:
          ValueError, TypeError: at trace time, for wrong costs.
        """
        costs = self._costs(costs, rows.limits.size, rows.state)
        blocks = self._blocks(rows)
        return self._step(params, rows, plan_step(rows, blocks, costs), blocks)

    def _check_sources(
        self, state: AnyState | None, pool: Any, followers: Any, groups: Any, count: int
    ) -> None:
        """Raises ValueError or TypeError unless a pool and followers, if any, serve the prompts."""
        if pool is not None:
            check_pool(pool)
            if state is None:
                raise ValueError(
                    "pool: expected a state, whose texts are looked up in it, got none"
                )
        if followers is not None:
            check_followers(followers)
            if state is None or self.tree_nodes is None:
                raise ValueError("followers: expected a state and tree_nodes, as trees hold them")
        _check_groups(pool is not None or followers is not None, groups, count)

    def _costs(self, costs: Any, rows: int, state: AnyState | None) -> jax.Array:
        """The costs given, checked, or else an estimate."""
        widths = self.widths(rows, drafts=state is not None)
        if costs is None:
            return budget.estimate_costs(widths, jax.default_backend())
        check_array("costs", costs, jnp.float32, (len(widths),))
        return costs

    def _step(
        self, params: Any, rows: Rows, plan: Plan, blocks: Sequence[Block]
    ) -> tuple[Rows, Step]:
        """A step in the planned one of several blocks, or in the only one."""
        sampling, key = rows.sampling, None
        if sampling is not None:
            sampling, key = of_next_step(sampling), sampling.key
        branches = [
            functools.partial(self._run_block, block, params, rows, plan, key) for block in blocks
        ]
        step, changed = run_branch(plan.block, branches, changed_by_block(rows))
        after = dataclasses.replace(rows, sampling=sampling, **changed)
        return dataclasses.replace(after, **self._append(rows, after, step)), step

    @functools.partial(jax.jit, static_argnames="self")  # so that it is traced once for all blocks
    def _append(self, rows: Rows, after: Rows, step: Step) -> dict[str, Any]:
        """The fields of the rows that change when the tokens of a step are appended to the texts.

        Args:
          rows: before the step.
          after: after its block.
          step: what it emitted.
        """
        state, draft = self._draft(after, step)
        pool = rows.pool
        if self.inserts != "nothing":
            responses_only = self.inserts == "response"
            pool = insert_texts(rows, state, step.finished, responses_only=responses_only)
        return {"state": state, "draft": draft, "pool": pool}

    def _blocks(self, rows: Rows) -> list[Block]:
        (count,) = rows.prompt_lengths.shape
        widths = self.widths(count, drafts=rows.state is not None)
        return make_blocks(count, widths, self.budget)

    def _run_block(
        self,
        block: Block,
        params: Any,
        rows: Rows,
        plan: Plan,
        key: jax.Array | None,
        changing: dict[str, Any],
    ) -> tuple[Step, dict[str, Any]]:
        """The part of a step that depends on its block: reads, verifies, and counts.

        Args:
          block: the block.
          params: the model's.
          rows: before the step, but for what changes.
          plan: of the step.
          key: to sample with.
          changing: the fields of the rows that change (`changed_by_block`), updated in place.
        """
        rows = dataclasses.replace(rows, **changing)
        if not has_room_for_drafts(block, rows) and not block.reads_prompts:
            verified = self._verify_none(params, rows, key)
        else:
            verified = self._verify(block, params, rows, cut_for(plan, rows, block), key)
        after, step = settle(rows, verified, self.stop_tokens)
        if block.reads_prompts and rows.state is not None:
            tokens = unread_tokens(rows, _chunk(rows, block.total))
            read = jnp.where(rows.decoding, 0, verified.counts)
            after = dataclasses.replace(after, state=extend(rows.state, tokens, read))
        return step, changed_by_block(after)

    def _verify(
        self,
        block: Block,
        params: Any,
        rows: Rows,
        draft: Draft | DraftTree,
        key: jax.Array | None,
    ) -> Verified:
        """Lays out a block, and judges what the model says of it."""
        own, counts = rows.last[:, None], rows.decoding.astype(jnp.int32)
        if block.reads_prompts:
            own = own_tokens(rows, _chunk(rows, block.total))
            counts = own_counts(rows, draft.length, block.total)
        # Without room a tree has no nodes, and the step is that of plain decoding.
        is_tree = isinstance(draft, DraftTree)
        packed = pack(own, counts, draft, rows.read, total=block.total)
        flat = (packed.tokens, packed.rows, packed.positions)
        last = rows.read + jnp.maximum(counts - 1, 0)
        if is_tree:
            tree = packed_tree_block(draft, packed, last)
            logits, cache = self.model(params, *flat, rows.cache, tree)
        else:
            logits, cache = self.model(params, *flat, rows.cache)
        first, places = packed.first, None
        if callable(logits):
            places = jnp.arange(block.total, dtype=jnp.int32)
            if block.reads_prompts:
                judged = jnp.where(rows.emits(counts), 1 + draft.length, 0)
                places, first = _judged_places(first, judged, block.judged)
            logits = logits(places)
        tokens, row = packed.tokens, packed.rows
        if places is not None:
            tokens, row = tokens[places], row[places]
        followers = note_read(rows, tokens, row, logits)
        logits = self._adjust(logits, flat, places, rows)
        accepted = self._accept(rows, draft, logits, key, first)
        if not is_tree:
            return Verified(accepted, counts, draft, None, cache, followers)
        accepted, path = accepted
        return Verified(accepted, counts, draft, path, cache.move(last, path), followers)

    def _verify_none(self, params: Any, rows: Rows, key: jax.Array | None) -> Verified:
        """Plain decoding: place b of the block is row b's, so nothing has to be laid out."""
        decoding, count = rows.decoding, rows.idle.size
        row = jnp.arange(count, dtype=jnp.int32)
        tokens = jnp.where(decoding, rows.last, DRAFT_FILL)
        positions = jnp.where(decoding, rows.read, 0)
        flat = (tokens, jnp.where(decoding, row, count), positions)
        logits, cache = self.model(params, *flat, rows.cache)
        if callable(logits):
            logits = logits(row)
        followers = note_read(rows, *flat[:2], logits)
        logits = self._adjust(logits, flat, None, rows)
        draft = no_drafts(rows.last, 0)
        accepted = self._accept(rows, draft, logits[:, None], key, None)
        return Verified(accepted, decoding.astype(jnp.int32), draft, None, cache, followers)

    def _adjust(
        self, logits: jax.Array, of: tuple, places: jax.Array | None, rows: Rows
    ) -> jax.Array:
        """The logits that count, of the places int32[R] of a flat block, or of all."""
        if self.logits_fn is None:
            return logits
        if places is not None:
            tokens, row, positions = (values[places] for values in of)
            # Ascending, and then place 0 again for as many as are left.
            is_left = (places == 0) & (jnp.arange(places.size) > 0)
            of = tokens, jnp.where(is_left, rows.limits.size, row), positions
        adjusted = self.logits_fn(logits, *of, dataclasses.replace(rows, cache=None))
        check_array("logits_fn's result", adjusted, logits.dtype, logits.shape)
        return adjusted

    @staticmethod
    def _accept(
        rows: Rows,
        draft: Draft | DraftTree,
        logits: jax.Array,
        key: jax.Array | None,
        first: jax.Array | None,
    ) -> Any:
        """What the model confirms of chains, or of trees, with their paths."""
        is_tree = isinstance(draft, DraftTree)
        if rows.sampling is None:
            return (accept_tree_greedy if is_tree else accept_greedy)(draft, logits, first=first)
        sampling = spread(rows.sampling, rows.request)
        return (accept_tree_sampled if is_tree else accept_sampled)(
            key,
            draft,
            logits,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            first=first,
        )

    def _draft(self, rows: Rows, step: Step) -> tuple[AnyState | None, Draft | DraftTree]:
        """Appends the tokens that were emitted, and drafts those that follow.

        A draft leaves one of the tokens that a row may still write: a step emits one more.
        """
        if rows.state is None:
            return None, rows.draft
        options = {
            "limits": jnp.where(rows.decoding, rows.limits - rows.lengths, 0) - 1,
            "pool": rows.pool,
            "groups": None if rows.groups is None else rows.groups[rows.request],
            **self.lookup_options(),
        }
        if self.tree_nodes is None:
            return extend_lookup(rows.state, step.tokens, step.length, **options)
        options |= {"max_nodes": self.tree_nodes, "followers": rows.followers}
        return extend_lookup_tree(rows.state, step.tokens, step.length, **options)


@functools.partial(jax.jit, donate_argnames="rows")
def _admit(
    rows: Rows,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    limits: jax.Array,
    groups: jax.Array | None,
) -> tuple[Rows, jax.Array]:
    rows, begins = admit(rows, prompt_lengths, limits)
    prompts = jnp.where(begins[:, None], prompts, rows.prompts)
    if rows.groups is not None:
        groups = jnp.zeros_like(rows.groups) if groups is None else groups
        groups = jnp.where(begins, groups, rows.groups)
    return dataclasses.replace(rows, prompts=prompts, groups=groups), begins


_release = jax.jit(release, donate_argnames="rows")


@jax.jit
def _decodes(rows: Rows) -> jax.Array:
    """bool[] whether no row reads its prompt, and some row decodes."""
    return jnp.all(rows.read >= rows.prompt_lengths) & ~jnp.all(rows.idle)


def _chunk(rows: Rows, total: int) -> int:
    """Tokens of a prompt at most in a block of `total` places."""
    return min(total, rows.prompts.shape[1])


def _check_prompts(prompts: Any, prompt_lengths: Any) -> tuple[jax.Array, jax.Array]:
    count, width = check_array("prompts", prompts, jnp.int32, ("N", "P"))
    if count == 0 or width == 0:
        raise ValueError(f"prompts: expected a prompt and a token at least, got [{count}, {width}]")
    check_array("prompt_lengths", prompt_lengths, jnp.int32, (count,))
    return jnp.asarray(prompts), jnp.asarray(prompt_lengths)


def _check_buffers(cache: Any, state: Any, rows: int) -> None:
    """Raises ValueError or TypeError unless the automata and the pages are of so many rows."""
    if state is not None:
        check_state(state)
        if state.num_slots != rows:
            raise ValueError(f"state: expected {rows} slots, got {state.num_slots}")
    table = getattr(cache, "block_table", None)
    if table is None:
        return
    if not isinstance(table, BlockTable):
        expected = "a jax_sa.cache_schema.BlockTable"
        raise TypeError(f"cache.block_table: expected {expected}, got {type(table).__name__}")
    (slots,) = check_array("cache.block_table.num_blocks", table.num_blocks, jnp.int32, ("S",))
    if slots != rows + 1:
        raise ValueError(f"cache.block_table: expected {rows + 1} slots, got {slots}")


def _check_groups(are_used: bool, groups: Any, count: int) -> None:
    if groups is None:
        return
    if not are_used:
        raise ValueError("groups: expected a pool whose groups they are, got none")
    check_array("groups", groups, jnp.int32, (count,))


def _check_requests(
    capacity: int, max_prompt: int, prompt_lengths: Any, limits: Any, *, of_rows: bool = False
) -> None:
    """Raises ValueError for the first request that can never be answered, if values are known.

    Of rows, those without a prompt are left alone, and the others must have something to write.
    """
    if any(isinstance(values, jax.core.Tracer) for values in (prompt_lengths, limits)):
        return
    lengths, limits = np.asarray(prompt_lengths), np.asarray(limits)
    bad = ~np.asarray(can_fit(capacity, lengths, limits, max_prompt))
    if of_rows:
        bad = (bad | (limits < 1)) & (lengths != 0)
    for i in np.flatnonzero(bad):
        if not 1 <= lengths[i] <= max_prompt:
            raise ValueError(
                f"prompt_lengths: expected 1 to {max_prompt} tokens, got {lengths[i]} in prompt {i}"
            )
        if of_rows and limits[i] < 1:
            raise ValueError(
                f"limits: expected at least 1 new token, got {limits[i]} in prompt {i}"
            )
        raise ValueError(
            f"prompt_lengths: expected a prompt and new tokens that fit the {capacity} tokens of a "
            f"row's pages, got {lengths[i]} + {limits[i]} in prompt {i}"
        )


def _judged_places(first: jax.Array, lengths: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """int32[count] the places whose logits are read, row by row, and where each row's begin.

    Row b has int32[B] `lengths` of them, from place `first` of the block on.
    """
    flat = expand_seqlens(first + lengths, lengths, total=count, fill=1, return_offsets=True)
    return flat.values - 1, flat.offsets[:-1]
