"""Prompts as the decoders want them, from what a tokenizer gives.

Letters: B prompts, P tokens of the longest, padding included.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import INT32_MAX, INT32_MIN, check_array, check_int

SMALLEST_WIDTH = 16
"""Tokens that prompts are padded to at least, unless `pad_prompts` is told widths."""


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, widths: Sequence[int] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Prompts of any lengths as one array, padded on the right to one of a few widths.

    A program is compiled for each width of the array. With few widths, a prompt that is a token
    longer mostly compiles nothing.

    Args:
      prompts: B lists or arrays of token ids, none of them empty.
      widths: ascending; the array gets the first with room for the longest prompt. None: powers of
        two from 16 on.

    Returns:
      `prompts` int32[B, P], 0 beyond each prompt, and `prompt_lengths` int32[B].

    Raises:
      ValueError, TypeError: naming the argument, and the prompt that is empty or too long.
    """
    texts = [_as_text(f"prompts[{i}]", prompt) for i, prompt in enumerate(prompts)]
    if not texts:
        raise ValueError("prompts: expected one at least, got none")
    longest = max(text.size for text in texts)
    if widths is None:
        width = max(SMALLEST_WIDTH, 1 << (longest - 1).bit_length())
    else:
        wide = [w for w in (check_int("widths", w, 1) for w in widths) if w >= longest]
        if not wide:
            raise ValueError(
                f"widths: expected one of at least {longest}, the tokens of the longest prompt, "
                f"got {list(widths)}"
            )
        width = wide[0]
    padded = np.zeros((len(texts), width), np.int32)
    for row, text in zip(padded, texts, strict=True):
        row[: text.size] = text
    lengths = np.asarray([text.size for text in texts], np.int32)
    return jnp.asarray(padded), jnp.asarray(lengths)


def read_prompts(prompts: Any, prompt_lengths: Any) -> tuple[Any, Any]:
    """Prompts and lengths as int32 arrays, where a user has lists, or integers of another size.

    Args:
      prompts: an array [B, P], or lists of token ids.
      prompt_lengths: an array or list of B; None: all P tokens of each prompt, or of lists theirs.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if isinstance(prompts, list | tuple) and prompt_lengths is None:
        return pad_prompts(prompts)
    prompts = as_int32("prompts", prompts)
    if prompt_lengths is None:
        rows, width = check_array("prompts", prompts, jnp.int32, ("B", "P"))
        prompt_lengths = jnp.full(rows, width, jnp.int32)
    prompt_lengths = as_int32("prompt_lengths", prompt_lengths)
    _warn_of_left_padding(known(prompts), known(prompt_lengths))
    return prompts, prompt_lengths


def as_int32(name: str, value: Any) -> Any:
    """Integers from the host as an int32 array; all else as it is, for `check_array` to judge.

    Raises:
      ValueError, TypeError: naming the argument; for integers that int32 cannot hold, too.
    """
    on_host = isinstance(value, list | tuple | np.ndarray | np.generic)
    if not on_host and getattr(value, "dtype", None) == np.int32:
        return value
    values = _of_host(name, value) if on_host else known(value)
    if values is None or values.dtype.kind not in "iu":
        return value if values is None or not on_host else values
    if values.size and not (INT32_MIN <= values.min() and values.max() <= INT32_MAX):
        raise ValueError(f"{name}: expected integers that int32 can hold, got {values.max()}")
    return jnp.asarray(values.astype(np.int32))


def to_lists(tokens: jax.Array, lengths: jax.Array) -> list[list[int]]:
    """The first `lengths` int32[B] of the tokens int32[B, G] of each row, on the host."""
    tokens, lengths = jax.device_get((tokens, lengths))
    return [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]


def known(value: Any) -> np.ndarray | None:
    """An array's values, where this process knows them: not inside jit, nor over several hosts."""
    if isinstance(value, jax.core.Tracer) or not hasattr(value, "dtype"):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def _of_host(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise TypeError(
            f"{name}: expected an array, got lists of different lengths: jax_sa.pad_prompts pads "
            "them"
        ) from None


def _as_text(name: str, prompt: Any) -> np.ndarray:
    text = _of_host(name, prompt)
    if text.ndim != 1 or (text.size and text.dtype.kind not in "iu"):
        raise TypeError(f"{name}: expected a list of token ids, got {prompt!r}")
    if text.size == 0:
        raise ValueError(f"{name}: expected one token at least, got none")
    return np.asarray(as_int32(name, text))


def _warn_of_left_padding(prompts: np.ndarray | None, lengths: np.ndarray | None) -> None:
    """Warns where prompts look as if their padding came first.

    Where all that are shorter begin with as many equal tokens as they lack, two at least, and what
    lies beyond some prompt is not padding.
    """
    if prompts is None or lengths is None or prompts.ndim != 2 or lengths.ndim != 1:
        return
    width = prompts.shape[1]
    short = [
        (row[: width - n], row[n:])
        for row, n in zip(prompts, lengths, strict=False)
        if 1 <= n <= width - 2
    ]
    if not short:
        return
    padding = short[0][0][0]
    if all((front == padding).all() for front, _ in short) and any(
        (back != back[0]).any() for _, back in short
    ):
        warnings.warn(
            f"prompts: expected padding on the right, but the short ones begin with token "
            f"{padding}, as if padded on the left. The first prompt_lengths[b] tokens of row b "
            "count. jax_sa.pad_prompts pads lists of tokens.",
            stacklevel=4,
        )
