"""Serves requests that come and go: one compiled program, a paged cache, drafts from automata.

    python examples/continuous_batching.py

A step is one flat block of tokens. Some requests still read their prompts, a chunk at a time, while
others have their drafts verified. A request waits until a slot is free, and the pages for its
prompt and its answer; when it ends, the next has them. Prints what happens at each step, and what
the drafts saved; fails unless every answer is, token for token, what plain decoding writes. Needs
`pip install jax_sa[tokenizer]`.

Letters: B slots, C tokens of a chunk, K draft tokens, P pages of a request, T tokens of a step.
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
from llama import checkpoint, model, paged
from llama.config import Config
from llama.tokenizer import Tokenizer

import jax_sa
from jax_sa._checks import check_int
from jax_sa.cli.table import format_table

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
CHUNK = 32
"""C. In a step every request reads one token, and all prompts together `CHUNK - 1` more."""
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The requests of a step, a row each. A row that has none is zero."""

    tokens: Any
    """int32[B, C] what each reads: of its prompt, or the last token of its answer."""
    counts: Any
    """int32[B] how many these are."""
    cached: Any
    """int32[B] the tokens before them, which its pages hold."""
    limits: Any
    """int32[B] the tokens that it may write; 0 while there is more of its prompt to read."""
    page_table: Any
    """int32[B, P] its pages."""


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("buffers", "cache"))
def decode_step(
    config: Config,
    params: dict[str, Any],
    buffers: Batch,
    batch: Batch,
    rows: jax.Array,
    draft: jax_sa.Draft,
    cache: paged.PagedCache,
) -> tuple[Batch, paged.PagedCache, jax_sa.Accepted]:
    """Has the model read a batch and its drafts, and keeps what it says and confirms.

    Args:
      config: of the model.
      params: of the model.
      buffers: of B rows, where the step reads the batch, always at the same address.
      batch: of B rows; those from `rows` on may hold anything.
      rows: int32[] the requests of the batch.
      draft: of B rows.
      cache: of all requests.
    """
    buffers = jax_sa.fused_copy(buffers, batch, rows=rows, fill=0).destinations
    slots, max_draft = draft.tokens.shape
    draft = dataclasses.replace(draft, length=jnp.clip(buffers.limits - 1, 0, draft.length))
    lengths = buffers.counts + draft.length
    flat = jax_sa.expand_seqlens(
        buffers.cached + lengths,
        lengths,
        total=CHUNK - 1 + slots * (1 + max_draft),
        fill=1,  # padding sees one token: with none, it would be NaN
        return_offsets=True,
        return_row_ids=True,
    )
    tokens, positions = flatten(buffers, draft, flat), flat.values - 1
    x, cache = paged.apply(
        config, params, tokens, positions, flat.row_ids, buffers.page_table, cache
    )
    # The model writes after the last of a request's own tokens, and after each drafted one.
    last = flat.offsets[:-1] + buffers.counts - 1
    block = last[:, None] + jnp.arange(1 + max_draft, dtype=jnp.int32)[None]
    logits = model.unembed(params, x.at[block].get(mode="clip"))
    accepted = jax_sa.accept_greedy(draft, jnp.argmax(logits, axis=-1).astype(jnp.int32))
    length = jnp.minimum(accepted.length, buffers.limits)
    # What was donated comes first: JAX gives its memory to the first results of the same shapes.
    return buffers, cache, dataclasses.replace(accepted, length=length)


def flatten(batch: Batch, draft: jax_sa.Draft, flat: jax_sa.ExpandedSeqlens) -> jax.Array:
    """int32[T] of each row its own tokens, then its draft; any of them for padding."""
    row = jnp.minimum(flat.row_ids, batch.counts.shape[0] - 1)
    place = jnp.arange(flat.values.shape[0], dtype=jnp.int32) - flat.offsets[row]
    drafted = place - batch.counts[row]
    own_tokens = batch.tokens.at[row, place].get(mode="clip")
    return jnp.where(drafted < 0, own_tokens, draft.tokens.at[row, drafted].get(mode="clip"))


