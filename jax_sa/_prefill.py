"""The room in which CUDA builds the texts of long rows in parallel; `ffi/prefill.h` divides it."""

LONG_ROW = 512
"""Tokens of a row from which on it can pay to build its text in parallel."""

_ELEMENTS_PER_TOKEN = 400
_MAX_ELEMENTS = 2**22

_LINES = 11
_HEADER_WORDS = 64 + 256 * 257
_ROW_WORDS = 8


def capacity(rows: int, width: int, max_seq_len: int) -> int:
    """Elements that are built at once, at most; a text of n tokens has n + 1.

    No more than it could pay to build for rows of `width` tokens. Where that is more than
    `_MAX_ELEMENTS`, the texts are built in groups that fit.
    """
    return min(rows * (max_seq_len + 1), _ELEMENTS_PER_TOKEN * width, _MAX_ELEMENTS)


def workspace_shapes(rows: int, width: int, max_seq_len: int) -> tuple[tuple[int, int], tuple[int]]:
    """The shapes of the two int32 arrays that a build of rows of `width` tokens works in.

    They have 4 * (12 + log2(2 * max_seq_len)) bytes for each element, 112 for 32,768 tokens.
    """
    lines = _LINES + max_seq_len.bit_length() + 1
    elements = capacity(rows, width, max_seq_len)
    return (lines, elements), (_HEADER_WORDS + rows * _ROW_WORDS,)
