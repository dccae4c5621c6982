"""Token streams of real text: the source code of the running Python, split into words."""

import functools
import itertools
import pathlib
import re
import sysconfig

import numpy as np


@functools.cache
def source_tokens(length: int) -> np.ndarray:
    """int32[length]: words, runs of spaces and signs, numbered in order of appearance."""
    ids: dict[str, int] = {}
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py"))
    words = (
        ids.setdefault(word, len(ids))
        for path in files
        for word in re.findall(r"\w+|\s+|[^\w\s]", path.read_text(errors="ignore"))
    )
    tokens = np.fromiter(itertools.islice(words, length), np.int32)
    if len(tokens) < length:
        raise ValueError(f"the standard library has {len(tokens)} tokens, wanted {length}")
    return tokens


def slot_texts(num_slots: int, length: int) -> np.ndarray:
    """int32[num_slots, length]: every slot starts at another place of the source."""
    stride = 4096
    tokens = source_tokens(length + stride * min(num_slots, 64))
    return np.stack([tokens[(s % 64) * stride :][:length] for s in range(num_slots)])
