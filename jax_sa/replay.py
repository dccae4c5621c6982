"""Replays recorded texts as if a model produced them, to count the steps that drafts save."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_int
from jax_sa._options import DraftOptions
from jax_sa.automaton import Source, extend, lookup, reset
from jax_sa.draft_tree import check_lookup_tree, lookup_tree
from jax_sa.pool import Pool, init_pool
from jax_sa.pool_insert import insert_slots
from jax_sa.state import AnyState, init
from jax_sa.traces import Trace
from jax_sa.verify import Accepted, accept_greedy
from jax_sa.verify_tree import accept_tree_greedy

SOURCES = (Source.NONE, Source.OWN, Source.POOL)
"""The sources of drafts in a replay."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Sums over steps. A step emits its accepted tokens and one more."""

    steps: int
    """Decoding steps."""
    drafted: int
    """Draft tokens, in trees their nodes."""
    accepted: int
    """Draft tokens that the recorded response confirms."""


@dataclasses.dataclass(frozen=True)
class Replayed(Counts):
    """The result of one trace: its counts until the whole response was there."""

    trace: Trace
    """The text that was replayed."""
    sources: dict[str, Counts]
    """The counts of the steps whose draft, or whose tree's first node, came from each source, by
    its name in lower case."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Work:
    """Traces side by side in `S` slots of at most N tokens; drafts have at most K."""

    state: AnyState
    """The texts as far as they have been replayed."""
    texts: jax.Array
    """int32[S, N + 1 + K], of which the first N hold the whole texts."""
    lengths: jax.Array
    """int32[S] their tokens; 0 for a slot without one."""
    prompt_lengths: jax.Array
    """int32[S] tokens of their prompts."""
    counts: jax.Array
    """int32[S, 3, 3] for each of `SOURCES`: steps, drafted, accepted."""

    def ended(self) -> jax.Array:
        """bool[S] slots whose text is there as a whole."""
        return (self.lengths > 0) & (self.state.length >= self.lengths)


@functools.partial(jax.jit, donate_argnames="work")
def _begin(
    work: _Work, slot: jax.Array, text: jax.Array, length: jax.Array, prompt_length: jax.Array
) -> _Work:
    """Gives a slot another text int32[N + 1 + K], and reads its prompt."""
    state = reset(work.state, slot[None])
    state = extend(state, text[None], prompt_length[None], slots=slot[None])
    return _Work(
        state=state,
        texts=work.texts.at[slot].set(text),
        lengths=work.lengths.at[slot].set(length),
        prompt_lengths=work.prompt_lengths.at[slot].set(prompt_length),
        counts=work.counts.at[slot].set(0),
    )


@functools.partial(jax.jit, donate_argnames="work", static_argnames="options")
def _run(work: _Work, pool: Pool | None, options: tuple[tuple[str, Any], ...]) -> _Work:
    """Drafts, accepts and extends until a text ends."""
    sources = jnp.asarray(SOURCES, jnp.int32)

    def goes_on(work: _Work) -> jax.Array:
        return jnp.any(work.lengths > 0) & ~jnp.any(work.ended())

    def step(work: _Work) -> _Work:
        state = work.state
        left = work.lengths - state.length
        draft = _drafts(state, pool, dict(options))
        recorded = jnp.take_along_axis(work.texts, state.length[:, None] + draft.ahead, axis=1)
        accepted = draft.accept(recorded)
        confirmed = jnp.minimum(accepted.length - 1, left)
        most = jnp.minimum(confirmed + 1, left)
        active = left > 0
        counts = jnp.stack([jnp.ones_like(left), draft.length, confirmed], axis=1)
        counts = jnp.where(active[:, None], counts, 0)[:, None]
        by_source = jnp.where((draft.source[:, None] == sources[None])[..., None], counts, 0)
        return dataclasses.replace(
            work,
            state=extend(state, accepted.tokens, jnp.where(active, most, 0)),
            counts=work.counts + by_source,
        )

    return jax.lax.while_loop(goes_on, step, work)


class _Drafts(NamedTuple):
    """What a step of a replay needs of chains or trees."""

    length: jax.Array
    """int32[S] drafted tokens."""
    source: jax.Array
    """int32[S] a `Source`."""
    ahead: jax.Array
    """int32[S, T] how far beyond the text the token lies that each place of the block foretells."""
    accept: Callable[[jax.Array], Accepted]
    """What the recorded tokens at these places, int32[S, T], confirm."""


def _drafts(state: State, pool: Pool | None, options: dict[str, Any]) -> _Drafts:
    if "max_nodes" not in options:
        draft = lookup(state, pool=pool, **options)
        ahead = jnp.arange(1 + options["max_draft"], dtype=jnp.int32)[None]
        return _Drafts(draft.length, draft.source, ahead, functools.partial(accept_greedy, draft))
    tree = lookup_tree(state, pool=pool, **options)
    ahead = jnp.pad(tree.depth, ((0, 0), (1, 0)))
    first = tree.source[:, 0]
    return _Drafts(
        tree.length, first, ahead, lambda recorded: accept_tree_greedy(tree, recorded)[0]
    )


@functools.partial(jax.jit, donate_argnames=("work", "pool"), static_argnames="responses_only")
def _end(work: _Work, pool: Pool | None, responses_only: bool) -> tuple[_Work, Pool | None]:
    """Takes the texts that ended out of their slots, and into the pool."""
    ended = work.ended()
    if pool is not None:
        slots = jnp.where(ended, jnp.arange(ended.size, dtype=jnp.int32), -1)
        starts = work.prompt_lengths if responses_only else None
        pool = insert_slots(pool, work.state, slots, starts=starts)
    return dataclasses.replace(work, lengths=jnp.where(ended, 0, work.lengths)), pool


def replay_traces(
    traces: Sequence[Trace],
    *,
    num_slots: int = 8,
    index: str = "automaton",
    pool_capacity: int | None = None,
    pool_responses_only: bool = False,
    max_nodes: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Replayed]:
    """Replays traces in their order, `num_slots` at a time; where one ends, the next begins.

    Args:
      traces: at least one.
      num_slots: traces side by side. With a pool, 1 replays strictly one after the other.
      index: what finds matches, as in `jax_sa.init`; a scan without a pool.
      pool_capacity: the tokens of a pool (`jax_sa.init_pool`) that is empty at first, into which
        each text goes as it ends, and from which all others draft. None: no pool.
      pool_responses_only: prompts stay out of the pool.
      max_nodes: drafts trees of at most so many nodes. None: chains.
      on_progress: called with the number of traces that ended since the last call.
      **options: of `jax_sa.lookup`. `max_draft` is 16 where it is not given.

    Returns:
      The results in the order of the traces.

    Raises:
      ValueError, TypeError: there are no traces, or an option is not what `jax_sa.lookup` or
        `jax_sa.init_pool` takes.
    """
    if not traces:
        raise ValueError("traces: expected at least one, got none")
    num_slots = min(check_int("num_slots", num_slots, 1), len(traces))
    capacity = max(len(trace.tokens) for trace in traces)
    options = DraftOptions(**options).lookup_options()
    options["max_draft"] = int(options["max_draft"])  # sums with a NumPy integer may overflow
    if max_nodes is not None:
        check_lookup_tree(max_nodes, **options)
        options["max_nodes"] = int(max_nodes)
    pool = None if pool_capacity is None else init_pool(pool_capacity)
    width = capacity + 1 + options["max_draft"]
    work = _Work(
        state=init(num_slots, capacity, index=index),
        texts=jnp.zeros((num_slots, width), jnp.int32),
        lengths=jnp.zeros(num_slots, jnp.int32),
        prompt_lengths=jnp.zeros(num_slots, jnp.int32),
        counts=jnp.zeros((num_slots, len(SOURCES), 3), jnp.int32),
    )
    replayed: list[Replayed | None] = [None] * len(traces)
    begun = dict[int, int]()  # the trace in each slot
    waiting = iter(range(len(traces)))
    free = list(range(num_slots))
    while True:
        for slot, i in zip(free, waiting, strict=False):
            text = np.zeros(width, np.int32)
            text[: len(traces[i].tokens)] = traces[i].tokens
            numbers = np.int32([slot, len(traces[i].tokens), traces[i].prompt_length])
            work = _begin(work, numbers[0], text, *numbers[1:])
            begun[slot] = i
        if not begun:
            return replayed
        work = _run(work, pool, tuple(options.items()))
        free = [int(slot) for slot in np.flatnonzero(work.ended())]
        counts = np.asarray(work.counts)
        for slot in free:
            i = begun.pop(slot)
            replayed[i] = _replayed(traces[i], counts[slot])
        work, pool = _end(work, pool, bool(pool_responses_only))
        on_progress(len(free))


def _replayed(trace: Trace, counts: np.ndarray) -> Replayed:
    sources = {
        source.name.lower(): Counts(*map(int, own))
        for source, own in zip(SOURCES, counts, strict=True)
    }
    return Replayed(*map(int, counts.sum(axis=0)), trace, sources)


def summarize(replayed: Sequence[Replayed]) -> list[dict[str, Any]]:
    """The figures of each category and, where there are several, of all together, as rows."""
    by_category: dict[str, list[Replayed]] = {}
    for result in replayed:
        by_category.setdefault(result.trace.category, []).append(result)
    rows = sorted(by_category.items())
    if len(rows) > 1:
        rows.append(("all", list(replayed)))
    return [_summary(category, results) for category, results in rows]


def _summary(category: str, results: Sequence[Replayed]) -> dict[str, Any]:
    steps = sum(result.steps for result in results)
    drafted = sum(result.drafted for result in results)
    accepted = sum(result.accepted for result in results)
    return {
        "category": category,
        "responses": len(results),
        "tokens": sum(result.trace.response_length for result in results),
        "steps": steps,
        "tokens_per_step": (accepted + steps) / max(steps, 1),
        "drafted_per_step": drafted / max(steps, 1),
        "accepted_per_step": accepted / max(steps, 1),
    }
