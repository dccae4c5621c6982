"""Counts how often the next token of a text is the follower of each rank, of the token before it.

    python benchmarks/follower_ranks.py --model smollm2 --chat

A model answers prompts. Then each text is read token by token: where the followers of a token are
known (`jax_sa.Followers`), from this text or the ones before, the rank of what comes next counts.
The chances by which trees try followers, and are verified, are the means of these. Needs `pip
install jax_sa[tokenizer,chat]`, and a checkpoint folder such as `examples/import_gguf.py` writes.
"""

import argparse
import functools
import itertools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import add_json, positive, report

import jax_sa
from jax_sa.cli.progress import ProgressBar

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from prompt_file import encode, pad, read_prompts

from jax_sa.llama import checkpoint, model, paged
from jax_sa.llama.chat import ChatTemplate
from jax_sa.llama.tokenizer import Tokenizer

PAGE_SIZE = 64
"""Tokens of a page."""


class Texts:
    """A checkpoint, and what it answers to prompts."""

    def __init__(self, args: argparse.Namespace):
        """Loads the checkpoint and reads the prompts."""
        self.config, self.params = checkpoint.load(args.model, jnp.dtype(args.dtype), None)
        tokenizer = Tokenizer(args.model)
        chat = ChatTemplate(args.model) if args.chat else None
        self.prompts = [encode(prompt, tokenizer, chat) for prompt in read_prompts(args.prompts)]
        self.rows, self.new, self.dtype = args.batch_size, args.max_new_tokens, args.dtype
        self.size = max(map(len, self.prompts)) + self.new

    def write(self, temperature: float) -> list[list[int]]:
        """Each prompt with its answer."""
        prompts, lengths = pad(self.prompts)
        pages = self.rows * -(-self.size // PAGE_SIZE)
        cache = paged.init_packed_cache(
            self.config, self.rows, pages, PAGE_SIZE, self.size, jnp.dtype(self.dtype)
        )
        apply = functools.partial(paged.apply_packed, self.config)
        decoder = jax_sa.PackedDecoder(apply, stop_tokens=self.config.eos_tokens)
        sampling = jax_sa.Sampling(jax.random.key(0), temperature) if temperature else None
        options: dict[str, Any] = {"rows": self.rows, "max_new_tokens": self.new}
        done = decoder.generate(self.params, prompts, lengths, cache, sampling=sampling, **options)
        return [text + new for text, new in zip(self.prompts, done.to_lists(), strict=True)]

    @functools.partial(jax.jit, static_argnums=0)
    def followers_at(self, params: Any, text: jax.Array) -> jax.Array:
        """int32[1, size, 8] what the model expects after each token of a text int32[1, size]."""
        dtype = jnp.dtype(self.dtype)
        cache = model.init_cache(self.config, 1, self.size, dtype, mtp=False)
        logits, _ = model.apply(self.config, params, text, cache)
        return jax.lax.top_k(logits[0], jax_sa.NUM_FOLLOWERS)[1]


def count(texts: Texts, temperature: float, bar: ProgressBar) -> tuple[np.ndarray, int]:
    """float[8] the percentage of new tokens that are the follower of each rank; and of how many."""
    known: dict[int, list[int]] = {}
    found, tokens = np.zeros(jax_sa.NUM_FOLLOWERS), 0
    for prompt, text in zip(texts.prompts, texts.write(temperature), strict=True):
        padded, _ = pad([text], width=texts.size)
        expected = np.asarray(texts.followers_at(texts.params, padded)).tolist()
        for place, (token, following) in enumerate(itertools.pairwise(text)):
            if place >= len(prompt) - 1 and token in known:
                tokens += 1
                if following in known[token]:
                    found[known[token].index(following)] += 1
            known[token] = expected[place]
        bar.advance(1)
    return 100 * found / max(tokens, 1), tokens


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=pathlib.Path, default=EXAMPLES / "checkpoint", help="checkpoint folder")
    add("--prompts", type=pathlib.Path, default=EXAMPLES / "prompts" / "followers.jsonl")
    add("--chat", action="store_true", help="put prompts into the checkpoint's chat template")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7], metavar="T")
    add("--batch_size", type=positive, default=16, metavar="B")
    add("--max_new_tokens", type=positive, default=200)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_json(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the count; bad input is one line and status 2."""
    args = parse_args(argv)
    try:
        texts = Texts(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bar = ProgressBar(len(args.temperatures) * len(texts.prompts), "texts")
    counted = [count(texts, temperature, bar) for temperature in args.temperatures]
    names = [f"T={t:g}" if t else "greedy" for t in args.temperatures]
    names = [
        f"{name}, % of {tokens} tokens" for name, (_, tokens) in zip(names, counted, strict=True)
    ]
    shares = [*(share for share, _ in counted), np.mean([share for share, _ in counted], axis=0)]
    rows = [
        {"rank": 1 + rank}
        | {
            name: round(float(s[rank]), 2)
            for name, s in zip([*names, "mean, %"], shares, strict=True)
        }
        for rank in range(jax_sa.NUM_FOLLOWERS)
    ]
    report(rows, args.json, model=str(args.model), dtype=args.dtype)
    return 0


if __name__ == "__main__":
    with jax.default_matmul_precision("highest"):
        sys.exit(main())
