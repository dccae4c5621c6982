"""The tokenizer of a checkpoint directory; needs `pip install jax_sa[tokenizer]`."""

import pathlib
from collections.abc import Sequence
from types import ModuleType

FILE = "tokenizer.json"


def import_tokenizers() -> ModuleType:
    """The package tokenizers; ValueError of one line if it is missing."""
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError(
            "the tokenizers package is missing: pip install jax_sa[tokenizer]"
        ) from None
    return tokenizers


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, directory: pathlib.Path):
        """Reads `tokenizer.json`; ValueError of one line if that cannot be done."""
        tokenizers = import_tokenizers()
        path = directory / FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer: {str(error).splitlines()[0]}") from None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, by default with what the tokenizer puts before it.

        The text of a chat template has its special tokens already.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return self._tokenizer.decode(list(tokens))
