"""The ops on a `ScanState`: in plain `jax.numpy` on every backend, and by kernels where there are.

Letters: S slots, N `max_seq_len`, B rows of a call, T tokens of a row, K draft tokens.

`jax_sa.automaton` documents the ops and checks their arguments. A function here takes the state,
the operands of the op's target by name, None for one that is not given, the target's results and
its attributes; it returns the results, and the state as the op left it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._call import Argument
from jax_sa._checks import INT32_MAX
from jax_sa._state_call import call_on_state
from jax_sa._target import Result
from jax_sa._targets import platforms
from jax_sa.draft import DRAFT_FILL, Source
from jax_sa.scan_state import ScanState
from jax_sa.state import Invalid, Status

UNROLLED = 16
"""Up to so many appended tokens are compared without a loop."""

ROUND = 8
"""Tokens compared in a round of the loop, which ends when no distance matches any more."""

Results = Sequence[Result]
Outputs = tuple[list[jax.Array], ScanState]


def call(
    op: str,
    arguments: Sequence[Argument],
    state: ScanState,
    results: Results,
    attributes: Mapping[str, Any],
    *,
    updates: bool,
) -> Outputs:
    """As `call_on_state`, for the op of this name on a scan.

    One traced program serves every platform: whether a kernel runs it or plain jnp is decided
    where it is lowered.

    Raises:
      ValueError: a lookup is to see a pool.
      TypeError: the op is none of a scan's.
    """
    if op not in _OPS:
        raise TypeError(f"state: expected a jax_sa.State for {op}, got ScanState")
    if any(a.name.startswith("pool.") and a.value is not None for a in arguments):
        raise ValueError("pool: expected None with a ScanState, got a Pool")
    own = [a for a in arguments if a.name != "groups" and not a.name.startswith("pool.")]
    operands = tuple(a._replace(value=None) for a in own)
    arrays = {a.name: a.value for a in own}
    return _run(op, operands, tuple(results), tuple(attributes.items()), updates, arrays, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), inline=True)
def _run(
    op: str,
    operands: tuple[Argument, ...],
    results: tuple[Result, ...],
    attributes: tuple[tuple[str, Any], ...],
    updates: bool,
    arrays: Mapping[str, jax.Array | None],
    state: ScanState,
) -> Outputs:
    """Jitted, so that an op called outside of jit is traced and compiled once."""

    def kernel(arrays: Mapping[str, jax.Array | None], state: ScanState) -> Outputs:
        arguments = [operand._replace(value=arrays[operand.name]) for operand in operands]
        return call_on_state(name, arguments, state, results, dict(attributes), updates=updates)

    def plain(arrays: Mapping[str, jax.Array | None], state: ScanState) -> Outputs:
        return _OPS[op](state, results=results, **arrays, **dict(attributes))

    name = f"scan_{op}"
    kernels = {
        platform.name.lower(): kernel for platform in platforms() if name in platform.handlers
    }
    if not kernels:
        return plain(arrays, state)
    return jax.lax.platform_dependent(arrays, state, **kernels, default=plain)


class _Rows(NamedTuple):
    """Which slot each of B rows has."""

    slots: jax.Array | None
    """int32[B] in 0..S, S for a row without a slot. None: row b is slot b."""
    has_slot: jax.Array | None = None
    """bool[B], where there are `slots`."""
    conflict: jax.Array | None = None
    """bool[B] whether a later row names the same slot, where there are `slots` to write."""

    def take(self, state: ScanState) -> ScanState:
        """A state with a slot for each row; that of a row without one is empty."""
        if self.slots is None:
            return state
        rows = jax.tree.map(lambda leaf: leaf.at[self.slots].get(mode="fill", fill_value=0), state)
        # So that the rows are read before the state is updated, which then needs no copy.
        return jax.lax.optimization_barrier((state, rows))[1]

    def put(self, state: ScanState, texts: ScanState) -> ScanState:
        """The state with the rows' slots written back."""
        if self.slots is None:
            return texts
        return jax.tree.map(
            lambda leaf, rows: leaf.at[self.slots].set(rows, mode="drop"), state, texts
        )


