"""Speculative decoding of a Llama-family model: plain, with its MTP module, with suffix automata.

Prints what the model writes, drafted tokens that it confirmed highlighted; or, with --compare, how
the four ways of drafting (none, MTP, SA, SA+MTP) do on the same prompts, and whether they wrote
the same. Needs `pip install jax_sa[tokenizer]`:

    python examples/run_sa_spec.py --compare
    python examples/run_sa_spec.py --use_sa_spec --prompt "import numpy as np"

and a real LLM, which `examples/import_gguf.py` makes a checkpoint of:

    python examples/run_sa_spec.py --model smollm2 --chat --use_sa_spec
"""

import argparse
import json
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import comparison
import jax
import live_text
from engine import DTYPES, Engine, Mode

import jax_sa

HERE = pathlib.Path(__file__).parent
INT32_MAX = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as a ValueError."""

    def error(self, message: str) -> NoReturn:
        """Raises the message, which argparse would print below the usage."""
        raise ValueError(message)


def integer(low: int) -> Callable[[str], int]:
    """The type of an option that is an int of `low` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= INT32_MAX:
            raise argparse.ArgumentTypeError(f"expected an int of {low} or more, got {text!r}")
        return value

    return parse


def number(expected: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """The type of an option that is a float for which `is_valid` holds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def make_parser() -> argparse.ArgumentParser:
    """The options of the command. Those of drafting default to the library's own."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    path = pathlib.Path
    add(
        "--model",
        type=path,
        default=HERE / "checkpoint",
        metavar="DIR",
        help="checkpoint directory (default: the bundled one)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=nonempty, metavar="TEXT", help="one prompt")
    prompts.add_argument(
        "--prompts",
        type=path,
        metavar="FILE",
        help="prompts, one JSON object a line (default: the bundled prompts/mixed.jsonl, "
        "with --chat instruct.jsonl)",
    )
    add("--chat", action="store_true", help="ask each prompt in the checkpoint's chat template")
    add("--compare", action="store_true", help="all four ways of drafting, as tables")
    add("--use_sa_spec", action="store_true", help="draft from suffix automata")
    add(
        "--num_nextn_predict_layers",
        type=integer(0),
        metavar="N",
        help="tokens that the MTP module drafts (default: as many as the checkpoint has modules)",
    )
    add(
        "--sa_spec_threshold",
        type=integer(1),
        default=jax_sa.Decoder.threshold,
        metavar="N",
        help="the automaton's draft is used where its match length + the length of the common "
        "prefix of both drafts >= N, else the MTP module's; an N that nothing reaches gives "
        "exactly the module's drafts (default: %(default)s)",
    )
    add(
        "--sa_spec_follow",
        action="store_true",
        help="go on behind the MTP module's draft with what the automaton says follows it",
    )
    add(
        "--max_draft",
        type=integer(1),
        default=jax_sa.Decoder.max_draft,
        metavar="N",
        help="tokens that an automaton drafts at most (default: %(default)s)",
    )
    add(
        "--draft_factor",
        type=number("a finite number above 0", lambda value: 0 < value < float("inf")),
        default=jax_sa.Decoder.draft_factor,
        metavar="F",
        help="tokens that it drafts at most per token of the match "
        f"(default: {jax_sa.Decoder.draft_factor or 'no limit'})",
    )
    add(
        "--min_match",
        type=integer(1),
        default=jax_sa.Decoder.min_match,
        metavar="N",
        help="match length below which it drafts nothing (default: %(default)s)",
    )
    add(
        "--pool",
        type=path,
        metavar="FILE",
        help="draft from the texts of this pool too, which `python -m jax_sa pool build` made with "
        "the checkpoint's tokenizer.json",
    )
    add(
        "--max_new_tokens",
        type=integer(1),
        default=256,
        metavar="N",
        help="per prompt (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=integer(1),
        default=1,
        metavar="N",
        help="prompts at a time (default: %(default)s)",
    )
    add(
        "--tp_size",
        type=integer(1),
        default=1,
        metavar="N",
        help="devices that share the model; key/value heads are replicated where there are fewer "
        "(default: %(default)s)",
    )
    add(
        "--temperature",
        type=number("a finite number of 0 or more", lambda value: 0 <= value < float("inf")),
        default=0.0,
        metavar="T",
        help="0 is greedy (default: %(default)s)",
    )
    add("--top_k", type=integer(1), metavar="N", help="sample of the N likeliest tokens")
    add(
        "--top_p",
        type=number("a number above 0, at most 1", lambda value: 0 < value <= 1),
        metavar="P",
        help="sample of the likeliest tokens that make up a probability of P",
    )
    add(
        "--seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="of sampling (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of weights and cache (default: %(default)s)",
    )
    add("--json", action="store_true", help="the figures and all that was written, as JSON")
    return parser


def nonempty(text: str) -> str:
    """The type of an option that is a text."""
    if not text:
        raise argparse.ArgumentTypeError("expected a text, got ''")
    return text


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line, and in `given` the options that it names; ValueError for a bad one."""
    parser = make_parser()
    defaults = vars(parser.parse_args([]))
    # An option that is there already gets no default.
    named = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults))))
    given = {name: value for name, value in named.items() if value is not None}
    args = argparse.Namespace(**defaults | given, given=frozenset(given))
    if args.prompts is None:
        args.prompts = HERE / "prompts" / ("instruct.jsonl" if args.chat else "mixed.jsonl")
    return args


def choose_modes(engine: Engine) -> list[Mode]:
    """The ways of drafting that the command line asks for, and the checkpoint allows."""
    args = engine.args
    mtp_tokens = args.num_nextn_predict_layers
    if mtp_tokens is None:
        mtp_tokens = engine.config.num_mtp
    elif mtp_tokens and not engine.config.num_mtp:
        if not args.compare:
            raise ValueError("--num_nextn_predict_layers: the checkpoint has no MTP module")
        note("the checkpoint has no MTP module: comparing without")
        mtp_tokens = 0
    if not args.compare:
        return [Mode(args.use_sa_spec, mtp_tokens)]
    widths = sorted({0, mtp_tokens})
    return [Mode(use_sa, width) for use_sa in (False, True) for width in widths]


def note_options_without_effect(args: argparse.Namespace, modes: list[Mode]) -> None:
    """Says on stderr which of the options given change nothing, and why."""
    sa = any(mode.use_sa for mode in modes)
    both = any(mode.use_sa and mode.mtp_tokens for mode in modes)
    reasons = {
        "without --use_sa_spec": (not sa, ["max_draft", "draft_factor", "min_match", "pool"]),
        "without drafts of both automaton and MTP module": (
            not both,
            ["sa_spec_threshold", "sa_spec_follow"],
        ),
        "at temperature 0": (args.temperature == 0, ["top_k", "top_p", "seed"]),
        "with --compare, which runs both": (args.compare, ["use_sa_spec"]),
    }
    for reason, (applies, names) in reasons.items():
        unused = [f"--{name}" for name in names if applies and name in args.given]
        if unused:
            note(f"{', '.join(unused)}: no effect {reason}")


def note(message: str) -> None:
    """Says something to people, on stderr."""
    columns = shutil.get_terminal_size().columns
    lines = textwrap.wrap(message, columns, break_long_words=False, break_on_hyphens=False)
    print("\n".join(lines), file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Does what the command line says; the report, if there is one."""
    engine = Engine(args)
    modes = choose_modes(engine)
    note_options_without_effect(args, modes)
    if not args.compare and not args.json:
        live_text.show(engine, modes[0])
        return None
    report = comparison.measure(engine, modes)
    print(json.dumps(report) if args.json else comparison.format_report(report))
    return report


def main(argv: list[str] | None = None) -> int:
    """Runs the command; bad input is one line and status 2."""
    try:
        # In float32, a GPU would otherwise round products to fewer bits, and by the block's width.
        with jax.default_matmul_precision("highest"):
            run(parse_args(argv))
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
