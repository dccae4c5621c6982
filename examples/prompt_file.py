"""Prompts: from a file with a JSON object per line to tokens, and to rows of one width."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.llama.chat import ChatTemplate
from jax_sa.llama.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One text to go on with, or in a chat one request to answer."""

    group: str
    """The kind of prompt, by which figures are summed up."""
    text: str


def read_prompts(path: pathlib.Path) -> list[Prompt]:
    """The prompts of a file; ValueError of one line that names the file and the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    prompts = [_parse(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def encode(prompt: Prompt, tokenizer: Tokenizer, chat: ChatTemplate | None) -> list[int]:
    """The tokens of a prompt as the model reads it; with a template, of a chat's first message."""
    if chat is None:
        return tokenizer.encode(prompt.text)
    request = chat.render([{"role": "user", "content": prompt.text}])
    return tokenizer.encode(request, add_special_tokens=False)


def pad(
    texts: Sequence[Sequence[int]], rows: int | None = None, width: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Texts as rows of one width, zeros beyond their ends.

    Args:
      texts: token ids.
      rows: B, of which those beyond the texts are empty. None: one for each text.
      width: P. None: that of the longest.

    Returns:
      int32[B, P] the tokens, and int32[B] their numbers.
    """
    lengths = np.zeros(len(texts) if rows is None else rows, np.int32)
    lengths[: len(texts)] = [len(text) for text in texts]
    tokens = np.zeros((lengths.size, lengths.max() if width is None else width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return jnp.asarray(tokens), jnp.asarray(lengths)


def _parse(place: str, line: str) -> Prompt:
    try:
        entry = json.loads(line)
        group, text = entry.get("group", "prompts"), entry["prompt"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise ValueError(
            f'{place}: expected {{"group": ..., "prompt": ...}}, got {line[:40]!r}'
        ) from None
    if not isinstance(text, str) or not text:
        raise ValueError(f"{place}: prompt: expected a text, got {text!r}")
    return Prompt(str(group), text)