def _named_rows(state: ScanState, slots: jax.Array | None) -> _Rows:
    """The rows of an op that only reads."""
    return _Rows(None if slots is None else _in_range(slots, state))


def _claimed_rows(state: ScanState, slots: jax.Array | None) -> _Rows:
    """The rows of an op that writes: the first row that names a slot has it."""
    if slots is None:
        return _Rows(None)
    slots = _in_range(slots, state)
    row = jnp.arange(slots.shape[0], dtype=jnp.int32)
    same = slots[:, None] == slots[None]
    taken = jnp.any(same & (row[None] < row[:, None]), axis=1)
    conflict = jnp.any(same & (row[None] > row[:, None]), axis=1)
    slots = jnp.where(taken, state.num_slots, slots)
    return _Rows(slots, slots < state.num_slots, conflict)


def _in_range(slots: jax.Array, state: ScanState) -> jax.Array:
    """`slots`, S for those out of range: an index that jnp drops, unlike a negative one."""
    return jnp.where((slots >= 0) & (slots < state.num_slots), slots, state.num_slots)


def _extend(
    state: ScanState,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array | None,
    results: Results,
) -> Outputs:
    rows = _claimed_rows(state, slots)
    return [], rows.put(state, _append(rows, rows.take(state), tokens, lengths))


def _lookup(
    state: ScanState,
    slots: jax.Array | None,
    limits: jax.Array | None,
    results: Results,
    **options: Any,
) -> Outputs:
    texts = _named_rows(state, slots).take(state)
    return _draft(texts, limits, results[0].shape[0], **options), state


def _extend_lookup(
    state: ScanState,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array | None,
    limits: jax.Array | None,
    results: Results,
    **options: Any,
) -> Outputs:
    rows = _claimed_rows(state, slots)
    texts = _append(rows, rows.take(state), tokens, lengths)
    return _draft(texts, limits, results[0].shape[0], **options), rows.put(state, texts)


def _reset(state: ScanState, slots: jax.Array, results: Results) -> Outputs:
    slots = _in_range(slots, state)
    return [], jax.tree.map(lambda leaf: leaf.at[slots].set(0, mode="drop"), state)


def _copy_slots(state: ScanState, src: jax.Array, dst: jax.Array, results: Results) -> Outputs:
    source, destination = _in_range(src, state), _in_range(dst, state)
    named = (src != -1) & (destination < state.num_slots)
    row = jnp.arange(src.shape[0], dtype=jnp.int32)
    other = named[None] & (row[None] != row[:, None])
    same = other & (dst[None] == dst[:, None])
    overwritten = jnp.any(other & (dst[None] == src[:, None]), axis=1)
    first = named & ~jnp.any(same & (row[None] < row[:, None]), axis=1)
    in_range = source < state.num_slots
    copies = first & in_range & ~overwritten
    status = jnp.where(in_range, 0, int(Status.OUT_OF_RANGE))
    status |= jnp.where(jnp.any(same, axis=1) | overwritten, int(Status.CONFLICT), 0)
    status |= state.status.at[jnp.where(copies, source, destination)].get(mode="fill", fill_value=0)

    copied = _Rows(jnp.where(copies, destination, state.num_slots))
    copy = copied.put(state, _Rows(source).take(state))
    said = jnp.where(first, destination, state.num_slots)
    status = state.status.at[said].set(status, mode="drop")
    return [], ScanState(copy.length, status, copy.tokens, copy.match)


def _insert(state: ScanState, slot: jax.Array, results: Results, **built: jax.Array) -> Outputs:
    leaves = {name.removeprefix("built."): leaf for name, leaf in built.items()}
    return [], _Rows(_in_range(slot, state)).put(state, ScanState(**leaves))


