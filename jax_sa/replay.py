"""Replays recorded texts as if a model produced them: how many steps would drafts have saved?"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa import traces as traces_module
from jax_sa._checks import check_int
from jax_sa.automaton import extend, lookup, reset
from jax_sa.cli.progress import ProgressBar
from jax_sa.cli.table import format_table
from jax_sa.state import State, init
from jax_sa.traces import Trace
from jax_sa.verify import accept_greedy


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What became of one trace. A step emits its accepted tokens and one more."""

    trace: Trace
    steps: int
    drafted: int
    """Draft tokens, summed over the steps."""
    accepted: int
    """Those of them that the recorded response confirms."""


@functools.partial(jax.jit, donate_argnames="state", static_argnames="options")
def _replay_batch(
    state: State,
    texts: jax.Array,
    text_lengths: jax.Array,
    prompt_lengths: jax.Array,
    options: tuple[tuple[str, Any], ...],
) -> tuple[State, jax.Array, jax.Array, jax.Array]:
    """Prefill, then draft, accept and extend until every slot has its whole text.

    texts: int32[S, N + K], of which text_lengths int32[S] are recorded and prompt_lengths int32[S]
    of those are the prompt. Returns the state, and steps, drafted and accepted int32[S].
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


def replay(
    traces: Sequence[Trace],
    *,
    num_slots: int = 8,
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Replayed]:
    """Replays traces, `num_slots` at a time, each batch in one jitted `lax.while_loop`.

    Args:
      traces: at least one.
      num_slots: traces side by side.
      on_progress: called with the number of traces that were done after each batch.
      **options: as `jax_sa.lookup` takes them, `max_draft` among them.

    Raises:
      ValueError, TypeError: an option is not what `jax_sa.lookup` takes.
    """
    num_slots = min(check_int("num_slots", num_slots, 1), len(traces))
    capacity = max(len(trace.tokens) for trace in traces)
    state = init(num_slots, capacity)
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
    """One row per category and, where there are several, one for all."""
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


def add_parser(subparsers: Any) -> None:
    """Adds `replay` to the command line."""
    parser = subparsers.add_parser(
        "replay",
        help="replay recorded texts: tokens per step with drafts from the automaton",
        description="Replays recorded texts as if a model produced them, in one jitted loop: the "
        "prompt is prefilled, then each step drafts, accepts what the recorded response confirms, "
        "and extends. Prints tokens per step by category.",
    )
    parser.add_argument(
        "traces",
        nargs="?",
        type=pathlib.Path,
        metavar="TRACES",
        help=".npz (tokens, offsets, prompt_lengths; optional category, id) or .jsonl (prompt and "
        "response, as token ids or text); default: the running Python's own source, as bytes",
    )
    parser.add_argument("--max-draft", type=int, default=8, metavar="K", help="default: 8")
    parser.add_argument("--min-match", type=int, default=1, metavar="L", help="default: 1")
    parser.add_argument("--max-match", type=int, metavar="L", help="default: no limit")
    parser.add_argument("--occurrence", choices=("recent", "first"), default="recent")
    parser.add_argument(
        "--draft-factor", type=float, metavar="F", help="draft at most F * match length tokens"
    )
    parser.add_argument(
        "--no-periodic", action="store_true", help="stop a draft at the end of the text"
    )
    parser.add_argument("--slots", type=int, default=8, metavar="S", help="texts side by side")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N texts")
    parser.add_argument(
        "--tokenizer",
        type=pathlib.Path,
        metavar="FILE",
        help="a Hugging Face tokenizer.json for text in .jsonl; default: its bytes",
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `replay`; ValueError or TypeError for bad input."""
    check_int("--slots", args.slots, 1)
    if args.limit is not None:
        check_int("--limit", args.limit, 1)
    options = {
        "max_draft": args.max_draft,
        "min_match": args.min_match,
        "max_match": args.max_match,
        "occurrence": args.occurrence,
        "draft_factor": args.draft_factor,
        "periodic": not args.no_periodic,
    }
    traces = _load_traces(args.traces, args.tokenizer)[: args.limit]
    bar = ProgressBar(len(traces), "texts")
    results = replay(traces, num_slots=args.slots, on_progress=bar.advance, **options)
    rows = summarize(results)
    print(
        format_table(
            [name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows]
        )
    )
    if args.json is not None:
        _write_json(args.json, options, results, rows)
    return 0


def _load_traces(path: pathlib.Path | None, tokenizer: pathlib.Path | None) -> list[Trace]:
    if path is None:
        if tokenizer is not None:
            raise ValueError("--tokenizer: expected TRACES with text to encode, got none")
        return traces_module.standard_library()
    return traces_module.load(path, None if tokenizer is None else _encoder(tokenizer))


def _encoder(path: pathlib.Path) -> Callable[[str], list[int]]:
    try:
        import tokenizers
    except ImportError:
        raise ValueError("--tokenizer: needs the package tokenizers (extra `tokenizer`)") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"--tokenizer: {path}: {error}") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _write_json(
    path: pathlib.Path,
    options: dict[str, Any],
    results: Sequence[Replayed],
    rows: Sequence[dict[str, Any]],
) -> None:
    report = {
        "options": options,
        "categories": rows,
        "traces": [
            {
                "id": result.trace.id,
                "category": result.trace.category,
                "steps": result.steps,
                "drafted": result.drafted,
                "accepted": result.accepted,
            }
            for result in results
        ],
    }
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"--json: {path}: cannot be written: {error.strerror}") from None
