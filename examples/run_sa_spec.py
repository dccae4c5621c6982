"""Speculative decoding of a Llama-family model: plain, with its MTP module, with suffix automata.

Prints what the model writes, drafted tokens that it confirmed highlighted; or, with --compare, how
the four ways of drafting (none, MTP, SA, SA+MTP) do on the same prompts, and whether they wrote
the same. Needs `pip install jax_sa[tokenizer]`:

    python examples/run_sa_spec.py --compare
    python examples/run_sa_spec.py --use_sa_spec --num_nextn_predict_layers 1
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from llama import checkpoint, model
from llama.drafter import mtp_drafter
from llama.tokenizer import Tokenizer
from llama.weights import AXIS

import jax_sa
from jax_sa._checks import check_int, check_positive_float
from jax_sa.cli.progress import ProgressBar
from jax_sa.cli.table import format_table

HERE = pathlib.Path(__file__).parent
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HIGHLIGHT, PLAIN = "\033[30;42m", "\033[0m"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One text to go on with."""

    group: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Mode:
    """Where drafts come from."""

    use_sa: bool
    mtp_tokens: int
    """Tokens that the MTP module drafts; 0: none."""

    @property
    def name(self) -> str:
        """As the tables call it."""
        return "+".join(["SA"] * self.use_sa + ["MTP"] * (self.mtp_tokens > 0)) or "none"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one prompt came to in one mode."""

    tokens: tuple[int, ...]
    steps: int
    drafted: int
    accepted: int


class Engine:
    """A checkpoint, ready to generate from batches of prompts of one static shape."""

    def __init__(self, args: argparse.Namespace):
        """Loads `args.model`; ValueError of one line if it, or an option, is no good."""
        self.args = args
        self.mesh = make_mesh(args.tp_size)
        self.dtype = DTYPES[args.dtype]
        self.config, self.params = checkpoint.load(args.model, self.dtype, self.mesh)
        self.tokenizer = Tokenizer(args.model)
        self.prompts = read_prompts(args.prompts, self.tokenizer, self.config.vocab_size)
        self.width = max(len(prompt.tokens) for prompt in self.prompts)
        self.size = self.width + args.max_new_tokens
        if self.size > self.config.max_position_embeddings:
            room = self.config.max_position_embeddings - args.max_new_tokens
            raise ValueError(
                f"prompts: expected at most {room} tokens, so that {args.max_new_tokens} more fit "
                f"the model's {self.config.max_position_embeddings}, got {self.width}"
            )
        # One object each: a decoder is compiled anew for another function.
        self._model = functools.partial(model.apply, self.config)
        self._decoder = functools.cache(self._make_decoder)

    def _make_decoder(self, mode: Mode) -> jax_sa.Decoder:
        return jax_sa.Decoder(
            self._model,
            drafter=mtp_drafter(self.config, mode.mtp_tokens) if mode.mtp_tokens else None,
            stop_tokens=self.config.eos_tokens,
            max_draft=self.args.max_draft,
            threshold=self.args.sa_spec_threshold,
        )

    def batches(self) -> list[list[Prompt]]:
        """The prompts, `batch_size` at a time."""
        size = self.args.batch_size
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]

    def arguments(self, mode: Mode, batch: list[Prompt]) -> dict[str, Any]:
        """What `Decoder.init` and `generate` take. Rows without a prompt are idle."""
        rows = self.args.batch_size
        lengths = [len(prompt.tokens) for prompt in batch] + [0] * (rows - len(batch))
        prompts = np.zeros((rows, self.width), np.int32)
        for row, prompt in enumerate(batch):
            prompts[row, : len(prompt.tokens)] = prompt.tokens
        sampling = None
        if self.args.temperature > 0:
            key = jax.random.key(self.args.seed)
            sampling = jax_sa.Sampling(key, temperature=self.args.temperature)
        return {
            "params": self.params,
            "prompts": jnp.asarray(prompts),
            "prompt_lengths": jnp.asarray(lengths, jnp.int32),
            "cache": model.init_cache(
                self.config,
                rows,
                self.size,
                self.dtype,
                mtp=mode.mtp_tokens > 0,
                mesh=self.mesh,
            ),
            "state": jax_sa.init(rows, self.size) if mode.use_sa else None,
            "max_new_tokens": self.args.max_new_tokens,
            "sampling": sampling,
        }

    def generate(self, mode: Mode, batch: list[Prompt]) -> tuple[list[Result], float]:
        """What the device wrote without the host's help, and the seconds it took."""
        arguments = jax.block_until_ready(self.arguments(mode, batch))
        decoder = self._decoder(mode)
        options = {
            field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder)
        }
        begun = time.perf_counter()
        done = jax.block_until_ready(jax_sa.generate(**options, **arguments))
        seconds = time.perf_counter() - begun
        return [_result(done, row) for row in range(len(batch))], seconds

    def stream(self, mode: Mode, batch: list[Prompt]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Step by step, the tokens [B, 1 + K] that each row got, and how many."""
        decoder = self._decoder(mode)
        generation = decoder.init(**self.arguments(mode, batch))
        while not generation.finished.all():
            generation, emitted = decoder.step(self.params, generation)
            yield np.asarray(emitted.tokens), np.asarray(emitted.length)

    def logit_gap(self, text: tuple[int, ...], one: int, other: int) -> float:
        """By how much the logits of two tokens differ that could follow a text."""
        tokens = np.zeros((1, self.size), np.int32)
        tokens[0, : len(text)] = text
        cache = model.init_cache(self.config, 1, self.size, self.dtype, mtp=False, mesh=self.mesh)
        logits, _ = jax.jit(self._model)(self.params, jnp.asarray(tokens), cache)
        after = np.asarray(logits[0, len(text) - 1])
        return float(abs(after[one] - after[other]))


def _result(done: jax_sa.Generation, row: int) -> Result:
    tokens = np.asarray(done.tokens[row])[: int(done.lengths[row])]
    counts = (int(count[row]) for count in (done.steps, done.drafted, done.accepted))
    return Result(tuple(tokens.tolist()), *counts)


def make_mesh(tp_size: int) -> jax.sharding.Mesh | None:
    """The first `tp_size` devices; None for one."""
    devices = jax.devices()
    if tp_size > len(devices):
        raise ValueError(
            f"tp_size: expected at most the {len(devices)} devices there are, got {tp_size} "
            "(JAX_NUM_CPU_DEVICES sets how many a CPU counts as)"
        )
    return jax.sharding.Mesh(np.array(devices[:tp_size]), (AXIS,)) if tp_size > 1 else None


def read_prompts(path: pathlib.Path, tokenizer: Tokenizer, vocab_size: int) -> list[Prompt]:
    """The prompts of a file with a JSON object per line: `group` and `prompt`, both text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            group, text = entry.get("group", "prompts"), entry["prompt"]
        except (ValueError, KeyError, AttributeError):
            raise ValueError(
                f'{path}:{number}: expected {{"group": ..., "prompt": ...}}, got {line[:40]!r}'
            ) from None
        if not isinstance(text, str) or not text:
            raise ValueError(f"{path}:{number}: prompt: expected a text, got {text!r}")
        tokens = tuple(tokenizer.encode(text))
        if not tokens or max(tokens) >= vocab_size:
            raise ValueError(f"{path}:{number}: prompt: the tokenizer is not the model's")
        prompts.append(Prompt(str(group), tokens))
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def compare(engine: Engine, modes: list[Mode]) -> dict[str, Any]:
    """Every mode on every prompt: figures by mode, and by group of prompts."""
    batches = engine.batches()
    results: dict[str, list[Result]] = {}
    seconds: dict[str, list[float]] = {}
    for mode in modes:
        print(f"{mode.name}: compiling", file=sys.stderr, flush=True)
        engine.generate(mode, batches[0])
        progress = ProgressBar(len(batches), f"batches, {mode.name}")
        results[mode.name], seconds[mode.name] = [], []
        for batch in batches:
            written, elapsed = engine.generate(mode, batch)
            results[mode.name] += written
            seconds[mode.name].append(elapsed)
            progress.advance(1)
    groups = [prompt.group for prompt in engine.prompts]
    greedy = engine.args.temperature == 0
    return {
        "device": jax.devices()[0].device_kind,
        "batch_size": engine.args.batch_size,
        "tp_size": engine.args.tp_size,
        "dtype": engine.args.dtype,
        "temperature": engine.args.temperature,
        "prompts": len(engine.prompts),
        "modes": {
            name: _figures(results[name], sum(seconds[name]))
            | {"identical": _identical(results[name], results["none"]) if greedy else None}
            for name in results
        },
        "groups": {
            group: {
                # A batch is of one group only where it is of one prompt.
                name: _figures(
                    _of_group(results[name], groups, group),
                    sum(_of_group(seconds[name], groups, group))
                    if engine.args.batch_size == 1
                    else None,
                )
                for name in results
            }
            for group in dict.fromkeys(groups)
        },
        "differences": _differences(engine, results) if greedy else [],
    }


def _of_group(values: list[Any], groups: list[str], group: str) -> list[Any]:
    return [value for value, its in zip(values, groups, strict=True) if its == group]


def _figures(results: list[Result], seconds: float | None) -> dict[str, float | None]:
    tokens = sum(len(result.tokens) for result in results)
    drafted = sum(result.drafted for result in results)
    return {
        "tokens": tokens,
        "tokens_per_step": tokens / max(sum(result.steps for result in results), 1),
        "acceptance_rate": sum(result.accepted for result in results) / drafted
        if drafted
        else None,
        "tokens_per_second": tokens / seconds if seconds else None,
    }


def _identical(results: list[Result], expected: list[Result]) -> int:
    """How many prompts came to the same text."""
    return sum(a.tokens == b.tokens for a, b in zip(results, expected, strict=True))


def _differences(engine: Engine, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Where a mode left the plain text, and how close a call the model's choice was there."""
    found = []
    for name, of_mode in results.items():
        triples = zip(engine.prompts, results["none"], of_mode, strict=True)
        for index, (prompt, plain, other) in enumerate(triples):
            if plain.tokens == other.tokens:
                continue
            pairs = list(zip(plain.tokens, other.tokens, strict=False))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            gap = None
            if at < len(pairs):
                gap = engine.logit_gap(prompt.tokens + plain.tokens[:at], *pairs[at])
            found.append({"mode": name, "prompt": index, "token": at, "logit_gap": gap})
    return found


def format_comparison(report: dict[str, Any]) -> str:
    """The tables of a report, for people."""
    plain = report["modes"]["none"]["tokens_per_second"]
    of_modes = [
        [
            name,
            figures["tokens_per_step"],
            _percent(figures["acceptance_rate"]),
            f"{figures['tokens_per_second']:.0f}",
            f"{figures['tokens_per_second'] / plain:.2f}x",
            "sampled"
            if figures["identical"] is None
            else f"{figures['identical']}/{report['prompts']}",
        ]
        for name, figures in report["modes"].items()
    ]
    headers = ["drafts", "tokens/step", "accepted", "tokens/s", "speed", "identical"]
    parts = [format_table(headers, of_modes)]
    names = list(report["modes"])
    for title, key in (("tokens/step", "tokens_per_step"), ("tokens/s", "tokens_per_second")):
        rows = [
            [group, *(by_mode[name][key] for name in names)]
            for group, by_mode in report["groups"].items()
        ]
        if rows[0][1] is not None:
            parts.append(format_table([title, *names], rows))
    parts += [
        f"{d['mode']}: prompt {d['prompt']} differs from token {d['token']} on"
        + ("" if d["logit_gap"] is None else f", where the logits differ by {d['logit_gap']:.1e}")
        for d in report["differences"]
    ]
    return "\n\n".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


class Writer:
    """Shows one row's text as it grows, confirmed drafts highlighted."""

    def __init__(self, decode: Callable[[list[int]], str], colour: bool):
        self._decode, self._colour = decode, colour
        self._tokens: list[int] = []
        self._shown = 0

    def write(self, tokens: list[int]) -> str:
        """What a step adds to the text: all its tokens but the last were drafted."""
        drafted, own = self._piece(tokens[:-1]), self._piece(tokens[-1:])
        return (f"{HIGHLIGHT}{drafted}{PLAIN}" if drafted and self._colour else drafted) + own

    def _piece(self, tokens: list[int]) -> str:
        self._tokens += tokens
        # The bytes of a character may be spread over tokens: half of one waits for the rest.
        text = self._decode(self._tokens).removesuffix("\ufffd")
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def show(engine: Engine, mode: Mode) -> None:
    """Prints what the model writes after each prompt: as it comes, for a batch of one."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    begun, count, steps = time.perf_counter(), 0, 0
    for batch in engine.batches():
        writers = [Writer(engine.tokenizer.decode, colour) for _ in batch]
        texts = [""] * len(batch)
        live = len(batch) == 1
        if live:
            print(_heading(engine, batch[0]), flush=True)
        for tokens, lengths in engine.stream(mode, batch):
            for row, writer in enumerate(writers):
                steps += lengths[row] > 0
                count += int(lengths[row])
                piece = writer.write(tokens[row, : lengths[row]].tolist()) if lengths[row] else ""
                texts[row] += piece
                if live:
                    print(piece, end="", flush=True)
        for prompt, text in zip(batch, texts, strict=True):
            print("" if live else f"{_heading(engine, prompt)}\n{text}")
    seconds = time.perf_counter() - begun
    print(
        f"\n{mode.name}: {count} tokens, {count / max(steps, 1):.2f} per step, "
        f"{seconds:.1f} s with compilation",
        file=sys.stderr,
    )


def _heading(engine: Engine, prompt: Prompt) -> str:
    lines = engine.tokenizer.decode(prompt.tokens).splitlines()[-3:]
    return "\n".join([f"\n--- {prompt.group} ---", *(f"| {line}" for line in lines)])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ValueError or TypeError for a number that is out of range."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=pathlib.Path, default=HERE / "checkpoint", help="checkpoint directory")
    add("--prompts", type=pathlib.Path, default=HERE / "prompts" / "mixed.jsonl", metavar="FILE")
    add("--compare", action="store_true", help="all four ways of drafting, as tables")
    add("--use_sa_spec", action="store_true", help="draft from suffix automata")
    add(
        "--num_nextn_predict_layers",
        type=int,
        default=None,
        metavar="N",
        help="tokens that the MTP module drafts; 0, but 1 with --compare",
    )
    add(
        "--sa_spec_threshold",
        type=int,
        default=4,
        metavar="N",
        help="match length from which the automaton's draft goes before the MTP module's",
    )
    add("--max_draft", type=int, default=16, help="tokens that an automaton drafts at most")
    add("--max_new_tokens", type=int, default=256, help="per prompt")
    add("--batch_size", type=int, default=1, help="prompts at a time")
    add("--tp_size", type=int, default=1, help="devices that share the model")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--seed", type=int, default=0, help="of sampling")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and cache")
    add("--json", action="store_true", help="with --compare, the report as JSON")
    args = parser.parse_args(argv)
    if args.num_nextn_predict_layers is None:
        args.num_nextn_predict_layers = int(args.compare)
    for name, low in (
        ("num_nextn_predict_layers", 0),
        ("sa_spec_threshold", 1),
        ("max_draft", 1),
        ("max_new_tokens", 1),
        ("batch_size", 1),
        ("tp_size", 1),
        ("seed", 0),
    ):
        check_int(f"--{name}", getattr(args, name), low)
    if args.temperature != 0:
        check_positive_float("--temperature", args.temperature)
    return args


def compare_modes(args: argparse.Namespace) -> dict[str, Any]:
    """The report of --compare: all ways of drafting that the checkpoint allows."""
    engine = Engine(args)
    mtp_tokens = args.num_nextn_predict_layers
    if mtp_tokens and not engine.config.num_mtp:
        print("the checkpoint has no MTP module: comparing without", file=sys.stderr)
        mtp_tokens = 0
    widths = sorted({0, mtp_tokens})
    return compare(engine, [Mode(use_sa, width) for use_sa in (False, True) for width in widths])


def run(args: argparse.Namespace) -> None:
    """Does what the command line says."""
    if args.compare:
        report = compare_modes(args)
        print(json.dumps(report, indent=2) if args.json else format_comparison(report))
        return
    engine = Engine(args)
    if args.num_nextn_predict_layers and not engine.config.num_mtp:
        raise ValueError("--num_nextn_predict_layers: the checkpoint has no MTP module")
    show(engine, Mode(args.use_sa_spec, args.num_nextn_predict_layers))


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
