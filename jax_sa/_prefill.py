"""Long rows, whose texts CUDA may build in parallel before an op appends to them.

The handler `prefill` builds the texts for which that is faster, and says how many tokens of each
row are left to append; the op then runs on those, whatever else it does. How many tokens a row has
only the device knows, so it is the device that chooses; `ffi/prefill.h` says how.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_sa._targets import target_name
from jax_sa.state import State

LONG_ROW = 256
"""Tokens of a row from which on it can pay to build its text in parallel."""

_OPS = ("extend", "extend_lookup", "extend_lookup_tree")
"""Ops whose operands are tokens, lengths and slots first, and the leaves of a state last."""

_LEAVES = len(dataclasses.fields(State))
_ELEMENTS_PER_TOKEN = 350
_MAX_ELEMENTS = 2**22

# As in ffi/prefill.h; the handler sees to it that they are enough.
_LINES = 11
_HEADER_WORDS = 64 + 256 * 257
_ROW_WORDS = 7


def run(op: str, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The operands of a target as they are once long texts were built: lengths and leaves change.

    Args:
      op: the op's public name.
      operands: of one device; the tokens are int32[B, T].
    """
    if op not in _OPS or 0 in operands[0].shape or operands[0].shape[1] < LONG_ROW:
        return list(operands)
    first = len(operands) - _LEAVES
    tokens, lengths, slots, *others = operands[:first]
    left, *leaves = _prefill.bind(tokens, lengths, slots, *operands[first:])
    return [tokens, left, slots, *others, *leaves]


def _build(
    tokens: jax.Array, lengths: jax.Array, slots: jax.Array, *leaves: jax.Array
) -> tuple[jax.Array, ...]:
    """Calls the handler."""
    max_seq_len = State(*leaves).max_seq_len
    workspace = [
        _replicated(tokens, shape) for shape in workspace_shapes(*tokens.shape, max_seq_len)
    ]
    updated = [jax.typeof(leaf) for leaf in leaves]
    types = [jax.typeof(lengths), *workspace, *updated]
    aliases = {3 + i: 1 + len(workspace) + i for i in range(len(leaves))}
    call = jax.ffi.ffi_call(target_name("prefill"), types, input_output_aliases=aliases)
    left, *results = call(tokens, lengths, slots, *leaves)
    return left, *results[len(workspace) :]


# A primitive, because it is lowered differently for each platform: for all but CUDA, to nothing.
_prefill = Primitive("jax_sa_prefill")
_prefill.multiple_results = True
_prefill.def_abstract_eval(lambda tokens, lengths, slots, *leaves: [lengths, *leaves])
mlir.register_lowering(
    _prefill, lambda context, tokens, lengths, slots, *leaves: [lengths, *leaves]
)
mlir.register_lowering(_prefill, mlir.lower_fun(_build, multiple_results=True), platform="cuda")


def _replicated(like: jax.Array, shape: tuple[int, ...]) -> Any:
    """The type of a result that varies as `like` does, and is the same size on every device."""
    argument = jax.typeof(like)
    spec = jax.sharding.PartitionSpec(*[None] * len(shape))
    return argument.update(shape=shape, sharding=argument.sharding.update(spec=spec))


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
