"""The room that CUDA needs to build long rows in parallel."""

LONG_ROW = 512
"""Tokens of a row from which on it may be worthwhile to build its text in parallel."""

_MAX_ELEMENTS = 2**22
_ELEMENTS_PER_TOKEN = 400
_LINES = 11
_HEADER_WORDS = 64 + 256 * 257
_ROW_WORDS = 8


def capacity(rows: int, width: int, max_seq_len: int) -> int:
    """Elements that are built at once, at most.

    A text of n tokens has n + 1. No more than could be worthwhile for rows of `width` tokens, nor
    than half a gigabyte has room for: what does not fit together is built one after the other.
    """
    return min(rows * (max_seq_len + 1), _ELEMENTS_PER_TOKEN * width, _MAX_ELEMENTS)


def workspace_shapes(
    rows: int, max_seq_len: int, elements: int
) -> tuple[tuple[int, int], tuple[int]]:
    """The shapes of the two int32 arrays that a build works in."""
    lines = _LINES + max_seq_len.bit_length() + 1
    return (lines, elements), (_HEADER_WORDS + rows * _ROW_WORDS,)
