"""Long rows, whose texts CUDA may build in parallel, and the room that it needs for that.

The handlers for long rows are `extend` and `extend_lookup` with two more results, which they work
in. How many tokens a row has only the device knows, and there it decides which texts to build;
`ffi/prefill.h` says how.
"""

from collections.abc import Callable, Sequence

import jax

from jax_sa._targets import result_type

LONG_ROW = 256
"""Tokens of a row from which on it can pay to build its text in parallel."""

_OPS = ("extend", "extend_lookup")
_ELEMENTS_PER_TOKEN = 350
_MAX_ELEMENTS = 2**22

# As in ffi/prefill.h, which sees to it that they are enough.
_LINES = 11
_HEADER_WORDS = 64 + 256 * 257
_ROW_WORDS = 8


def run(
    op: str,
    operands: Sequence[jax.Array],
    max_seq_len: int,
    call: Callable[..., Sequence[jax.Array]],
) -> Sequence[jax.Array]:
    """`call(op, workspace, *operands)`, or the same for long rows where the platform has it.

    Args:
      op: the op's public name.
      operands: of the target; of an op that appends, the tokens int32[B, T] come first.
      max_seq_len: N.
      call: calls a target with the types of a workspace as its last results.

    Returns:
      The results without the workspace.
    """
    if op not in _OPS or 0 in operands[0].shape or operands[0].shape[1] < LONG_ROW:
        return call(op, (), *operands)
    shapes = workspace_shapes(*operands[0].shape, max_seq_len)
    workspace = [result_type(operands[0], shape) for shape in shapes]

    def append(*operands: jax.Array) -> Sequence[jax.Array]:
        return call(op, (), *operands)

    def append_long(*operands: jax.Array) -> Sequence[jax.Array]:
        return call(f"{op}_long", workspace, *operands)[: -len(workspace)]

    return jax.lax.platform_dependent(*operands, cuda=append_long, default=append)


def capacity(rows: int, width: int, max_seq_len: int) -> int:
    """Elements that are built at once, at most; a text of n tokens has n + 1.

    No more than it could pay to build for rows of `width` tokens. Where that is more than
    `_MAX_ELEMENTS`, the texts are built in groups that fit.
    """
    return min(rows * (max_seq_len + 1), _ELEMENTS_PER_TOKEN * width, _MAX_ELEMENTS)


def workspace_shapes(rows: int, width: int, max_seq_len: int) -> tuple[tuple[int, int], tuple[int]]:
    """The shapes of the two int32 arrays in which the texts of B rows of `width` tokens are built.

    They have 4 * (12 + log2(2 * max_seq_len)) bytes for each element, 112 for 32,768 tokens, and
    260 KB.
    """
    lines = _LINES + max_seq_len.bit_length() + 1
    elements = capacity(rows, width, max_seq_len)
    return (lines, elements), (_HEADER_WORDS + rows * _ROW_WORDS,)
