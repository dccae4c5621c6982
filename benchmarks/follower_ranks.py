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
import sys
from typing import Any

import chat_model
import jax
import numpy as np
from prompt_file import pad
from report import add_json, positive, report

import jax_sa
from jax_sa.cli.progress import ProgressBar
from jax_sa.llama import model, paged


class Texts:
    """A checkpoint, and what it answers to prompts."""

    def __init__(self, args: argparse.Namespace):
        """Loads the checkpoint and reads the prompts."""
        self.chat = chat_model.load(args)
        self.config, self.params, self.prompts, self.dtype = self.chat
        self.rows, self.new = args.batch_size, args.max_new_tokens
        self.size = max(map(len, self.prompts)) + self.new

    def write(self, temperature: float) -> list[list[int]]:
        """Each prompt with its answer."""
        prompts, lengths = pad(self.prompts)
        cache = self.chat.init_cache(self.rows, self.size)
        apply = functools.partial(paged.apply_packed, self.config)
        decoder = jax_sa.PackedDecoder(apply, stop_tokens=self.config.eos_tokens)
        sampling = jax_sa.Sampling(jax.random.key(0), temperature) if temperature else None
        options: dict[str, Any] = {"rows": self.rows, "max_new_tokens": self.new}
        done = decoder.generate(self.params, prompts, lengths, cache, sampling=sampling, **options)
        return [text + new for text, new in zip(self.prompts, done.to_lists(), strict=True)]

    @functools.partial(jax.jit, static_argnums=0)
    def followers_at(self, params: Any, text: jax.Array) -> jax.Array:
        """int32[1, size, 8] what the model expects after each token of a text int32[1, size]."""
        cache = model.init_cache(self.config, 1, self.size, self.dtype, mtp=False)
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
    chat_model.add_options(parser, prompts="followers.jsonl", dtype="float32")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7], metavar="T")
    add("--batch_size", type=positive, default=16, metavar="B")
    add("--max_new_tokens", type=positive, default=200)
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
