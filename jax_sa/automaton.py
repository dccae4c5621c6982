"""The ops on a state: check the arguments, call the target.

Letters: S slots, N `max_seq_len`, B rows of a call, T tokens of a row, K draft tokens.

All ops work in jit, scan, fori_loop, while_loop and shard_map over the slot axis. The state is
updated in place where it is donated or carried by a loop; where it is neither, XLA copies it once.
A row whose length is out of range appends nothing, and `Status.OUT_OF_RANGE` of its slot says so.
A row whose slot is out of range changes nothing and drafts nothing, and as it has no slot whose
status could say so, nothing does: a slot id must be -1 or in 0..S-1.
"""

import dataclasses
import enum
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import (
    INT32_MAX,
    check_array,
    check_bool,
    check_choice,
    check_int,
    check_positive_float,
)
from jax_sa._targets import result_type, target_name
from jax_sa._vmap import refuse_vmap
from jax_sa.pool import Pool, check_pool
from jax_sa.state import State, check_state

DRAFT_FILL = 0
"""The token at the places of a draft beyond its length: one that every model can embed."""

MAX_DRAFT = 2**16
"""The largest `max_draft`."""

INSTEAD_OF_VMAP = (
    "give it one state whose slot axis holds all texts, with a row for each, "
    "or with `slots` that say whose each row is"
)


class Source(enum.IntEnum):
    """Values of `Draft.source`: where the drafted tokens come from."""

    NONE = 0
    """Nowhere: there is no match, and so no draft."""
    OWN = 1
    """The row's own text."""
    POOL = 2
    """A text in the pool."""
    NEURAL = 3
    """A neural drafter."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """The tokens after an earlier occurrence of the longest repeated suffix, for B rows."""

    tokens: jax.Array
    """int32[B, K] the drafted tokens; `DRAFT_FILL` beyond `length`."""
    length: jax.Array
    """int32[B] drafted tokens, 0..K."""
    match_length: jax.Array
    """int32[B] tokens of the suffix that occurred before; 0 without a match."""
    match_end: jax.Array
    """int32[B] tokens of the text up to the earlier occurrence's end, so the index in the text of
    the first drafted token; in a draft from a pool, its index in the group's `Pool.ring`. 0 without
    a match."""
    source: jax.Array
    """int32[B] a `Source`: where the match is, even if a limit of 0 leaves no tokens of it."""


def extend(
    state: State, tokens: jax.Array, lengths: jax.Array, *, slots: jax.Array | None = None
) -> State:
    """Appends `tokens[b, :lengths[b]]` to the text of row b's slot.

    Args:
      state: of S slots.
      tokens: int32[B, T]; every int32 is a legal token. T may be 1 or a whole prompt.
      lengths: int32[B] in 0..T; 0 leaves the slot alone. Another length appends nothing, and
        `Status.OUT_OF_RANGE` says so.
      slots: int32[B], any subset of the slots in any order; -1 skips the row. None: row b is slot
        b, and B is S. If rows name one slot twice, the first has it, whether its length is in range
        or not, and `Status.CONFLICT` says so.

    Returns:
      The state. Tokens that find no room are not appended; `Status.FULL` says so.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_state(state)
    tokens, lengths, slots = _check_text(state, tokens, lengths, slots)
    _, state = _call("extend", (tokens, lengths, slots), state, updates=True)
    return state


