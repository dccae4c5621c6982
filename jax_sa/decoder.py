"""Whole generations: prefill, then verify a draft, emit, and draft again, until every row is done.

Letters: B rows, P prompt tokens, G maximum new tokens, K tokens of the longest draft, M of a neural
one, N nodes of a tree of drafts, T tokens of a block that the model reads, V vocabulary.

Between two steps the last token of a row has not been through the model: `cache.length` counts the
tokens before it. The block of the next step is that token and the draft.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa import allowance, budget, tree_budget
from jax_sa._branches import run_branch
from jax_sa._checks import INT32_MAX, INT32_MIN, check_array, check_bool, check_int
from jax_sa._explicit import follow_rows
from jax_sa._options import DraftOptions, normalise
from jax_sa._same_code import warn_if_written_anew
from jax_sa._shard_map import vary, varying_axes
from jax_sa.automaton import DRAFT_FILL, Draft, extend, extend_lookup, lookup_after, reset
from jax_sa.calibration import CALIBRATION_TOKENS, Calibration, measure_costs, measure_more
from jax_sa.draft_tree import (
    MAX_NODES,
    NO_TOKEN,
    DraftTree,
    extend_lookup_tree,
    lookup_tree,
)
from jax_sa.model_check import check_on_copies
from jax_sa.model_contract import (
    check_cache,
    check_donated,
    check_logits_fn,
    check_logits_of_block,
    check_params,
    check_returned_cache,
    check_room,
)
from jax_sa.neural_drafter import (
    PATIENCE,
    NeuralDrafter,
    StepCosts,
    check_drafter,
    read_with,
    run_if,
    update_loss,
    weigh,
)
from jax_sa.pool import Pool, check_pool
from jax_sa.prompts import as_int32, read_prompts, to_lists
from jax_sa.row_room import from_last_token, move_back, tokens_again
from jax_sa.sampling import Sampling, check_sampling, of_first_step, of_next_step
from jax_sa.state import AnyState, State, check_state
from jax_sa.tree_block import tree_block
from jax_sa.verify import (
    Accepted,
    accept_greedy,
    accept_sampled,
    check_targets,
    cut_at_stop,
    join_drafts,
    last_token,
    merge_drafts,
)
from jax_sa.verify_tree import accept_tree_greedy, accept_tree_sampled

SLOWEST_FIRST = 4
"""A batch lasts as long as its slowest row. Of the steps that its rows still need, the norm of this
power stands for the most when a width is chosen: rows that are far ahead hardly matter, nor does
what one row would save where others would save nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generation:
    """The tokens of B rows so far, and all that the next step needs."""

    tokens: jax.Array
    """int32[B, G] the new tokens, a stop token included; 0 beyond `lengths`."""
    lengths: jax.Array
    """int32[B] new tokens; `steps + accepted`."""
    limits: jax.Array
    """int32[B] maximum new tokens per row, 0..G."""
    finished: jax.Array
    """bool[B] whether the row has reached its limit or a stop token."""
    steps: jax.Array
    """int32[B] steps that the row took part in."""
    drafted: jax.Array
    """int32[B] drafted tokens that were verified."""
    accepted: jax.Array
    """int32[B] drafted tokens that were accepted and kept: each saved a step."""
    last: jax.Array
    """int32[B] the last token, which the model has not read."""
    draft: Draft | DraftTree
    """The tokens that may follow it, of which the next step verifies as many as are worth it."""
    record: budget.Record
    """The failures of the row's drafts, seen and expected."""
    allowance: jax.Array
    """float32[] the time that drafts may still lose, in steps without drafts, before only long
    matches are verified (`jax_sa.allowance`)."""
    drafter_loss: jax.Array | None
    """float32[] the time that the neural drafter lost of late, in steps: it runs no more once that
    is above `jax_sa.neural_drafter.PATIENCE`. None without a drafter."""
    cache: Any
    """The model's cache, of every token but the last."""
    state: AnyState | None
    """The automata, of prompts and new tokens; None: no automata."""
    sampling: Sampling | None
    """How tokens are drawn, with the next step's key; None: greedily."""

    @property
    def calls(self) -> jax.Array:
        """int32[] calls of the model after the prompts were read: the steps of the slowest row."""
        return jnp.max(self.steps)

    def to_lists(self) -> list[list[int]]:
        """The new tokens of each row, on the host."""
        return to_lists(self.tokens, self.lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Request:
    """The checked inputs of a generation that are not updated in place."""

    prompts: jax.Array
    """int32[B, P]."""
    prompt_lengths: jax.Array
    """int32[B]; any length outside 1..P makes the row idle."""
    limits: jax.Array
    """int32[B] in 0..G."""
    sampling: Sampling | None
    max_new_tokens: int = dataclasses.field(metadata={"static": True})
    """G."""


@dataclasses.dataclass(frozen=True)
class Decoder(DraftOptions):
    """A model and the options of decoding with it: all of a generation that is not an array.

    `generate` runs to the end on the device. An engine that streams runs step by step:

        decoder = jax_sa.Decoder(model, stop_tokens=(2,))
        generation = decoder.init(params, prompts, prompt_lengths, cache, max_new_tokens=64)
        while not generation.finished.all():
            generation, emitted = decoder.step(params, generation)

    The model is a function `model(params, tokens int32[B, T], cache) -> (logits [B, T, V], cache)`.

    - It reads token t of row b at position `cache.length[b] + t`, stores there whatever later
      tokens need of it, and attends to no later position.
    - T is static, and differs from call to call. The logits of a token must not depend on it.
    - The decoder advances `cache.length` by the accepted tokens; the `length` that the model
      returns is ignored. The positions from `cache.length` on hold tokens that were refused, and
      are overwritten before they are attended to; nothing needs cleaning up.

    The cache is a frozen dataclass, registered as a pytree, with a field `length` int32[B]: the
    tokens of each row that it holds. The model returns it with the same shapes and dtypes. It has
    room for P + G tokens in each row after those that it holds, and no block goes beyond: near a
    row's end, a block begins with tokens that the row has read before. If the cache has a field
    `capacity`, an int, too small a one is an error.

    `jax_sa.check_model` finds out whether a model does all this; `jax_sa.from_forward` makes one of
    another stack's forward function.

    With `tree_nodes`, drafts are trees (`jax_sa.lookup_tree`). Where the nodes that are worth
    verifying are no single token, the model is called with a fourth argument,
    `model(params, tokens int32[B, 1 + n], cache, tree)`, a `jax_sa.TreeBlock`:

    - It stores token t at position `cache.length[b] + t` as ever, but reads it as the one that
      stands at `tree.positions[b, t]` of the text.
    - It attends to what `tree.start` and `tree.nodes` say.

    Then the path that was accepted is put in order: `cache.move(start int32[B], path
    int32[B, 1 + n])` returns the cache in which, for each j, position `start[b] + j` holds what
    position `start[b] + path[b, j]` did. `jax_sa.move_entries` does this for an array.

    All three methods are jitted, and donate the arrays that they return updated: cache, state,
    generation. Compiled code is cached per decoder and shared by decoders that hold the same
    function objects and equal options; a lambda or partial written anew is another function, and
    is compiled anew.

    Inside `jax.shard_map` over the rows, each shard is a generation of its own: prompts, cache and
    state are its local ones, and row b is its local slot b. Shards stop at different steps, so the
    model must not communicate over the axes that the rows are sharded over. Give each shard its own
    sampling key; with one for all, row b draws with the same random numbers in every shard.

    Raises:
      ValueError, TypeError: naming the option.
    """

    model: Callable[..., tuple[jax.Array, Any]]
    """The model, as described above."""
    drafter: NeuralDrafter | None = None
    """None: no neural drafts."""
    stop_tokens: tuple[int, ...] = ()
    """A row ends with the first of them that it emits."""
    threshold: int = 4
    """The match length, plus the common prefix of both drafts, from which the automaton's draft is
    used instead of the neural one: the rule of `jax_sa.merge_drafts`."""
    follow_neural: bool = False
    """Whether neural drafts go on with what the automata say follows them
    (`jax_sa.lookup_after`), up to `max_draft` tokens in all. Without automata, nothing does; a
    `ScanState` cannot."""
    tree_nodes: int | None = None
    """N, the nodes of a tree of drafts at most; None: drafts are chains. Without automata, they
    always are."""
    logits_fn: Callable[..., jax.Array] | None = None
    """`logits_fn(logits [B, T, V], block int32[B, T], generation)` returns the logits that count,
    such as without forbidden tokens, or with a penalty for tokens that a text holds already.
    `logits[b, t]` choose what follows `block[b, t]`. Place 0 of a block is the last token, which
    `generation.tokens` and `generation.lengths` count already; the others are the draft, of which
    place t has those before it. Of a tree, the places before are not all above, so it is an error
    with `tree_nodes`. `generation.cache` is None here. None: the model's logits count."""
    draft_widths: tuple[int, ...] | None = None
    """The numbers of drafted tokens of a row, besides none, for which a step is compiled. Few of
    them compile sooner, and fit the drafts less well. None: powers of two, M, and K or N."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.model):
            raise TypeError(f"model: expected a function, got {type(self.model).__name__}")
        warn_if_written_anew("model", self.model)
        if not isinstance(self.stop_tokens, tuple):
            raise TypeError(f"stop_tokens: expected a tuple of ints, got {self.stop_tokens!r}")
        check_logits_fn(self.logits_fn, self.tree_nodes)
        if self.draft_widths is not None and not isinstance(self.draft_widths, tuple):
            raise TypeError(f"draft_widths: expected a tuple of ints, got {self.draft_widths!r}")
        normalise(
            self,
            drafter=None if self.drafter is None else check_drafter(self.drafter),
            stop_tokens=tuple(check_int("stop_tokens", t, INT32_MIN) for t in self.stop_tokens),
            threshold=check_int("threshold", self.threshold, 1),
            follow_neural=check_bool("follow_neural", self.follow_neural),
            tree_nodes=None
            if self.tree_nodes is None
            else check_int("tree_nodes", self.tree_nodes, 1, MAX_NODES),
        )
        if self.draft_widths is not None:
            most = max(self._longest(drafts) for drafts in (True, False))
            widths = {check_int("draft_widths", w, 1, max(most, 1)) for w in self.draft_widths}
            normalise(self, draft_widths=tuple(sorted(widths)))

    def generate(
        self,
        params: Any,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        cache: Any,
        *,
        max_new_tokens: int,
        state: AnyState | None = None,
        limits: jax.Array | None = None,
        sampling: Sampling | None = None,
        costs: jax.Array | None = None,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
        check: bool = False,
    ) -> Generation:
        """Generates from prompts, in one jitted `lax.while_loop`, as decoding without drafts would.

        Without `sampling`, the tokens are exactly those of greedy decoding (`accept_greedy`), for a
        model whose logits do not depend on T; with it, they have the same distribution
        (`accept_sampled`). Drafts come from the automata of `state`, from a neural drafter, from
        both (`merge_drafts` chooses per row), or from neither. A step verifies as much of them as
        is worth its cost: of the compiled `widths`, the one with the most expected tokens per cost
        (`jax_sa.budget`), which may be none.

        Args:
          params: the model's parameters, a pytree.
          prompts: int32[B, P], padded on the right. Outside of jit also integers of another size,
            or lists of token ids (`jax_sa.pad_prompts`).
          prompt_lengths: int32[B] in 1..P; a row of any other length is idle and generates nothing.
            None: P, or the lengths of the lists.
          cache: the model's, of B rows and with room for P + G tokens more; it is donated. The
            prompts come after its tokens.
          max_new_tokens: G, the maximum for every row.
          state: automata of B slots, donated, with room for the prompt and the new tokens of each
            row; the texts that they hold are drafted from too. A slot that other texts have filled
            drafts until it is full. None: no automata.
          limits: int32[B] maximum new tokens per row, clipped to 0..G. None: G.
          sampling: None: greedy.
          costs: float32[W] the relative cost of a step of each of `widths`, as `calibrate` measures
            them; with a drafter float32[2 + W], the first of its reading of all prompts, the second
            of the narrowest step without it. A cost that is not above 0, or is infinite or NaN,
            rules its step out; a reading whose cost is not above 0 counts nothing. None: an
            estimate for the default backend.
          pool: texts that the automata's drafts may come from too, as in `jax_sa.lookup`. It is
            only read; `jax_sa.insert_slots(pool, generation.state, slots)` puts what was generated
            into it afterwards. None: no pool.
          groups: int32[B] the group of the pool that each row may see. None: group 0.
          check: whether to run `jax_sa.check_model` first, on copies of the cache; not inside jit.

        Returns:
          The generation, every row finished.

        Raises:
          ValueError, TypeError: naming the argument; with `check`, saying what the model does
            wrong.
        """
        request = _check_request(
            _Request(prompts, prompt_lengths, limits, sampling, max_new_tokens),
            *(params, cache, state),
        )
        _check_pool(state, pool)
        if check:
            room = request.prompts.shape[1] + request.max_new_tokens
            trees = state is not None and self.tree_nodes is not None
            check_on_copies(self.model, params, cache, room, trees=trees)
        generation = self._init(params, request, cache, state, pool, groups, costs)
        most = jnp.asarray(INT32_MAX, jnp.int32)
        return self._run(params, generation, costs, most, pool, groups)

    def calibrate(
        self,
        params: Any,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        cache: Any,
        *,
        max_new_tokens: int,
        state: AnyState | None = None,
        sampling: Sampling | None = None,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Calibration:
        """Measures the cost of a step of each width, on the user's model and device.

        It takes a few seconds and, if a `generate` of the same shapes follows, compiles nothing
        that would not be compiled for that.

        Args:
          params: as in `generate`, like all that follows up to `sampling`.
          prompts: int32[B, P].
          prompt_lengths: int32[B].
          cache: donated.
          max_new_tokens: G, at least 8. A width of G or more is never used: its cost is infinite.
          state: donated; its slots are emptied.
          sampling: as in `generate`, like `pool` and `groups`.
          pool: only read.
          groups: int32[B].
          on_progress: called with the number of widths that were measured, and of all.

        Raises:
          ValueError, TypeError: as `generate`.
        """
        check_int("max_new_tokens", max_new_tokens, CALIBRATION_TOKENS)
        request = _check_request(
            _Request(prompts, prompt_lengths, None, sampling, max_new_tokens),
            *(params, cache, state),
        )
        _check_pool(state, pool)
        length = jnp.copy(cache.length)
        widths = self.widths(drafts=state is not None)
        num_steps = len(widths) + (self.drafter is not None)
        unused = sum(width >= max_new_tokens for width in widths)

        def buffers(generation: Generation | None) -> tuple[Any, AnyState | None]:
            if generation is None:
                return cache, state
            automata = generation.state
            if automata is not None:
                automata = _reset(automata, jnp.arange(automata.num_slots, dtype=jnp.int32))
            return dataclasses.replace(generation.cache, length=jnp.copy(length)), automata

        def whole(costs: jax.Array) -> jax.Array:
            """The costs of steps that are measured, as `generate` takes them."""
            costs = jnp.pad(costs, (0, unused), constant_values=jnp.inf)
            return costs if self.drafter is None else jnp.pad(costs, (1, 0))

        def restart(generation: Generation | None, *, reads: bool = False) -> Generation:
            costs = jnp.ones(num_steps, jnp.float32)
            if self.drafter is not None:
                # A worthless step without it has the drafter run, and worthless others do not.
                costs = jnp.where((jnp.arange(num_steps) == 0) == reads, jnp.inf, costs)
            costs = whole(costs[: num_steps - unused])
            return self._init(params, request, *buffers(generation), pool, groups, costs)

        def advance(generation: Generation, costs: jax.Array, steps: int) -> tuple[Generation, int]:
            before = int(jnp.max(generation.steps))
            most = jnp.asarray(steps, jnp.int32)
            generation = self._run(params, generation, whole(costs), most, pool, groups)
            return generation, int(jnp.max(generation.steps)) - before

        costs, generation = measure_costs(restart, advance, num_steps - unused, on_progress)
        costs = whole(costs)
        if self.drafter is not None:
            reading, generation = measure_more(
                lambda generation, reads: restart(generation, reads=reads), generation
            )
            costs = costs.at[0].set(reading)
        return Calibration(costs, *buffers(generation))

    def init(
        self,
        params: Any,
        prompts: jax.Array,
        prompt_lengths: jax.Array,
        cache: Any,
        *,
        max_new_tokens: int,
        state: AnyState | None = None,
        limits: jax.Array | None = None,
        sampling: Sampling | None = None,
        costs: jax.Array | None = None,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
    ) -> Generation:
        """Reads all tokens of the prompts but the last, and drafts the tokens that follow it.

        Arguments and errors are those of `generate`. A drafter reads the prompts only if costs say
        that it is worth it: give `step` the same.
        """
        request = _check_request(
            _Request(prompts, prompt_lengths, limits, sampling, max_new_tokens),
            *(params, cache, state),
        )
        _check_pool(state, pool)
        return self._init(params, request, cache, state, pool, groups, costs)

    @functools.partial(jax.jit, static_argnames="self", donate_argnames="generation")
    def _run(
        self,
        params: Any,
        generation: Generation,
        costs: jax.Array | None,
        max_steps: jax.Array,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
    ) -> Generation:
        """Goes on until every row is done, or for so many steps."""
        costs = self._costs(costs, generation.lengths.size, generation.state is not None)

        def goes_on(carry: tuple[jax.Array, Generation]) -> jax.Array:
            steps, generation = carry
            return (steps < max_steps) & ~jnp.all(generation.finished)

        def body(carry: tuple[jax.Array, Generation]) -> tuple[jax.Array, Generation]:
            steps, generation = carry
            return steps + 1, self._step(params, generation, costs, pool, groups)[0]

        return jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), generation))[1]

    @functools.partial(jax.jit, static_argnames="self", donate_argnames=("cache", "state"))
    def _init(
        self,
        params: Any,
        request: _Request,
        cache: Any,
        state: AnyState | None,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
        costs: jax.Array | None = None,
    ) -> Generation:
        request, cache, state = _vary_alike(request, cache, state)
        prompts, width = request.prompts, request.prompts.shape[1]
        has_prompt = (request.prompt_lengths >= 1) & (request.prompt_lengths <= width)
        prompt_lengths = jnp.where(has_prompt, request.prompt_lengths, 0)
        none = jnp.zeros_like(prompt_lengths)  # sharded as they are, like all that comes of it
        limits = none + jnp.clip(request.limits, 0, request.max_new_tokens)
        finished = ~has_prompt | (limits == 0)
        before = jnp.maximum(prompt_lengths - 1, 0)
        last = jnp.take_along_axis(prompts, before[:, None], axis=1)[:, 0]

        def read(cache: Any) -> Any:
            # No logits are used, so none are computed: of a long prompt they would fill the memory.
            _, cache = self._read(params, prompts, cache, cache.length)
            return _advance(cache, before)

        neural, use_drafter = None, None
        if self.drafter is None:
            cache = read(cache)
        else:
            drafts = state is not None
            costs = self._costs(costs, none.size, drafts)
            use_drafter = self._weigh(costs, drafts, request.max_new_tokens).can_pay
            use_drafter = vary(use_drafter, varying_axes(none))
            prefill = functools.partial(self.drafter.prefill, params, prompts, before, last)
            neural, cache = read_with(self.drafter, use_drafter, read, prefill, none, cache)
        left = jnp.where(finished, 0, limits)
        state, draft, _ = self._draft(
            *(state, prompts, prompt_lengths, neural, use_drafter, left), pool=pool, groups=groups
        )
        no_loss = None if use_drafter is None else jnp.zeros_like(use_drafter, jnp.float32)
        return Generation(
            tokens=jnp.broadcast_to(none[:, None], (limits.size, request.max_new_tokens)),
            lengths=none,
            limits=limits,
            finished=finished,
            steps=none,
            drafted=none,
            accepted=none,
            last=last,
            draft=draft,
            record=budget.init_record(limits),
            allowance=allowance.begin(jnp.max(limits)),
            drafter_loss=no_loss,
            cache=cache,
            state=state,
            sampling=request.sampling and of_first_step(request.sampling),
        )

    def step(
        self,
        params: Any,
        generation: Generation,
        costs: jax.Array | None = None,
        *,
        pool: Pool | None = None,
        groups: jax.Array | None = None,
    ) -> tuple[Generation, Accepted]:
        """Calls the model once, and emits the tokens of the draft that it confirms and one more.

        Args:
          params: the model's parameters, a pytree.
          generation: donated.
          costs: as in `generate`, like `pool` and `groups`.
          pool: only read.
          groups: int32[B].

        Returns:
          The generation, and the emitted tokens: at most 1 + K per row, all but the last of them
          drafted; none where the row had finished.

        Raises:
          ValueError: the generation was donated to an earlier step.
        """
        check_donated({"generation": generation})
        return self._step(params, generation, costs, pool, groups)

    @functools.partial(jax.jit, static_argnames="self", donate_argnames="generation")
    def _step(
        self,
        params: Any,
        generation: Generation,
        costs: jax.Array | None,
        pool: Pool | None,
        groups: jax.Array | None,
    ) -> tuple[Generation, Accepted]:
        sampling, key = generation.sampling, None
        if sampling is not None:
            sampling, key = of_next_step(sampling), sampling.key
        drafts, max_new_tokens = generation.state is not None, generation.tokens.shape[1]
        costs = self._costs(costs, generation.lengths.size, drafts)
        weighed, use_drafter = None, None
        if self.drafter is not None:
            weighed = self._weigh(costs, drafts, max_new_tokens)
            use_drafter = weighed.can_pay & (generation.drafter_loss <= PATIENCE)
            costs = jnp.where(use_drafter, weighed.running, weighed.alone)
        index, draft = self._choose(generation, costs)
        # The automata stay out of the branches: jax before 0.11.2 copies what a branch updates.
        branches = [
            functools.partial(self._verify, width, params, generation, draft, use_drafter, key)
            for width in self.widths(drafts=drafts)
        ]
        (emitted, path, stopped, neural), cache = run_branch(index, branches, generation.cache)
        lengths = generation.lengths + emitted.length
        finished = generation.finished | stopped | (lengths >= generation.limits)
        active = (~generation.finished).astype(jnp.int32)
        confirmed = emitted.length - active
        left = jnp.where(finished, 0, generation.limits - lengths)
        if path is None:
            record = budget.update_record(generation.record, draft, confirmed)
        else:
            record = tree_budget.update_record(generation.record, draft, path, confirmed)
        state, next_draft, alone = self._draft(
            *(generation.state, emitted.tokens, emitted.length, neural, use_drafter, left),
            pool=pool,
            groups=groups,
        )
        after = dataclasses.replace(
            generation,
            tokens=_append(generation.tokens, generation.lengths, emitted),
            lengths=lengths,
            finished=finished,
            steps=generation.steps + active,
            drafted=generation.drafted + draft.length,
            accepted=generation.accepted + confirmed,
            record=record,
            allowance=self._allow(generation, costs, index, confirmed),
            last=last_token(emitted, generation.last),
            draft=next_draft,
            cache=cache,
            state=state,
            sampling=sampling,
        )
        if alone is not None:
            loss = self._lost(after, alone, weighed)
            loss = jnp.where(use_drafter, loss, generation.drafter_loss)
            after = dataclasses.replace(after, drafter_loss=loss)
        return after, emitted

    def _verify(
        self,
        width: int,
        params: Any,
        generation: Generation,
        draft: Draft | DraftTree,
        use_drafter: jax.Array | None,
        key: jax.Array | None,
        cache: Any,
    ) -> tuple[tuple[Accepted, jax.Array | None, jax.Array, jax.Array | None], Any]:
        """The part of a step that depends on the width of its block, of `width` drafted tokens.

        Returns:
          The emitted tokens [B, 1 + K]; the path int32[B, 1 + N] of a tree, None of a chain;
          bool[B] whether they end in a stop token; the neural drafter's tokens; the cache.
        """
        tokens = jnp.concatenate([generation.last[:, None], draft.tokens[:, :width]], axis=1)
        is_tree = isinstance(draft, DraftTree) and width > 1  # one of a single node is a chain
        draft_read = tree_budget.first_nodes(draft, width) if is_tree else _chain(draft, width)
        again = None
        if width:
            max_new_tokens = generation.tokens.shape[1]
            again = tokens_again(generation.lengths, width, max_new_tokens)
            tokens = move_back(tokens, generation.tokens, generation.lengths, again)
        block = (tree_block(draft_read, cache.length, again),) if is_tree else ()
        start = cache if again is None else _advance(cache, -again)
        logits, cache = self._read(params, tokens, start, cache.length, *block)
        check_logits_of_block(logits, tokens)
        if self.logits_fn is not None:
            logits, again = self._adjust(logits, again, draft_read, generation), None
        accepted = self._accept(draft_read, logits, again, generation.sampling, key)
        path = None
        if is_tree:
            accepted, path = accepted
            cache = cache.move(cache.length, path)
        emitted, stopped = cut_at_stop(accepted, ~generation.finished, self.stop_tokens)
        cache, neural = _advance(cache, emitted.length), None
        if self.drafter is not None:
            draft_next = functools.partial(self.drafter.draft, params, emitted)
            neural, cache = run_if(self.drafter, use_drafter, draft_next, emitted.length, cache)
        longest = draft.tokens.shape[1]
        padding = ((0, 0), (0, longest - width))
        padded = jnp.pad(emitted.tokens, padding, constant_values=DRAFT_FILL)
        if isinstance(draft, DraftTree):
            path = _whole_path(path, emitted.length, longest)
        return (Accepted(padded, emitted.length), path, stopped, neural), cache

    def _read(
        self, params: Any, tokens: jax.Array, cache: Any, length: jax.Array, *tree: Any
    ) -> tuple[jax.Array, Any]:
        """Calls the model; whatever length it returns, the cache has this one."""
        logits, returned = self.model(params, tokens, cache, *tree)
        check_returned_cache(returned, cache)
        return logits, dataclasses.replace(returned, length=length)

    def _adjust(
        self, logits: jax.Array, again: jax.Array | None, draft: Draft, generation: Generation
    ) -> jax.Array:
        """The logits that count, from that of the last token on."""
        if again is not None:
            logits = from_last_token(logits, again)
        block = jnp.concatenate([generation.last[:, None], draft.tokens], axis=1)
        adjusted = self.logits_fn(logits, block, dataclasses.replace(generation, cache=None))
        check_array("logits_fn's result", adjusted, logits.dtype, logits.shape)
        return adjusted

    @staticmethod
    @follow_rows()
    def _accept(
        draft: Draft | DraftTree,
        logits: jax.Array,
        again: jax.Array | None,
        sampling: Sampling | None,
        key: jax.Array | None,
    ) -> Any:
        """What the model confirms of a chain, or of a tree, with its path."""
        is_tree, first = isinstance(draft, DraftTree), None
        if sampling is None:
            chosen = check_targets(logits, draft.length.size, draft.tokens.shape[1], None)
            if jnp.issubdtype(chosen.dtype, jnp.floating):
                chosen = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
            if again is not None:
                chosen = from_last_token(chosen, again)
            return (accept_tree_greedy if is_tree else accept_greedy)(draft, chosen)
        if again is not None:  # packed, so that no logit moves
            rows, width, vocabulary = logits.shape
            first = width * jnp.arange(rows, dtype=jnp.int32) + again
            logits = logits.reshape(-1, vocabulary)
        accept = accept_tree_sampled if is_tree else accept_sampled
        options = sampling.temperature, sampling.top_k, sampling.top_p
        return accept(key, draft, logits, *options, first=first)

    def widths(self, *, drafts: bool = True) -> tuple[int, ...]:
        """The drafted tokens of a row for which a step is compiled, ascending.

        Args:
          drafts: whether there are automata.
        """
        longest = self._longest(drafts)
        if self.draft_widths is not None:
            return (0, *(width for width in self.draft_widths if width <= longest))
        is_tree = drafts and self.tree_nodes is not None
        neural = 0 if is_tree or self.drafter is None else self.drafter.max_draft
        powers = (2**i for i in range(longest.bit_length()))
        return tuple(sorted({0, *powers, neural, longest}))

    def _longest(self, drafts: bool) -> int:
        """The drafted tokens of a row at most."""
        if drafts and self.tree_nodes is not None:
            return self.tree_nodes
        neural = 0 if self.drafter is None else self.drafter.max_draft
        return max(neural, self.max_draft if drafts else 0)

    def _costs(self, costs: Any, rows: int, drafts: bool) -> jax.Array:
        """The costs given, checked, or else an estimate, which knows none of a drafter."""
        widths, of_drafter = self.widths(drafts=drafts), 2 * (self.drafter is not None)
        if costs is None:
            tokens = [rows * (1 + width) for width in widths]
            costs = budget.estimate_costs(tokens, jax.default_backend())
            return jnp.pad(costs, (of_drafter, 0))
        check_array("costs", costs, jnp.float32, (of_drafter + len(widths),))
        return costs

    def _weigh(self, costs: jax.Array, drafts: bool, max_new_tokens: int) -> StepCosts:
        return weigh(costs, self.widths(drafts=drafts), self.drafter.max_draft, max_new_tokens)

    @follow_rows((False, True))
    def _choose(self, generation: Generation, costs: jax.Array) -> tuple[jax.Array, Draft]:
        """The index of the width with the most expected tokens per cost, and the drafts cut to it.

        A chain is cut at its end, a tree to the nodes that are likeliest to hold; of these, a row
        has at most as many as it may still write tokens, since so much is its room.
        """
        draft = generation.draft
        promised, chosen, chances = self._promise(generation, draft)
        promised = allowance.discount(promised, costs, generation.allowance)
        index = budget.best_width(promised, costs)
        if isinstance(draft, DraftTree):
            return index, tree_budget.keep(draft, chosen[index] & (chances > 0.0))
        widths = jnp.asarray(self.widths(drafts=generation.state is not None), jnp.int32)
        return index, budget.cut_draft(draft, widths[index])

    @follow_rows(False)
    def _allow(
        self, generation: Generation, costs: jax.Array, index: jax.Array, confirmed: jax.Array
    ) -> jax.Array:
        """The allowance after a step of the width `index` that confirmed int32[B] tokens."""
        share = _share_left(generation)
        steps = jnp.stack([share, share / (1.0 + confirmed.astype(jnp.float32))])
        plain, done = 1.0 / _slowest(steps)
        limit = jnp.max(generation.limits)
        before = generation.allowance
        return allowance.after_step(before, costs[index], costs[0], done / plain, limit)

    @follow_rows(False)
    def _lost(self, generation: Generation, alone: Draft, costs: StepCosts) -> jax.Array:
        """float32[] the drafter's loss with the next step, whose drafts without it are `alone`."""
        most = []
        for draft, of_steps in ((generation.draft, costs.running), (alone, costs.alone)):
            promised, _, _ = self._promise(generation, draft)
            most.append(jnp.max(jnp.where(of_steps > 0.0, promised / of_steps, 0.0)))
        return update_loss(generation.drafter_loss, *most)

    def _promise(
        self, generation: Generation, draft: Draft | DraftTree
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What a step of each width promises the batch, with the drafts cut to it.

        Returns:
          float32[W] tokens, of the slowest rows mostly (`SLOWEST_FIRST`), as a share of those that
          the batch still writes; 0 where there is no room for the width. bool[W, B, K] the tokens
          verified. float32[B, K] the chance that a token holds.
        """
        widths = jnp.asarray(self.widths(drafts=generation.state is not None), jnp.int32)
        strain = generation.record.strain()
        share = _share_left(generation)
        max_new_tokens = generation.tokens.shape[1]
        if isinstance(draft, DraftTree):
            chances = tree_budget.survival(draft, strain)
            rank = tree_budget.rank_in_row(chances)
            room = (max_new_tokens - generation.lengths)[:, None]
            chosen = rank[None] < jnp.minimum(widths[:, None, None], room[None])
        else:
            chances = budget.survival(draft, strain)
            place = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
            chosen = place[None] < widths[:, None, None]
        steps = share[None] / (1.0 + budget.expected_tokens(chances, chosen))
        promised = 1.0 / _slowest(steps)
        return jnp.where(widths < max_new_tokens, promised, 0.0), chosen, chances

    def _draft(
        self,
        state: AnyState | None,
        tokens: jax.Array,
        lengths: jax.Array,
        neural: jax.Array | None,
        use_neural: Any,
        left: jax.Array,
        **seen: Any,
    ) -> tuple[AnyState | None, Draft | DraftTree, Draft | None]:
        """Appends tokens [B, T], and drafts from all sources there are what follows.

        A draft, or a path in a tree, has at most `left - 1` tokens: a step emits one more. `seen`
        are the pool and the rows' groups.

        Returns:
          The automata, the drafts, and, where these are chains and there is a neural drafter, what
          they would be without it.
        """
        options = {**seen, **self.lookup_options()}
        if state is None:
            none = jnp.zeros_like(left)
            draft = Draft(jnp.broadcast_to(none[:, None], (left.size, 0)), none)
        elif self.tree_nodes is not None:
            return *self._draft_trees(state, tokens, lengths, neural, left, options), None
        else:
            state, draft = extend_lookup(state, tokens, lengths, **options)
            neural = self._follow(state, neural, options)
        return state, *self._merge(draft, neural, use_neural, left)

    def _draft_trees(
        self,
        state: State,
        tokens: jax.Array,
        lengths: jax.Array,
        neural: jax.Array | None,
        left: jax.Array,
        options: dict[str, Any],
    ) -> tuple[State, DraftTree]:
        """The same for trees. A draft that stops short is filled with `NO_TOKEN`."""
        of_tree = {"max_nodes": self.tree_nodes, "limits": left - 1, "threshold": self.threshold}
        if not self._follows(neural):
            return extend_lookup_tree(state, tokens, lengths, neural=neural, **of_tree, **options)
        state = extend(state, tokens, lengths)
        draft = self._follow(state, neural, options)
        neural = _tokens_or(draft, NO_TOKEN)
        return state, lookup_tree(state, neural=neural, **of_tree, **options)

    def _follows(self, neural: jax.Array | None) -> bool:
        return self.follow_neural and neural is not None and self.max_draft > neural.shape[1]

    def _follow(
        self, state: AnyState, neural: jax.Array | None, options: dict[str, Any]
    ) -> Draft | jax.Array | None:
        """Neural drafts, and behind them what the automata say follows, if it is asked for.

        Where the drafter did not run, its draft is `NO_TOKEN`s, and nothing follows them.
        """
        if not self._follows(neural):
            return neural
        width = neural.shape[1]
        lengths = jnp.where(neural[:, 0] == NO_TOKEN, -1, width)
        options = {**options, "max_draft": self.max_draft - width}
        return join_drafts(neural, lookup_after(state, neural, lengths, **options))

    @follow_rows()
    def _merge(
        self, automaton: Draft, neural: Draft | jax.Array | None, use_neural: Any, left: jax.Array
    ) -> tuple[Draft, Draft | None]:
        """The chains there are as one; those of the automata alone, if there are others."""
        if neural is None:
            return budget.cut_draft(automaton, left - 1), None
        both = merge_drafts(automaton, neural, self.threshold)
        padding = ((0, 0), (0, both.tokens.shape[1] - automaton.tokens.shape[1]))
        padded = jnp.pad(automaton.tokens, padding, constant_values=DRAFT_FILL)
        alone = dataclasses.replace(automaton, tokens=padded)
        draft = jax.tree.map(functools.partial(jnp.where, use_neural), both, alone)
        return budget.cut_draft(draft, left - 1), budget.cut_draft(alone, left - 1)


def generate(
    model: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    cache: Any,
    *,
    max_new_tokens: int,
    state: AnyState | None = None,
    limits: jax.Array | None = None,
    sampling: Sampling | None = None,
    costs: jax.Array | None = None,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
    check: bool = False,
    **options: Any,
) -> Generation:
    """Generates from prompts: `jax_sa.Decoder(model, **options).generate(params, ...)`.

    Arguments, result and errors are those of `jax_sa.Decoder`, which describes the model too, and
    of its method. Give the same function object in every call, and it is compiled once.
    """
    return Decoder(model, **options).generate(
        params,
        prompts,
        prompt_lengths,
        cache,
        max_new_tokens=max_new_tokens,
        state=state,
        limits=limits,
        sampling=sampling,
        costs=costs,
        pool=pool,
        groups=groups,
        check=check,
    )


def _check_request(request: _Request, params: Any, cache: Any, state: Any) -> _Request:
    """The request with all as arrays; ValueError or TypeError if something is wrong."""
    max_new_tokens = check_int("max_new_tokens", request.max_new_tokens, 1)
    prompts, prompt_lengths = read_prompts(request.prompts, request.prompt_lengths)
    rows, width = check_array("prompts", prompts, jnp.int32, ("B", "P"))
    if rows == 0 or width == 0:
        raise ValueError(f"prompts: expected a row and a token at least, got [{rows}, {width}]")
    check_array("prompt_lengths", prompt_lengths, jnp.int32, (rows,))
    check_params(params)
    check_cache(cache, rows)
    if state is not None:
        check_state(state)
        if state.num_slots != rows:
            raise ValueError(f"state: expected {rows} slots, got {state.num_slots}")
    limits, sampling = request.limits, request.sampling
    if limits is None:
        limits = jnp.full(rows, max_new_tokens, jnp.int32)
    limits = as_int32("limits", limits)
    check_array("limits", limits, jnp.int32, (rows,))
    kept = {"params": params, "prompts": prompts, "prompt_lengths": prompt_lengths}
    check_donated({"cache": cache, "state": state}, kept)
    check_room(prompts, prompt_lengths, limits, max_new_tokens, cache, state)
    return _Request(
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        limits=limits,
        sampling=None if sampling is None else check_sampling(sampling, rows),
        max_new_tokens=max_new_tokens,
    )


def _check_pool(state: AnyState | None, pool: Any) -> None:
    """Raises ValueError or TypeError unless a pool, if there is one, can be looked up."""
    if pool is None:
        return
    check_pool(pool)
    if state is None:
        raise ValueError("pool: expected a state, whose texts are looked up in it, got none")


def _vary_alike(
    request: _Request, cache: Any, state: AnyState | None
) -> tuple[_Request, Any, AnyState | None]:
    """Inside shard_map, all arrays of the rows as varying over the mesh axes that one of them does.

    The loop needs its results to vary as its arguments do; the model decides about the rest of the
    cache, whose other arrays may vary over further axes.
    """
    rows = (request, cache.length, state)
    request, length, state = vary(rows, varying_axes(rows))
    return request, dataclasses.replace(cache, length=length), state


def _share_left(generation: Generation) -> jax.Array:
    """float32[B] the tokens that a row may still write, as a share of the most that one may."""
    left = jnp.where(generation.finished, 0, generation.limits - generation.lengths)
    most = jnp.maximum(jnp.max(left), 1).astype(jnp.float32)
    return left.astype(jnp.float32) / most


def _slowest(steps: jax.Array) -> jax.Array:
    """float32[W] the steps that a batch needs whose rows need float32[W, B], by `SLOWEST_FIRST`."""
    norm = jnp.sum(steps**SLOWEST_FIRST, axis=1) ** (1.0 / SLOWEST_FIRST)
    return jnp.maximum(norm, 1e-6)


def _advance(cache: Any, count: jax.Array) -> Any:
    return dataclasses.replace(cache, length=cache.length + count)


def _chain(draft: Draft | DraftTree, width: int) -> Draft:
    """The first `width` tokens of a chain, or of a tree of at most one node."""
    tokens = draft.tokens[:, :width]
    if isinstance(draft, Draft):
        return dataclasses.replace(draft, tokens=tokens)
    return Draft(tokens, jnp.minimum(draft.length, width))


@follow_rows()
def _tokens_or(draft: Draft, fill: int) -> jax.Array:
    """int32[B, K] the tokens of a draft, and beyond its length the fill."""
    position = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return jnp.where(position < draft.length[:, None], draft.tokens, fill)


@follow_rows()
def _whole_path(path: jax.Array | None, length: jax.Array, max_nodes: int) -> jax.Array:
    """The path in a block of `max_nodes` nodes; None is that of a chain."""
    width = 0 if path is None else path.shape[1]
    rest = jnp.arange(width, 1 + max_nodes, dtype=jnp.int32)
    rest = jnp.broadcast_to(rest[None], (length.size, rest.size))
    return rest if path is None else jnp.concatenate([path, rest], axis=1)


@follow_rows()
def _append(tokens: jax.Array, lengths: jax.Array, emitted: Accepted) -> jax.Array:
    """Writes the emitted tokens behind the first `lengths` of `tokens`."""
    position = jnp.arange(emitted.tokens.shape[1], dtype=jnp.int32)[None]
    column = jnp.where(position < emitted.length[:, None], lengths[:, None] + position, INT32_MAX)

    def write(row: jax.Array, columns: jax.Array, values: jax.Array) -> jax.Array:
        return row.at[columns].set(values, mode="drop")

    return jax.vmap(write)(tokens, column, emitted.tokens)


_reset = jax.jit(reset, donate_argnames="state")
