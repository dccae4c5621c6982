"""The command `replay`: tokens per step that drafts would have made, as a table and JSON."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jax_sa import traces as traces_module
from jax_sa._checks import check_int
from jax_sa.cli.devices import start_jax
from jax_sa.cli.encoder import load_encoder
from jax_sa.cli.output import json_file, printable, show
from jax_sa.cli.progress import ProgressBar
from jax_sa.cli.table import format_table
from jax_sa.draft_tree import MAX_NODES
from jax_sa.pool import get_pool_size
from jax_sa.replay import Replayed, replay_traces, summarize
from jax_sa.state import INDEXES
from jax_sa.traces import Trace

COLUMNS = {
    "category": "category",
    "responses": "responses",
    "tokens": "tokens",
    "steps": "steps",
    "tokens/step": "tokens_per_step",
    "drafted/step": "drafted_per_step",
}
"""The columns of the table, by title. A step accepts one token less than it makes."""

MAX_CATEGORY = 20
"""Longer names of categories are cut in the table; JSON has them in full."""


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
    parser.add_argument(
        "--max-draft", type=int, default=8, metavar="K", help="the most tokens to draft (8)"
    )
    parser.add_argument(
        "--min-match", type=int, default=1, metavar="L", help="shorter matches draft nothing (1)"
    )
    parser.add_argument(
        "--max-match", type=int, metavar="L", help="longer matches count as this long (no limit)"
    )
    parser.add_argument(
        "--occurrence",
        choices=("recent", "first"),
        default="recent",
        help="the earlier occurrence that drafts follow (recent)",
    )
    parser.add_argument(
        "--draft-factor",
        type=float,
        metavar="F",
        help="draft at most F * match length tokens (no limit)",
    )
    parser.add_argument(
        "--no-periodic", action="store_true", help="stop a draft at the end of the text"
    )
    parser.add_argument(
        "--index",
        choices=INDEXES,
        default="automaton",
        help="what finds matches: an automaton, a scan of the text, or what suits (automaton)",
    )
    parser.add_argument(
        "--slots",
        type=int,
        default=8,
        metavar="S",
        help="texts side by side (8); the next begins where one ends",
    )
    parser.add_argument(
        "--pool",
        type=int,
        metavar="C",
        help="put each text into a pool of C tokens as it ends, for the others to draft from; with "
        "--draft-factor F, these draft at most F / 2 * match length tokens",
    )
    parser.add_argument(
        "--pool-responses-only", action="store_true", help="keep prompts out of the pool"
    )
    parser.add_argument(
        "--tree",
        type=int,
        metavar="N",
        help="draft trees that fill N nodes, with at most F of --draft-factor",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N texts")
    parser.add_argument(
        "--tokenizer",
        type=pathlib.Path,
        metavar="FILE",
        help="a Hugging Face tokenizer.json for text in .jsonl; default: its bytes",
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="also write the results here"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `replay`; ValueError or TypeError for bad input."""
    num_slots = check_int("--slots", args.slots, 1)
    limit = None if args.limit is None else check_int("--limit", args.limit, 1)
    if args.pool_responses_only and args.pool is None:
        raise ValueError("--pool-responses-only: expected --pool, got none")
    pool = {} if args.pool is None else {"pool_capacity": _pool_capacity(args.pool)}
    tree = {} if args.tree is None else {"max_nodes": check_int("--tree", args.tree, 1, MAX_NODES)}
    options = {
        "max_draft": args.max_draft,
        "min_match": args.min_match,
        "max_match": args.max_match,
        "occurrence": args.occurrence,
        "draft_factor": args.draft_factor,
        "periodic": not args.no_periodic,
        **pool,
        **tree,
        **({"pool_responses_only": True} if args.pool_responses_only else {}),
    }
    with json_file("--json", args.json) as write_json:
        traces = _load_traces(args.traces, args.tokenizer)[:limit]
        start_jax()
        bar = ProgressBar(len(traces), "texts")
        results = replay_traces(
            traces, num_slots=num_slots, index=args.index, on_progress=bar.advance, **options
        )
        rows = summarize(results)
        write_json(_as_json(options | {"index": args.index}, results, rows))
    show(format_table(list(COLUMNS), [_cells(row) for row in rows]))
    return 0


def _cells(row: dict[str, Any]) -> list[object]:
    """A row of the table, which fits 80 columns."""
    category, *others = (row[key] for key in COLUMNS.values())
    category = printable(category)
    if len(category) > MAX_CATEGORY:
        category = category[: MAX_CATEGORY - 3] + "..."
    return [category, *others]


def _pool_capacity(capacity: int) -> int:
    try:
        get_pool_size(capacity)
    except ValueError as error:
        raise ValueError(f"--pool: {error}") from None
    return capacity


def _load_traces(path: pathlib.Path | None, tokenizer: pathlib.Path | None) -> list[Trace]:
    if path is None:
        if tokenizer is not None:
            raise ValueError("--tokenizer: expected TRACES with text to encode, got none")
        return traces_module.standard_library()
    return traces_module.load(path, load_encoder("--tokenizer", tokenizer))


def _as_json(
    options: dict[str, Any], results: Sequence[Replayed], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "options": options,
        "categories": rows,
        "traces": [
            {
                "id": result.trace.id,
                "category": result.trace.category,
                "steps": result.steps,
                "drafted": result.drafted,
                "accepted": result.accepted,
                "source": {
                    name: dataclasses.asdict(counts) for name, counts in result.sources.items()
                },
            }
            for result in results
        ],
    }
