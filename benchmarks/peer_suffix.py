"""Compares drafts with those of arctic-inference's suffix decoding, on the same recorded texts.

    pip install --no-deps arctic-inference==0.3.0
    python benchmarks/peer_suffix.py traces.npz

Both replay the texts in the file's order, one after the other, and keep what has ended to draft
from: `jax_sa` in a pool of prompts and responses, arctic-inference in its tree of responses. Both
are given the same limits, so the rows to compare are those with about as many drafted tokens. The
second table has the time of a step on a CPU: one token appended to each text, and the next draft.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import add_json, positive, report

import jax_sa
from jax_sa import traces as traces_module
from jax_sa.cli.progress import ProgressBar
from jax_sa.replay import replay_traces, summarize
from jax_sa.traces import Trace

POOL = 2**20
"""Tokens of the pool."""

MAX_DEPTH = 64
"""Tokens of a context that arctic-inference matches, its default."""

MIN_PROBABILITY = 0.1
"""The least estimated probability of a token that arctic-inference drafts, its default."""


def replay_peer(cache: Any, traces: Sequence[Trace], max_draft: int, factor: float) -> list[int]:
    """Tokens, steps, drafted and accepted tokens of all texts."""
    totals = np.zeros(4, np.int64)
    for number, trace in enumerate(traces):
        text, at = trace.tokens, trace.prompt_length
        cache.start_request(number, text[:at])
        while at < len(text):
            draft = cache.speculate(
                number,
                text[max(at - MAX_DEPTH, 0) : at],
                max_spec_tokens=max_draft,
                max_spec_factor=factor,
                min_token_prob=MIN_PROBABILITY,
            ).token_ids
            ahead = text[at : at + len(draft)]
            same = np.asarray(draft[: len(ahead)], np.int64) == ahead
            accepted = len(same) if same.all() else int(np.argmin(same))
            step = text[at : at + accepted + 1]
            cache.add_active_response(number, step)
            at += len(step)
            totals += (len(step), 1, len(draft), accepted)
        cache.stop_request(number)
    return totals.tolist()


def quality(traces: Sequence[Trace], args: argparse.Namespace, new_cache: Any) -> Iterable[dict]:
    """Tokens per step of both, for each draft factor."""
    for factor in args.factors:
        tokens, steps, drafted, _ = replay_peer(new_cache(), traces, args.max_draft, factor)
        yield _row("arctic-inference", factor, tokens / steps, drafted / steps)
        replayed = replay_traces(
            traces,
            num_slots=1,
            max_draft=args.max_draft,
            draft_factor=factor,
            pool_capacity=POOL,
        )
        total = summarize(replayed)[-1]
        yield _row("jax_sa", factor, total["tokens_per_step"], total["drafted_per_step"])


def _row(who: str, factor: float, tokens: float, drafted: float) -> dict[str, Any]:
    return {"drafts of": who, "factor": factor, "tokens/step": tokens, "drafted/step": drafted}


def speed(traces: Sequence[Trace], args: argparse.Namespace, new_cache: Any) -> Iterable[dict]:
    """Microseconds of a step of both, for each number of texts side by side."""
    kept, live = traces[: len(traces) // 2], traces[len(traces) // 2 :]
    for slots in args.slots:
        texts = [live[i % len(live)] for i in range(slots)]
        for who, seconds in (
            ("arctic-inference", _time_peer(new_cache(), kept, texts, args)),
            ("jax_sa", _time_own(kept, texts, args)),
        ):
            micros = sorted(1e6 * np.asarray(seconds))
            yield {
                "slots": slots,
                "drafts of": who,
                "p50 us": statistics.median(micros),
                "p99 us": micros[int(0.99 * len(micros))],
                "max us": micros[-1],
            }


def _time_peer(
    cache: Any, kept: Sequence[Trace], texts: Sequence[Trace], args: argparse.Namespace
) -> list[float]:
    for number, trace in enumerate(kept):
        cache.start_request(-1 - number, trace.tokens[: trace.prompt_length])
        cache.add_active_response(-1 - number, trace.tokens[trace.prompt_length :])
        cache.stop_request(-1 - number)
    for number, trace in enumerate(texts):
        cache.start_request(number, trace.tokens[: trace.prompt_length])
    seconds = []
    for step in range(args.steps):
        begun = time.perf_counter()
        for number, trace in enumerate(texts):
            end = trace.prompt_length + 1 + step % trace.response_length
            cache.add_active_response(number, trace.tokens[end - 1 : end])
            cache.speculate(
                number,
                trace.tokens[max(end - MAX_DEPTH, 0) : end],
                max_spec_tokens=args.draft,
                min_token_prob=MIN_PROBABILITY,
            )
        seconds.append(time.perf_counter() - begun)
    return seconds


def _time_own(
    kept: Sequence[Trace], texts: Sequence[Trace], args: argparse.Namespace
) -> list[float]:
    pool = jax_sa.insert(jax_sa.init_pool(POOL), *_pad([trace.tokens for trace in kept]))
    prompts, lengths = _pad([trace.tokens[: trace.prompt_length] for trace in texts])
    state = jax_sa.init(len(texts), prompts.shape[1] + args.steps)
    state = jax_sa.extend(state, prompts, lengths)
    ends = [[t.prompt_length + s % t.response_length for t in texts] for s in range(args.steps)]
    tokens = [
        jnp.asarray([[t.tokens[end]] for t, end in zip(texts, of_step, strict=True)], jnp.int32)
        for of_step in ends
    ]
    one = jnp.ones(len(texts), jnp.int32)
    step = jax.jit(
        functools.partial(jax_sa.extend_lookup, max_draft=args.draft), donate_argnames="state"
    )
    seconds = []
    for token in tokens:
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, token, one, pool=pool))
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]  # the first compiles


def _pad(texts: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """Texts as rows of the longest one's width, and their lengths."""
    rows = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    return jnp.asarray(rows), jnp.asarray([len(text) for text in texts], jnp.int32)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("traces", nargs="?", type=pathlib.Path, help="as `python -m jax_sa replay` reads them")
    add("--factors", type=float, nargs="+", default=[1.0, 2.0, 4.0], metavar="F")
    add("--max-draft", type=positive, default=32, metavar="K", help="of the replays")
    add("--slots", type=positive, nargs="*", default=[1, 8, 64], help="of the timed steps")
    add("--draft", type=positive, default=16, metavar="K", help="tokens of a timed draft")
    add("--steps", type=positive, default=300, help="timed steps")
    add_json(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; bad input is one line and status 2."""
    args = parse_args(argv)
    try:
        from arctic_inference.suffix_decoding import SuffixDecodingCache
    except ImportError as error:
        print(f"error: {error}; pip install --no-deps arctic-inference", file=sys.stderr)
        return 2
    try:
        traces = (
            traces_module.load(args.traces) if args.traces else traces_module.standard_library()
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    new_cache = functools.partial(SuffixDecodingCache, max_tree_depth=MAX_DEPTH)
    bar = ProgressBar(2 * (len(args.factors) + len(args.slots)), "cases")
    tables: list[list[dict[str, Any]]] = []
    for rows in (quality(traces, args, new_cache), speed(traces, args, new_cache)):
        tables.append([])
        for row in rows:
            tables[-1].append(row)
            bar.advance(1)
    report(tables[0], None)
    if tables[1]:
        print()
        report(tables[1], None)
    if args.json:
        report(tables[0] + tables[1], args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