def lookup(
    state: State,
    *,
    max_draft: int,
    slots: jax.Array | None = None,
    limits: jax.Array | None = None,
    min_match: int = 1,
    max_match: int | None = None,
    occurrence: str = "recent",
    draft_factor: float | None = None,
    periodic: bool = True,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
) -> Draft:
    """Finds the longest suffix of each text that occurred before, and drafts what followed it.

    Args:
      state: of S slots; it is only read, so rows may share a slot.
      max_draft: K, the tokens to draft at most.
      slots: int32[B], as in `extend`; None: all slots, B is S.
      limits: int32[B] tokens to draft at most for each row, clipped to 0..K, from the device, so
        that one compiled program serves every policy. The match is the same. None: no limit.
      min_match: shorter matches draft nothing.
      max_match: longer matches count as this long, and may so be found at an end closer by; with
        `min_match == max_match` this is a lookup of fixed length. None: no limit.
      occurrence: which earlier occurrence to follow, "first" or "recent". The most recent end of a
        suffix is kept up to date for as long as it is among the text's `WINDOW` longest repeated
        ones; beyond them, an earlier end may be followed.
      draft_factor: drafts at most `ceil(draft_factor * match_length)` tokens, and of a match in
        the pool, which is less trustworthy, `ceil(draft_factor / 2 * match_length)`. None: no
        limit.
      periodic: where the continuation reaches the end of the text, go on with its beginning
        (the text then repeats with that period) instead of stopping there. A draft from the pool
        always stops at the end of its text.
      pool: of G groups, which is only read. Where the longest suffix that occurs in the pool is
        longer than the one in the row's own text, the draft comes from the pool: there it is found
        by `NGRAM_LENGTHS`, compared up to `MAX_POOL_MATCH` tokens, and of equally long ones the
        most recent is followed. None: the text alone.
      groups: int32[B] the group that each row may see, 0..G-1; -1, or any other, for none. None:
        group 0 for all rows.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    check_state(state)
    max_draft, attributes = check_lookup(
        max_draft, min_match, max_match, occurrence, draft_factor, periodic
    )
    rows, slots = _check_slots(state, slots)
    limits = _check_limits(rows, limits)
    seen = _check_seen(rows, pool, groups)
    drafted = _draft_types(state, rows, max_draft)
    results, _ = _call("lookup", (slots, limits, *seen), state, drafted, attributes)
    return Draft(*results)


def extend_lookup(
    state: State,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    max_draft: int,
    slots: jax.Array | None = None,
    limits: jax.Array | None = None,
    min_match: int = 1,
    max_match: int | None = None,
    occurrence: str = "recent",
    draft_factor: float | None = None,
    periodic: bool = True,
    pool: Pool | None = None,
    groups: jax.Array | None = None,
) -> tuple[State, Draft]:
    """`extend`, then `lookup` of the same rows, in one kernel launch.

    Arguments, results and errors are theirs, but for one thing: of rows that name one slot, only
    the first drafts.
    """
    check_state(state)
    max_draft, attributes = check_lookup(
        max_draft, min_match, max_match, occurrence, draft_factor, periodic
    )
    tokens, lengths, slots = _check_text(state, tokens, lengths, slots)
    rows = tokens.shape[0]
    limits = _check_limits(rows, limits)
    arguments = (tokens, lengths, slots, limits, *_check_seen(rows, pool, groups))
    drafted = _draft_types(state, rows, max_draft)
    results, state = _call("extend_lookup", arguments, state, drafted, attributes, updates=True)
    return state, Draft(*results)


def reset(state: State, slots: jax.Array) -> State:
    """Empties slots, their status included: every array of an empty slot is zeros but its seed.

    Args:
      state: of S slots.
      slots: int32[B]; -1 skips the row.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_state(state)
    check_array("slots", slots, jnp.int32, ("B",))
    _, state = _call("reset", (slots,), state, updates=True)
    return state


def copy_slots(state: State, src: jax.Array, dst: jax.Array) -> State:
    """Makes slot `dst[b]` a copy of slot `src[b]`, seed included, as when a request is forked.

    Args:
      state: of S slots.
      src: int32[B]; -1 skips the row.
      dst: int32[B]; -1 skips the row. If rows name one slot twice, the first has it. A row whose
        source another row overwrites copies nothing. `Status.CONFLICT` of the destination says so.
        A row whose source is out of range copies nothing; `Status.OUT_OF_RANGE` says so.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_state(state)
    (rows,) = check_array("src", src, jnp.int32, ("B",))
    check_array("dst", dst, jnp.int32, (rows,))
    _, state = _call("copy_slots", (src, dst), state, updates=True)
    return state


def insert(state: State, built: State, slot: jax.Array | int) -> State:
    """Makes one slot a copy of the only slot of another state, seed and status included.

    Args:
      state: of S slots.
      built: of one slot with the same `max_seq_len`, as `build_on_host` returns it. It is only
        read. In jit, it must be on the devices of `state`.
      slot: int32[] or an int in 0..S-1. An array out of that range, known on the device only,
        changes nothing.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype, or an int out of range.
    """
    check_state(state)
    check_state(built)
    if (built.num_slots, built.max_seq_len) != (1, state.max_seq_len):
        raise ValueError(
            f"built: expected one slot of max_seq_len {state.max_seq_len}, "
            f"got {built.num_slots} of {built.max_seq_len}"
        )
    if isinstance(slot, jax.Array | np.ndarray):
        check_array("slot", slot, jnp.int32, ())
    else:
        slot = np.int32(check_int("slot", slot, 0, state.num_slots - 1))
    _, state = _call("insert", (jnp.asarray(slot), *jax.tree.leaves(built)), state, updates=True)
    return state


def read_tokens(
    state: State, starts: jax.Array, *, length: int, slots: jax.Array | None = None
) -> jax.Array:
    """A part of each text, without a copy of the state.

    Args:
      state: of S slots; it is only read, so rows may share a slot.
      starts: int32[B] the first token's index in the text.
      length: tokens to read of each row.
      slots: int32[B], as in `extend`; None: all slots, B is S.

    Returns:
      int32[B, length] tokens `starts[b] + i` of the texts; `DRAFT_FILL` before a text's beginning
      and beyond its end, and in rows without a slot.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    check_state(state)
    length = check_int("length", length, 1)
    rows, slots = _check_slots(state, slots)
    check_array("starts", starts, jnp.int32, (rows,))
    types = [result_type(state.length, (rows, length))]
    (tokens,), _ = _call("read_tokens", (starts, slots), state, types)
    return tokens


