"""Measures tokens per second of a real model with drafts, against the same program without.

    python benchmarks/real_model.py --model smollm2 --chat --batch_sizes 1 8 32 128

All prompts go through the rows of a packed decoder (`jax_sa.PackedDecoder`), refilled as they end,
over a paged cache. Without drafts it is the same program without automata. Each figure is the
median of several runs, with the least and the most beside it. Sampled answers are drawn with
another key in each run. Needs `pip install
jax_sa[tokenizer,chat]`, and a checkpoint folder such as `examples/import_gguf.py` writes.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from typing import Any, NamedTuple

import chat_model
import jax
import jax.numpy as jnp
import numpy as np
from prompt_file import pad
from report import add_json, positive, report

import jax_sa
from jax_sa.calibration import CALIBRATION_TOKENS
from jax_sa.cli.progress import ProgressBar
from jax_sa.llama import paged

RANDOM_TEMPERATURE = 3.0
"""At which a model writes tokens that hardly any draft foretells."""


class Setting(NamedTuple):
    """One line of the table, with and without drafts."""

    batch: int
    text: str
    """The name of the kind of text: greedy, a temperature, or random."""
    temperature: float
    prompts: list[list[int]]


class Run(NamedTuple):
    """What one run did."""

    seconds: float
    tokens: int
    steps: int
    """Of all rows together."""
    drafted: int
    calls: int
    """Of the model."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Measured(NamedTuple):
    """One program's runs."""

    runs: list[Run]
    compile_seconds: float
    tokens: jax.Array
    """The answers of the last run."""
    costs: jax.Array

    def rates(self) -> list[float]:
        """Tokens per second of each run."""
        return [run.rate for run in self.runs]

    def per(self, numerator: str, denominator: str) -> float:
        """The ratio of two sums over all runs."""
        sums = [sum(getattr(run, name) for run in self.runs) for name in (numerator, denominator)]
        return sums[0] / max(sums[1], 1)


