"""Replays recorded texts as if a model produced them, to count the steps that drafts save."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_int
from jax_sa._options import DraftOptions
from jax_sa.automaton import extend, lookup, reset
from jax_sa.state import AnyState, init
from jax_sa.traces import Trace
from jax_sa.verify import accept_greedy


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The result of one trace. A step emits its accepted tokens and one more."""

    trace: Trace
    """The text that was replayed."""
    steps: int
    """Decoding steps until the whole response was there."""
    drafted: int
    """Draft tokens, summed over the steps."""
    accepted: int
    """Draft tokens that the recorded response confirms, summed over the steps."""


@functools.partial(jax.jit, donate_argnames="state", static_argnames="options")
def _replay_batch(
    state: AnyState,
    texts: jax.Array,
    text_lengths: jax.Array,
    prompt_lengths: jax.Array,
    options: tuple[tuple[str, Any], ...],
) -> tuple[AnyState, jax.Array, jax.Array, jax.Array]:
    """Prefills, then drafts, accepts and extends until every slot has its whole text.

    Args:
      state: S empty slots.
      texts: int32[S, N + 1 + K], of which the first N hold texts.
      text_lengths: int32[S] tokens of the texts.
      prompt_lengths: int32[S] tokens of their prompts.
      options: of `lookup`; `max_draft` is K.

    Returns:
      The state, and steps, drafted and accepted, int32[S] each.
    """
    max_draft = dict(options)["max_draft"]
    state = extend(state, texts, prompt_lengths)
    ahead = jnp.arange(1 + max_draft, dtype=jnp.int32)
    none = jnp.zeros_like(text_lengths)

    def unfinished(carry):
        state, *_ = carry
        return jnp.any(state.length < text_lengths)

    def step(carry):
        state, steps, drafted, accepted = carry
        left = text_lengths - state.length
        active = (left > 0).astype(jnp.int32)
        draft = lookup(state, **dict(options))
        recorded = jnp.take_along_axis(texts, state.length[:, None] + ahead[None], axis=1)
        confirmed = jnp.minimum(accept_greedy(draft, recorded).length - 1, left)
        state = extend(state, recorded, jnp.minimum(confirmed + 1, left))
        return (
            state,
            steps + active,
            drafted + active * draft.length,
            accepted + active * confirmed,
        )

    return jax.lax.while_loop(unfinished, step, (state, none, none, none))


def replay_traces(
    traces: Sequence[Trace],
    *,
    num_slots: int = 8,
    index: str = "automaton",
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Replayed]:
    """Replays traces, `num_slots` at a time, each batch in one jitted `lax.while_loop`.

    Args:
      traces: at least one.
      num_slots: traces side by side.
      index: what finds matches, as in `jax_sa.init`.
      on_progress: called after each batch with the number of its traces.
      **options: of `jax_sa.lookup`. `max_draft` is 16 where it is not given.

    Returns:
      The results in the order of the traces.

    Raises:
      ValueError, TypeError: there are no traces, or an option is not what `jax_sa.lookup` takes.
    """
    if not traces:
        raise ValueError("traces: expected at least one, got none")
    num_slots = min(check_int("num_slots", num_slots, 1), len(traces))
    capacity = max(len(trace.tokens) for trace in traces)
    options = DraftOptions(**options).lookup_options()
    options["max_draft"] = int(options["max_draft"])  # sums with a NumPy integer may overflow
    state = init(num_slots, capacity, index=index)
    every_slot = jnp.arange(num_slots, dtype=jnp.int32)
    replayed: dict[int, Replayed] = {}
    # Texts of like length side by side: a batch takes as long as its longest.
    order = sorted(range(len(traces)), key=lambda i: traces[i].response_length)
    for begin in range(0, len(order), num_slots):
        batch = order[begin : begin + num_slots]
        texts = np.zeros((num_slots, capacity + 1 + options["max_draft"]), np.int32)
        text_lengths, prompt_lengths = np.zeros((2, num_slots), np.int32)
        for slot, i in enumerate(batch):
            texts[slot, : len(traces[i].tokens)] = traces[i].tokens
            text_lengths[slot] = len(traces[i].tokens)
            prompt_lengths[slot] = traces[i].prompt_length
        state, *counts = _replay_batch(
            state, texts, text_lengths, prompt_lengths, tuple(options.items())
        )
        for i, steps, drafted, accepted in zip(batch, *map(np.asarray, counts), strict=False):
            replayed[i] = Replayed(traces[i], int(steps), int(drafted), int(accepted))
        state = _reset(state, every_slot)
        on_progress(len(batch))
    return [replayed[i] for i in range(len(traces))]


_reset = jax.jit(reset, donate_argnames="state")


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