def validate(state: State) -> jax.Array:
    """Checks that each slot holds the automaton of its text, exactly.

    The ops trust the state that they are given: contents that no op left there can make them
    crash, loop forever, or read and write memory that is not theirs. A state from a source that is
    not trusted must be validated before anything else is done with it. In a slot whose bits are 0,
    no op does any of this, whatever is appended later; a slot with others may be `reset`.

    Each text is appended to scratch slots once more, and what comes of it is compared with what
    is there. That takes as long as appending the texts, and as much memory as the state has. It is
    safe on any contents, and the texts cannot have been chosen to make it slow. It judges neither
    a slot's `status` nor its `seed`; who chose the seed may have chosen texts that are slow to
    extend (see `init`).

    Args:
      state: of S slots; it is only read.

    Returns:
      int32[S] bits of `Invalid`; 0 for a slot that is valid.

    Raises:
      ValueError, TypeError: at trace time, if the arrays do not belong together.
    """
    check_state(state)
    scratch = [jax.typeof(leaf) for leaf in jax.tree.leaves(state)]
    types = [result_type(state.length, (state.num_slots,)), *scratch]
    (invalid, *_), _ = _call("validate", (), state, types)
    return invalid


def _check_text(
    state: State, tokens: Any, lengths: Any, slots: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, slots = _check_slots(state, slots)
    check_array("tokens", tokens, jnp.int32, (rows, "T"))
    check_array("lengths", lengths, jnp.int32, (rows,))
    return tokens, lengths, slots


def _check_slots(state: State, slots: Any) -> tuple[int, jax.Array]:
    """The rows of a call, and `slots` as the targets take it: empty where rows are slots."""
    if slots is None:
        return state.num_slots, jnp.zeros((0,), jnp.int32)
    (rows,) = check_array("slots", slots, jnp.int32, ("B",))
    return rows, slots


def _check_limits(rows: int, limits: Any) -> jax.Array:
    """`limits` as the targets take them: empty where there are none."""
    if limits is None:
        return jnp.zeros((0,), jnp.int32)
    check_array("limits", limits, jnp.int32, (rows,))
    return limits


def _check_seen(rows: int, pool: Any, groups: Any) -> tuple[Any, ...]:
    """What rows see of a pool, as the targets take it: groups, ring, head and table."""
    if pool is None:
        if groups is not None:
            raise ValueError("groups: expected a pool whose groups they are, got none")
        # Not constants of NumPy: jaxlib 0.11.2 crashes compiling empty ones inside shard_map.
        return tuple(jnp.zeros((0,) * rank, jnp.int32) for rank in (1, 2, 1, 3))
    check_pool(pool)
    if groups is None:
        groups = jnp.zeros((0,), jnp.int32)
    else:
        check_array("groups", groups, jnp.int32, (rows,))
    return groups, pool.ring, pool.head, pool.table


def check_lookup(
    max_draft: Any,
    min_match: Any,
    max_match: Any,
    occurrence: Any,
    draft_factor: Any,
    periodic: Any,
) -> tuple[int, dict[str, Any]]:
    """The options of a lookup, checked: `max_draft`, and the attributes of its targets.

    Attributes are always of these types, because XLA compares them by value only.
    """
    max_draft = check_int("max_draft", max_draft, 1, MAX_DRAFT)
    min_match = check_int("min_match", min_match, 1)
    return max_draft, {
        "min_match": min_match,
        "max_match": INT32_MAX
        if max_match is None
        else check_int("max_match", max_match, min_match),
        "recent": check_choice("occurrence", occurrence, ("first", "recent")) == "recent",
        "periodic": check_bool("periodic", periodic),
        "draft_factor": math.inf
        if draft_factor is None
        else check_positive_float("draft_factor", draft_factor),
    }


def _draft_types(state: State, rows: int, max_draft: int) -> list[jax.ShapeDtypeStruct]:
    shapes = ((rows, max_draft), *[(rows,)] * 4)
    return [result_type(state.length, shape) for shape in shapes]


def _call(
    op: str,
    arguments: tuple[jax.Array, ...],
    state: State,
    results: list[jax.ShapeDtypeStruct] | None = None,
    attributes: dict[str, Any] | None = None,
    *,
    updates: bool = False,
) -> tuple[list[jax.Array], State]:
    """Calls a target with the state's leaves last; an update aliases every one of them."""
    results = results or []
    leaves, structure = jax.tree.flatten(state)
    outputs = jax.ffi.ffi_call(
        target_name(op),
        results + [jax.typeof(leaf) for leaf in leaves] * updates,
        input_output_aliases={len(arguments) + i: len(results) + i for i in range(len(leaves))}
        if updates
        else None,
    )(*refuse_vmap(op, INSTEAD_OF_VMAP, [*arguments, *leaves]), **(attributes or {}))
    if updates:
        state = jax.tree.unflatten(structure, outputs[len(results) :])
    return outputs[: len(results)], state