class Bench:
    """A checkpoint and the options of the command."""

    def __init__(self, args: argparse.Namespace):
        """Loads the checkpoint and reads the prompts."""
        self.args, self.chat = args, chat_model.load(args)
        self.config, self.params, self.prompts, _ = self.chat
        model = functools.partial(paged.apply_packed, self.config)
        stops = () if args.ignore_eos else self.config.eos_tokens
        options = {"stop_tokens": stops, "max_draft": args.max_draft}
        self.plain = jax_sa.PackedDecoder(model, **options)
        self.decoder = jax_sa.PackedDecoder(model, tree_nodes=args.tree_nodes, **options)

    def settings(self) -> list[Setting]:
        """Every batch size with every kind of text."""
        random = np.random.default_rng(0)
        noise = [random.integers(0, self.config.vocab_size, len(p)).tolist() for p in self.prompts]
        made = []
        for batch in self.args.batch_sizes:
            kinds = [
                ("greedy" if t == 0 else f"T={t:g}", t, self.prompts)
                for t in self.args.temperatures
            ]
            if self.args.random:
                kinds.append(("random", RANDOM_TEMPERATURE, noise))
            # Enough prompts for every row to be refilled a few times.
            repeats = -(-self.args.refills * batch // len(self.prompts))
            made += [
                Setting(batch, name, t, prompts * max(repeats, 1)) for name, t, prompts in kinds
            ]
        return made

    def measure(self, setting: Setting, drafts: bool) -> Measured:
        """Compiles, measures the costs of steps, and runs."""
        rows, new = setting.batch, self.args.max_new_tokens
        prompts, lengths = pad(setting.prompts)
        size = prompts.shape[1] + new
        cache = self.chat.init_cache(rows, size)
        decoder = self.decoder if drafts else self.plain
        state = jax_sa.init(rows, size) if drafts else None
        pool = jax_sa.init_pool(self.args.pool) if drafts and self.args.pool else None
        options: dict[str, Any] = {"rows": rows, "max_new_tokens": new}
        followers = drafts and self.args.followers
        begun = time.perf_counter()
        costs, cache, state = decoder.calibrate(
            *(self.params, prompts, lengths, cache),
            state=state,
            pool=pool,
            followers=self.unknown() if followers else None,
            sampling=sampling(setting, 0),
            **options,
        )
        compile_seconds = time.perf_counter() - begun
        runs = []
        for number in range(self.args.runs):
            unknown = self.unknown() if followers else None  # what a run learns, it forgets
            drawn = sampling(setting, number)
            begun = time.perf_counter()
            done = decoder.generate(
                *(self.params, prompts, lengths, cache),
                state=state,
                pool=pool,
                followers=unknown,
                costs=costs,
                sampling=drawn,
                **options,
            )
            jax.block_until_ready(done.lengths)
            seconds = time.perf_counter() - begun
            counts = (int(n.sum()) for n in (done.lengths, done.steps, done.drafted, done.calls))
            runs.append(Run(seconds, *counts))
            cache, state, pool = done.cache, done.state, done.pool
        return Measured(runs, compile_seconds, done.tokens, costs)

    def unknown(self) -> jax_sa.Followers:
        """Followers of which none is known."""
        return jax_sa.init_followers(self.config.vocab_size)


def sampling(setting: Setting, number: int) -> jax_sa.Sampling | None:
    """How the tokens of a run are drawn: the same with drafts and without, another one each run."""
    if setting.temperature == 0:
        return None
    return jax_sa.Sampling(jax.random.key(number), setting.temperature)


def compare(setting: Setting, none: Measured, sa: Measured) -> dict[str, Any]:
    """One row of the table."""
    base = statistics.median(none.rates())
    speeds = sorted(rate / base for rate in sa.rates())
    spread = sorted(rate / base for rate in none.rates())
    same = jnp.all(sa.tokens == none.tokens, axis=1)
    return {
        "batch": setting.batch,
        "text": setting.text,
        "prompts": len(setting.prompts),
        "none tok/s": round(base),
        "none spread": f"{spread[0]:.2f}-{spread[-1]:.2f}",
        "SA tok/s": round(statistics.median(sa.rates())),
        "first": f"{sa.runs[0].rate / base:.2f}x",
        "speed": f"{statistics.median(speeds):.2f}x",
        "spread": f"{speeds[0]:.2f}-{speeds[-1]:.2f}",
        "tok/step": sa.per("tokens", "steps"),
        "drafted/step": sa.per("drafted", "steps"),
        "identical": f"{int(same.sum())}/{len(setting.prompts)}"
        if setting.temperature == 0
        else "-",
        "compile s": f"{none.compile_seconds:.0f}, {sa.compile_seconds:.0f}",
        "costs": " ".join(f"{c:.2f}" for c in sa.costs / sa.costs[0]),
        "step ms": f"{1e3 * float(none.costs[0]):.2f}, {1e3 * float(sa.costs[0]):.2f}",
        "call ms": f"{1e3 * none.per('seconds', 'calls'):.2f}, "
        f"{1e3 * sa.per('seconds', 'calls'):.2f}",
    }


def new_tokens(text: str) -> int:
    """An option's value as an int that suffices to measure what steps cost."""
    number = int(text)
    if number < CALIBRATION_TOKENS:
        raise argparse.ArgumentTypeError(f"expected at least {CALIBRATION_TOKENS}, got {number}")
    return number


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    chat_model.add_options(parser, prompts="instruct.jsonl", dtype="bfloat16")
    add("--batch_sizes", type=positive, nargs="+", default=[1, 8, 32, 128], metavar="B")
    add("--temperatures", type=float, nargs="*", default=[0.0, 0.7], metavar="T")
    add("--random", action="store_true", help="also random tokens, which no draft foretells")
    add("--max_new_tokens", type=new_tokens, default=200)
    add("--max_draft", type=positive, default=32)
    add("--refills", type=positive, default=3, help="prompts for each row, at least")
    add("--runs", type=positive, default=3)
    add(
        "--pool",
        type=positive,
        metavar="C",
        help="also draft from a pool of C tokens, to which the prompts are new in the first run",
    )
    add("--tree_nodes", type=positive, metavar="N", help="draft trees of at most N nodes a row")
    add("--followers", action="store_true", help="also draft what the model expected of each token")
    add("--ignore_eos", action="store_true", help="always write all new tokens")
    add_json(parser)
    args = parser.parse_args(argv)
    if args.followers and args.tree_nodes is None:
        parser.error("argument --followers: expected --tree_nodes too, since trees hold them")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; bad input is one line and status 2."""
    args = parse_args(argv)
    try:
        bench = Bench(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings, rows = bench.settings(), []
    bar = ProgressBar(2 * len(settings), "programs")
    for setting in settings:
        measured = []
        for drafts in (False, True):
            measured.append(bench.measure(setting, drafts))
            bar.advance(1)
        rows.append(compare(setting, *measured))
        if args.json:  # what is measured is kept, whatever comes after it
            args.json.write_text(json.dumps(rows, indent=1))
    device = jax.devices()[0].device_kind
    report(rows, args.json, device=device, dtype=args.dtype, model=str(args.model))
    return 0


if __name__ == "__main__":
    with jax.default_matmul_precision("highest"):
        sys.exit(main())
