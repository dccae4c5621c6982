"""What every integration shows: the contract checked, and the same text in fewer calls.

Letters: B prompts, P tokens of the longest, G new tokens.
"""

import argparse
import contextlib
import pathlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_sa
from jax_sa.cli.table import format_table


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all integrations have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--prompts", type=int, default=3, help="random prompts (default: 3)")
    result.add_argument("--max_new_tokens", type=int, default=64, help="default: 64")
    result.add_argument("--max_draft", type=int, default=8, help="tokens of a draft (default: 8)")
    return result


def folder(text: str) -> str:
    """An option's value as the absolute path of a folder; an address such as gs://... stays."""
    if "://" in text:
        return text
    path = pathlib.Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got {text}")
    return str(path)


@contextlib.contextmanager
def loading(checkpoint: str) -> Iterator[None]:
    """Turns whatever a stack raises about a checkpoint into one line and status 2."""
    try:
        yield
    except Exception as error:
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        problem = f"cannot be loaded: {type(error).__name__}: {reason}"
        print(f"error: --checkpoint {checkpoint}: {problem}", file=sys.stderr)
        sys.exit(2)


def repetitive_prompts(count: int, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """Random prompts of several lengths, in each of which a phrase comes twice."""
    random = np.random.default_rng(0)
    prompts = []
    for length in range(9, 9 + 4 * count, 4):
        phrase = random.integers(4, vocabulary, length).tolist()
        prompts.append([*phrase, *random.integers(4, vocabulary, 3).tolist(), *phrase[:5]])
    return jax_sa.pad_prompts(prompts)


def show(
    name: str,
    args: argparse.Namespace,
    model: Callable[..., Any],
    params: Any,
    init_cache: Callable[[int, int], Any],
    *,
    vocabulary: int,
    prompts: tuple[jax.Array, jax.Array] | None = None,
) -> int:
    """Checks a model, generates with and without drafts, and prints what both took.

    Returns:
      0 if the contract is kept and the texts are the same, else 1.
    """
    print(f"{name}: checking the contract", file=sys.stderr, flush=True)
    report = jax_sa.check_model(model, params, init_cache, vocabulary=vocabulary)
    print(report)
    if not report.ok:
        return 1
    prompts, lengths = prompts or repetitive_prompts(args.prompts, vocabulary)
    rows, width = prompts.shape
    capacity = width + args.max_new_tokens  # and not one more
    decoder = jax_sa.Decoder(model, max_draft=args.max_draft)
    costs = jnp.ones(len(decoder.widths()))  # what counts here is calls of the model, not time
    texts, lines = [], []
    for drafts, state in (("none", None), ("automaton", jax_sa.init(rows, capacity))):
        print(f"{name}: generating, drafts: {drafts}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        done = decoder.generate(
            params,
            prompts,
            lengths,
            init_cache(rows, capacity),
            max_new_tokens=args.max_new_tokens,
            state=state,
            costs=None if state is None else costs,
        )
        texts.append(done.to_lists())
        tokens = sum(map(len, texts[-1]))
        seconds = time.perf_counter() - begun
        lines.append((drafts, tokens, int(done.calls), tokens / int(done.steps.sum()), seconds))
    headers = ("drafts", "tokens", "calls of the model", "tokens a step", "s with compilation")
    print(format_table(headers, lines))
    same = texts[0] == texts[1]
    print(f"{name}: the texts are {'the same' if same else 'NOT THE SAME'}")
    return 0 if same else 1