def _read_tokens(
    state: ScanState, starts: jax.Array, slots: jax.Array | None, results: Results
) -> Outputs:
    (length,) = results[0].shape
    texts = _named_rows(state, slots).take(state)
    places = jnp.clip(starts, -length, state.max_seq_len)[:, None] + _iota(length)
    tokens = _gather(texts.tokens, places)
    return [jnp.where((places >= 0) & (places < texts.length[:, None]), tokens, DRAFT_FILL)], state


def _validate(state: ScanState, results: Results) -> Outputs:
    length = state.length
    possible = (length >= 0) & (length <= state.max_seq_len)
    empty = jax.tree.map(jnp.zeros_like, state)
    text = _append(_Rows(None), empty, state.tokens, jnp.where(possible, length, 0))
    wrong = jnp.any(text.match != state.match, axis=1)
    invalid = jnp.where(wrong, int(Invalid.MATCH), 0)
    return [jnp.where(possible, invalid, int(Invalid.LENGTH))], state


_OPS = {
    "extend": _extend,
    "lookup": _lookup,
    "extend_lookup": _extend_lookup,
    "reset": _reset,
    "copy_slots": _copy_slots,
    "insert": _insert,
    "read_tokens": _read_tokens,
    "validate": _validate,
}


def _append(rows: _Rows, texts: ScanState, tokens: jax.Array, lengths: jax.Array) -> ScanState:
    """The rows' texts with `tokens[b, :lengths[b]]` appended, as far as they find room."""
    width = tokens.shape[1]
    fits = (lengths >= 0) & (lengths <= width)
    count = jnp.where(fits, lengths, 0)
    room = texts.max_seq_len - texts.length
    taken = jnp.minimum(count, room)
    status = texts.status | jnp.where(fits, 0, int(Status.OUT_OF_RANGE))
    status |= jnp.where(count > room, int(Status.FULL), 0)
    if rows.slots is not None:
        taken = jnp.where(rows.has_slot, taken, 0)
        status |= jnp.where(rows.conflict, int(Status.CONFLICT), 0)
    tokens = tokens[:, : texts.max_seq_len]
    text = texts.tokens
    if tokens.shape[1]:
        text = _write(text, texts.length, tokens, taken)
    length = texts.length + taken
    match = _grow(texts.match, text, length, taken, tokens.shape[1])
    return ScanState(length, status, text, match)


def _write(text: jax.Array, length: jax.Array, tokens: jax.Array, taken: jax.Array) -> jax.Array:
    """Texts int32[B, N] with `tokens[b, :taken[b]]` written at `length[b]`.

    The block that is written stays within the text, so near its end it begins before `length`.
    """
    width = tokens.shape[1]
    start = jnp.minimum(length, text.shape[1] - width)
    index = (start - length)[:, None] + _iota(width)
    block = jnp.where(
        (index >= 0) & (index < taken[:, None]),
        _gather(tokens, index),
        _windows(text, start, width),
    )
    return jax.vmap(lambda row, block, start: jax.lax.dynamic_update_slice(row, block, (start,)))(
        text, block, start
    )


