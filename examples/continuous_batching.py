"""Serves requests that come and go: a real model over a paged cache, prompts beside drafts.

    python examples/continuous_batching.py

The bundled model answers requests that arrive while others are being answered. A packed decoder
reads their prompts and verifies their drafts in one flat block, which they share; a request that
finds no row or no pages waits, first come, first served. Every answer is what plain decoding
writes. Needs `pip install jax_sa[tokenizer]`.

Letters: B rows, P tokens of the longest prompt.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from prompt_file import pad

import jax_sa
from jax_sa.cli.table import format_table
from jax_sa.llama import checkpoint, model, paged
from jax_sa.llama.config import Config
from jax_sa.llama.tokenizer import Tokenizer

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
PAGE_SIZE = 16
"""Tokens of a page."""

CODE = '''def area(shape):
    """The area of a shape."""
    if shape.kind == "circle":
        return math.pi * shape.radius ** 2
    if shape.kind == "square":
        return shape.side ** 2
    raise ValueError(shape.kind)
'''
STOCK = "part,material,length_mm,width_mm,stock\nbolt-m4,steel,16,4,1200\nbolt-m5,steel,20,5,900\n"
CACHES = [{"id": i, "kind": "cache", "size": 128, "enabled": True} for i in range(1, 4)]
PRINTER = "The old printer in the corner of the library had not worked for years, but nobody"
ARRIVALS = [  # before which step, name, prompt
    (0, "rename", f"# Original:\n{CODE}\n# Rename shape to figure:\n"),
    (0, "prose", PRINTER),
    (2, "json", json.dumps(CACHES, indent=2).removesuffix("\n]")),
    (4, "code", f"import math\n\n\n{CODE}\n\ndef perimeter(shape):\n"),
    (4, "csv", f"{STOCK}nut-m4,brass,4,7,2100\nnut-m5,brass,5,8,1750\n"),
    (12, "log", "".join(f"10:00:0{i} INFO worker-1 fetched 512 records\n" for i in range(4))),
    (100, "late", "def main():\n    parser = argparse.ArgumentParser()\n    parser.add_argument("),
]


@dataclasses.dataclass
class Request:
    """A prompt, and its answer as it grows."""

    name: str
    arrival: int
    """The step before which it arrives."""
    prompt: list[int]
    max_new_tokens: int
    answer: list[int] = dataclasses.field(default_factory=list)
    steps: int = 0
    """Steps that wrote something."""

    def figures(self) -> dict[str, Any]:
        """Its row of the table."""
        tokens = len(self.answer)
        counts = {"prompt": len(self.prompt), "tokens": tokens, "steps": self.steps}
        return {"request": self.name, **counts, "tokens_per_step": tokens / self.steps}


class Server:
    """The rows of a packed decoder, and the request of each."""

    def __init__(
        self, decoder: jax_sa.PackedDecoder, params: Any, rows: jax_sa.Rows, log: Callable
    ):
        """Serves with idle rows; `log` is called with a line for each event."""
        self.decoder, self.params, self.rows, self.log = decoder, params, rows, log
        self.running: list[Request | None] = [None] * rows.limits.size

    def admit(self, waiting: list[Request]) -> list[Request]:
        """Begins as many requests as rows and pages allow; returns those that still wait."""
        idle = [row for row, request in enumerate(self.running) if request is None]
        chosen = dict(zip(idle, waiting, strict=False))
        if not chosen:
            return waiting
        prompts = np.zeros(self.rows.prompts.shape, np.int32)
        lengths, limits = (np.zeros(len(self.running), np.int32) for _ in range(2))
        for row, request in chosen.items():
            lengths[row], limits[row] = len(request.prompt), request.max_new_tokens
            prompts[row, : lengths[row]] = request.prompt
        arrays = map(jnp.asarray, (prompts, lengths, limits))
        self.rows, began = self.decoder.admit(self.rows, *arrays)
        for row, request in chosen.items():
            if began[row]:
                self.running[row] = request
                self.log(f"{request.name} begins in row {row}")
        return [request for request in waiting if request not in self.running]

    def step(self) -> None:
        """Calls the model once for all rows, and hands out what they wrote."""
        self.rows, step = self.decoder.step(self.params, self.rows)
        tokens, lengths, finished = jax.device_get((step.tokens, step.length, step.finished))
        for row, request in enumerate(self.running):
            if request is None:
                continue
            request.answer += tokens[row, : lengths[row]].tolist()
            request.steps += int(lengths[row] > 0)
            if finished[row]:
                self.running[row] = None
                self.log(f"{request.name} ends after {len(request.answer)} tokens")


def serve(server: Server, requests: list[Request]) -> int:
    """Answers requests in the order of their arrival; returns the steps that it took."""
    coming, waiting, now, steps = list(requests), [], 0, 0
    while coming or waiting or any(server.running):
        while coming and coming[0].arrival <= now:
            waiting.append(coming.pop(0))
        waiting = server.admit(waiting)
        for request in waiting:
            if request.arrival == now:
                server.log(f"{request.name} waits")
        if any(server.running):
            server.step()
            steps += 1
        now += 1
    return steps


def make_server(
    config: Config, params: Any, requests: list[Request], args: argparse.Namespace, log: Callable
) -> Server:
    """A server with room for any of the requests in each row."""
    longest = max(len(request.prompt) for request in requests)
    size = longest + args.max_new_tokens
    decoder = jax_sa.PackedDecoder(
        functools.partial(paged.apply_packed, config),
        stop_tokens=config.eos_tokens,
        max_draft=args.max_draft,
        budget=args.budget,
    )
    rows = decoder.init(
        paged.init_packed_cache(config, args.rows, args.pages, PAGE_SIZE, size, jnp.float32),
        rows=args.rows,
        max_prompt=longest,
        state=jax_sa.init(args.rows, size),
    )
    return Server(decoder, params, rows, log)


def plain_answers(config: Config, params: Any, requests: list[Request]) -> list[list[int]]:
    """The answers of decoding without drafts, from a cache without pages."""
    prompts, lengths = pad([request.prompt for request in requests])
    new = requests[0].max_new_tokens
    done = jax_sa.generate(
        functools.partial(model.apply, config),
        params,
        prompts,
        lengths,
        model.init_cache(config, len(requests), prompts.shape[1] + new, jnp.float32, mtp=False),
        max_new_tokens=new,
        stop_tokens=config.eos_tokens,
    )
    answers = zip(*jax.device_get((done.tokens, done.lengths)), strict=True)
    return [tokens[:length].tolist() for tokens, length in answers]


def run(args: argparse.Namespace) -> list[str]:
    """Serves `ARRIVALS`, and prints what the drafts saved; returns the names of wrong answers."""
    config, params = checkpoint.load(CHECKPOINT, jnp.float32)
    encode, new = Tokenizer(CHECKPOINT).encode, args.max_new_tokens
    requests = [Request(name, step, encode(prompt), new) for step, name, prompt in ARRIVALS]
    longest = max(len(request.prompt) for request in requests)
    if new > config.max_position_embeddings - longest:
        raise ValueError(
            f"--max-new-tokens: expected at most {config.max_position_embeddings - longest}, "
            f"got {new}"
        )
    if args.pages * PAGE_SIZE < longest + new:
        raise ValueError(
            f"--pages: expected at least {-(-(longest + new) // PAGE_SIZE)} for the longest "
            f"prompt and its answer, got {args.pages}"
        )
    if args.budget < args.rows:
        raise ValueError(f"--budget: expected at least the {args.rows} rows, got {args.budget}")
    log = functools.partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    steps = serve(make_server(config, params, requests, args, log), requests)
    plain = plain_answers(config, params, requests)
    wrong = [r.name for r, answer in zip(requests, plain, strict=True) if r.answer != answer]
    figures = [request.figures() for request in requests]
    if args.json:
        print(json.dumps({"steps": steps, "wrong": wrong, "requests": figures}, indent=2))
    else:
        headers = [name.replace("_", " ") for name in figures[0]]
        print(f"\n{format_table(headers, [list(row.values()) for row in figures])}")
        print(f"\n{steps} steps in all")
    return wrong


def positive(text: str) -> int:
    """The type of an option that is a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", type=positive, default=3, help="requests at a time")
    add("--max-draft", type=positive, default=8, help="tokens that an automaton drafts at most")
    add("--max-new-tokens", type=positive, default=64, help="of a request")
    add("--pages", type=positive, default=24, help=f"of {PAGE_SIZE} tokens, for all requests")
    add("--budget", type=positive, default=64, help="tokens that a step reads at most")
    add("--json", action="store_true", help="the figures as JSON, and what happens on stderr")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command: status 1 for a wrong answer, 2 for bad input, each with one line."""
    try:
        # A GPU would otherwise round float32 products to fewer bits, and by the block's width.
        with jax.default_matmul_precision("highest"):
            wrong = run(parse_args(argv))
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if wrong:
        print(f"error: not what plain decoding writes: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
