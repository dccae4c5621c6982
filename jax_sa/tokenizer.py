"""The tokenizer in a Hugging Face `tokenizer.json`; needs the extra `tokenizer`."""

import os
import pathlib
from typing import Any

from jax_sa._files import check_regular_file


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The `tokenizers.Tokenizer` in a file.

    Raises:
      ValueError: the package `tokenizers` is missing, or the file cannot be read or holds no
        tokenizer. The message is one line and names the file.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError(
            "the package tokenizers is missing: pip install jax_sa[tokenizer]"
        ) from None
    path = pathlib.Path(path)
    try:
        check_regular_file(path)
        return tokenizers.Tokenizer.from_file(str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the package raises nothing narrower
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a tokenizer: {reason}") from None