def num_pages(length: int) -> int:
    """The pages that hold so many tokens."""
    return -(-length // PAGE_SIZE)


@dataclasses.dataclass
class Request:
    """A prompt, and what the engine has made of it."""

    name: str
    arrival: int
    prompt: list[int]
    max_new_tokens: int
    answer: list[int] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    cached: int = 0
    """The tokens that its pages hold."""
    steps: int = 0
    """Those that wrote."""

    @property
    def num_pages(self) -> int:
        """The pages of its prompt and its longest answer."""
        return num_pages(len(self.prompt) + self.max_new_tokens)

    def figures(self) -> dict[str, Any]:
        """Its row of the table."""
        tokens = len(self.answer)
        counts = {"prompt": len(self.prompt), "tokens": tokens, "steps": self.steps}
        return {"request": self.name, **counts, "tokens_per_step": tokens / self.steps}


class Engine:
    """The requests that run, the pages of their keys and values, and their automata."""

    def __init__(
        self, config: Config, params: dict[str, Any], options: jax_sa.SAConfig, pages: int
    ):
        """Allocates, once, all that requests within the options will need."""
        self.config, self.params, slots = config, params, options.max_slots
        self.manager = jax_sa.SuffixAutomatonManager(options, slots)
        shapes = (slots, CHUNK), *[(slots,)] * 3, (slots, num_pages(options.max_seq_len))
        self.batch, buffers = (
            Batch(*[numpy.zeros(shape, np.int32) for shape in shapes]) for numpy in (np, jnp)
        )
        cache = paged.init_cache(config, pages, PAGE_SIZE, jnp.float32)
        # On the automata's device, as what a step returns will be: else the second step, of other
        # arguments to JAX, would be compiled anew.
        device = self.manager.state.length.sharding
        self.buffers, self.cache = jax.device_put((buffers, cache), device)
        self.free_pages = list(range(pages))
        self.running: list[Request] = []

    def lacks(self, request: Request) -> str | None:
        """What must become free before the request can run."""
        if not self.manager.num_free_slots:
            return "a slot"
        return "pages" if request.num_pages > len(self.free_pages) else None

    def add(self, request: Request) -> None:
        """Takes a request in; the others of the batch need not notice."""
        self.manager.add_request(request.name, request.prompt)
        count = request.num_pages
        request.pages, self.free_pages = self.free_pages[:count], self.free_pages[count:]
        self.running.append(request)
        self._batch_changed()

    def step(self) -> list[Request]:
        """Has every request read and write; returns those that it finished."""
        self._schedule()
        rows = np.int32(len(self.running))
        self.buffers, self.cache, accepted = decode_step(
            self.config, self.params, self.buffers, self.batch, rows, self.draft, self.cache
        )
        self.draft = self.manager.extend(accepted.tokens, accepted.length)
        tokens, lengths = jax.device_get((accepted.tokens, accepted.length))
        finished = [
            request
            for row, request in enumerate(self.running)
            if self._receive(request, row, tokens[row, : lengths[row]].tolist())
        ]
        for request in finished:
            self.manager.remove_request(request.name)
            self.running.remove(request)
            self.free_pages += request.pages
        if finished:
            self._batch_changed()
        return finished

    def _schedule(self) -> None:
        """Writes the next step's batch over the last one's, which the device has long read."""
        batch, spare = self.batch, CHUNK - 1
        for row, request in enumerate(self.running):
            unread = (request.prompt + request.answer)[request.cached :]
            count = min(len(unread), 1 + spare)
            spare -= count - 1
            left = request.max_new_tokens - len(request.answer)
            batch.tokens[row, :count] = unread[:count]
            batch.counts[row] = count
            batch.cached[row] = request.cached
            batch.limits[row] = left if count == len(unread) else 0
            batch.page_table[row] = self.cache.num_pages
            batch.page_table[row, : len(request.pages)] = request.pages

    def _receive(self, request: Request, row: int, written: list[int]) -> bool:
        """Notes what a step read and wrote for a request; whether that was its end."""
        # The model has not read the last token that it wrote.
        request.cached += int(self.batch.counts[row]) + max(len(written) - 1, 0)
        request.steps += bool(written)
        for token in written:
            request.answer.append(token)
            if token in self.config.eos_tokens:
                return True
        return len(request.answer) == request.max_new_tokens

    def _batch_changed(self) -> None:
        self.manager.prepare([request.name for request in self.running])
        self.draft = self.manager.lookup()


def serve(engine: Engine, requests: list[Request], log: Callable[[str], None]) -> int:
    """Answers requests, first come, first served; returns the steps that it took."""
    waiting, now, steps = list(requests), 0, 0
    while waiting or engine.running:
        while waiting and waiting[0].arrival <= now and not engine.lacks(waiting[0]):
            request = waiting.pop(0)
            engine.add(request)
            log(f"step {now:3}: {request.name} starts in {len(request.pages)} pages")
        for request in waiting:
            if request.arrival == now:
                log(f"step {now:3}: {request.name} waits for {engine.lacks(request) or 'its turn'}")
        steps += bool(engine.running)
        for request in engine.step() if engine.running else []:
            log(f"step {now:3}: {request.name} ends after {len(request.answer)} tokens")
        now += 1
    return steps


def plain_answers(
    config: Config, params: dict[str, Any], requests: list[Request]
) -> list[list[int]]:
    """What the model writes without drafts, from a cache without pages."""
    lengths = np.array([len(request.prompt) for request in requests], np.int32)
    limits = np.array([request.max_new_tokens for request in requests], np.int32)
    prompts = np.zeros((len(requests), lengths.max()), np.int32)
    for row, request in enumerate(requests):
        prompts[row, : lengths[row]] = request.prompt
    size = int(lengths.max() + limits.max())
    done = jax_sa.generate(
        functools.partial(model.apply, config),
        params,
        prompts,
        lengths,
        model.init_cache(config, len(requests), size, jnp.float32, mtp=False),
        max_new_tokens=int(limits.max()),
        limits=limits,
        stop_tokens=config.eos_tokens,
    )
    answers = zip(*jax.device_get((done.tokens, done.lengths)), strict=True)
    return [tokens[:length].tolist() for tokens, length in answers]


def run(args: argparse.Namespace) -> list[str]:
    """Serves `ARRIVALS`, and prints what the drafts saved; the names of wrong answers."""
    config, params = checkpoint.load(CHECKPOINT, jnp.float32)
    encode, new = Tokenizer(CHECKPOINT).encode, args.max_new_tokens
    requests = [Request(name, step, encode(prompt), new) for step, name, prompt in ARRIVALS]
    longest = max(len(request.prompt) for request in requests)
    check_int("--max-new-tokens", new, 1, config.max_position_embeddings - longest)
    check_int("--pages", args.pages, num_pages(longest + new), 1024)

    options = jax_sa.SAConfig(longest + new, args.slots, max_draft=args.max_draft)
    log = functools.partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    steps = serve(Engine(config, params, options, args.pages), requests, log)
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


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ValueError for a number that is out of range."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--slots", type=int, default=3, help="requests at a time")
    add("--max-draft", type=int, default=8, help="tokens that an automaton drafts at most")
    add("--max-new-tokens", type=int, default=64, help="of a request")
    add("--pages", type=int, default=24, help=f"of {PAGE_SIZE} tokens, for all requests")
    add("--json", action="store_true", help="the figures as JSON, and what happens on stderr")
    args = parser.parse_args(argv)
    check_int("--slots", args.slots, 1, 32)
    check_int("--max-draft", args.max_draft, 1, 32)
    return args


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
