"""The option `--tokenizer`: from text to token ids."""

import pathlib
from collections.abc import Callable

from jax_sa.tokenizer import load_tokenizer


def load_encoder(option: str, path: pathlib.Path | None) -> Callable[[str], list[int]] | None:
    """A function from text to token ids; None for no tokenizer.

    Raises:
      ValueError: the file holds no tokenizer; it names the option.
    """
    if path is None:
        return None
    try:
        tokenizer = load_tokenizer(path)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