def _grow(
    match: jax.Array, text: jax.Array, length: jax.Array, taken: jax.Array, width: int
) -> jax.Array:
    """`match` after the last `taken` tokens of the texts were appended, `width` at most.

    At each distance, the tokens are compared from the last one backwards. Where all match, what
    had matched before them goes on.
    """
    max_seq_len = text.shape[1]
    distance = 1 + _iota(max_seq_len)
    backwards = _backwards(text, length, max_seq_len + width + ROUND)

    def compare(i: Any, matching: jax.Array, run: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compares the tokens that have i after them."""
        token = jax.lax.dynamic_slice_in_dim(backwards, i, 1, axis=1)
        earlier = jax.lax.dynamic_slice_in_dim(backwards, i + 1, max_seq_len, axis=1)
        matching &= (token == earlier) & (distance < (length - i)[:, None]) & (i < taken)[:, None]
        return matching, run + matching.astype(jnp.int32)

    def compare_round(carry: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
        i, matching, run = carry
        for _ in range(ROUND):
            matching, run = compare(i, matching, run)
            i += 1
        return i, matching, run

    matching, run = match >= 0, jnp.zeros_like(match)
    if width <= UNROLLED:
        for i in range(width):
            matching, run = compare(i, matching, run)
    else:
        first = jnp.zeros((), jnp.int32)
        _, _, run = jax.lax.while_loop(
            lambda carry: (carry[0] < width) & jnp.any(carry[1]),
            compare_round,
            (first, matching, run),
        )
    return jnp.where(run == taken[:, None], run + match, run)


def _draft(
    texts: ScanState,
    limits: jax.Array | None,
    max_draft: int,
    *,
    min_match: int,
    max_match: int,
    recent: bool,
    periodic: bool,
    draft_factor: float,
) -> list[jax.Array]:
    """The arrays of a `Draft` for B texts."""
    match = jnp.minimum(texts.match, max_match)
    length = jnp.max(match, axis=1)
    longest = match == length[:, None]
    distances = 1 + _iota(texts.max_seq_len)
    if recent:
        distance = jnp.min(jnp.where(longest, distances, texts.max_seq_len), axis=1)
    else:
        distance = jnp.max(jnp.where(longest, distances, 1), axis=1)
    # A text that lost tokens predicts the wrong ones.
    whole = (texts.status & int(Status.FULL | Status.OUT_OF_RANGE)) == 0
    found = whole & (length >= min_match)
    length = jnp.where(found, length, 0)
    end = jnp.where(found, texts.length - distance, 0)

    limit = jnp.full_like(length, max_draft) if limits is None else jnp.clip(limits, 0, max_draft)
    if not periodic:
        limit = jnp.minimum(limit, distance)
    limit = jnp.minimum(limit, _wanted(length, max_draft, draft_factor))
    limit = jnp.where(found, limit, 0)
    place = _iota(max_draft)
    tokens = _gather(texts.tokens, end[:, None] + place % distance[:, None])
    tokens = jnp.where(place < limit[:, None], tokens, DRAFT_FILL)
    source = jnp.where(found, int(Source.OWN), int(Source.NONE))
    return [tokens, jnp.stack([limit, length, end, source.astype(jnp.int32)], axis=1)]


def _wanted(length: jax.Array, max_draft: int, draft_factor: float) -> jax.Array:
    """`ceil(draft_factor * length)`, clipped to `max_draft`, as float64 gives it.

    Devices may have no float64. So for each number of tokens below `max_draft`, the longest match
    that wants no more is found here, and on the device each match is compared with those.
    """
    if math.isinf(draft_factor):
        return jnp.full_like(length, max_draft)
    drafted = np.arange(max_draft, dtype=np.float64)
    most = np.floor(np.minimum(drafted / draft_factor, INT32_MAX - 1))
    most += np.ceil(draft_factor * (most + 1)) <= drafted  # the division was rounded down
    most -= np.ceil(draft_factor * most) > drafted  # or up
    return jnp.sum(length[:, None] > most.astype(np.int32)[None], axis=1, dtype=jnp.int32)


def _iota(count: int) -> jax.Array:
    """int32[1, count]: 0, 1, ..."""
    return jnp.arange(count, dtype=jnp.int32)[None]


def _gather(rows: jax.Array, places: jax.Array) -> jax.Array:
    """`rows[b, places[b, i]]`; places out of range give any element."""
    return jnp.take_along_axis(rows, jnp.clip(places, 0, rows.shape[1] - 1), axis=1)


def _windows(rows: jax.Array, starts: jax.Array, size: int) -> jax.Array:
    """`rows[b, starts[b]:][:size]`, which must be in range."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (size,)))(rows, starts)


def _backwards(text: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """int32[B, size]: each text from its last token to its first, then anything."""
    padded = jnp.pad(text[:, ::-1], ((0, 0), (0, size)))
    return _windows(padded, text.shape[1] - length, size)
