"""The ops on a state: check the arguments, call the target.

Letters: S slots, N `max_seq_len`, B rows of a call, T tokens of a row, K draft tokens.

All ops work in jit, scan, fori_loop, while_loop and vmap, on a state that is split over devices by
its slots (docs/sharding.md), and in shard_map over the slot axis. The state is updated in place
where it is donated or carried by a loop; where it is neither, XLA copies it once.
A row whose length is out of range appends nothing, and `Status.OUT_OF_RANGE` of its slot says so.
A row whose slot is out of range changes nothing and drafts nothing, and as it has no slot whose
status could say so, nothing does: a slot id must be -1 or in 0..S-1.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa import scan
from jax_sa._call import Argument, leaves_of
from jax_sa._checks import (
    INT32_MAX,
    check_array,
    check_bool,
    check_choice,
    check_int,
    check_positive_float,
)
from jax_sa._state_call import call_on_state
from jax_sa._target import GROUP_IDS, GROUPS, ROWS, SLOT_IDS, SLOTS, Result
from jax_sa.draft import DRAFT_FILL as DRAFT_FILL
from jax_sa.draft import DRAFT_NUMBERS
from jax_sa.draft import Draft as Draft
from jax_sa.draft import Source as Source
from jax_sa.pool import Pool, check_pool
from jax_sa.scan_state import ScanState
from jax_sa.state import AnyState, State, StateT, check_state

MAX_DRAFT = 2**16
"""The largest `max_draft`."""


def extend(
    state: StateT, tokens: jax.Array, lengths: jax.Array, *, slots: jax.Array | None = None
) -> StateT:
    """Appends `tokens[b, :lengths[b]]` to the text of row b's slot.

    On CUDA, where T is 256 or more, the automata of long rows are built in parallel if that is
    faster, in up to 0.5 GB of temporary memory (docs/automaton.md). They are the same, up to the
    places of edges in their table.

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
    _check_text(state, tokens, lengths, slots)
    operands = [
        Argument("tokens", ROWS, tokens),
        Argument("lengths", ROWS, lengths),
        Argument("slots", SLOT_IDS, slots),
    ]
    _, state = _call("extend", operands, state, updates=True)
    return state


def lookup(
    state: AnyState,
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
    rows = _check_slots(state, slots)
    _check_limits(rows, limits)
    operands = [
        Argument("slots", SLOT_IDS, slots),
        Argument("limits", ROWS, limits),
        *_check_seen(rows, pool, groups),
    ]
    drafted = _draft_results(max_draft)
    (tokens, numbers), _ = _call("lookup", operands, state, drafted, attributes)
    return Draft(tokens, numbers=numbers)


def lookup_after(
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
) -> Draft:
    """Drafts what would follow if `tokens[b, :lengths[b]]` came next in each text.

    So the tokens of another drafter can be followed on (`jax_sa.join_drafts`): the state is only
    read, and rows may share a slot.

    The match is the longest suffix of the text with the tokens behind it that occurs in the text
    itself. Of the text's own repeated suffixes, its `WINDOW` longest ones are followed on; where
    none of them leads anywhere, the tokens alone are looked for. The draft, which begins after the
    tokens, goes on into them where the text ends, and then with its own beginning.

    Args:
      state: of S slots.
      tokens: int32[B, T]; every int32 is a legal token.
      lengths: int32[B] in 0..T; 0 makes this a `lookup`. A row of another length drafts nothing.
      max_draft: K, and all that follows as in `lookup`.
      slots: int32[B]; None: all slots, B is S.
      limits: int32[B]; None: no limit.
      min_match: shorter matches draft nothing.
      max_match: None: no limit.
      occurrence: "first" or "recent".
      draft_factor: None: no limit.
      periodic: whether a draft goes on with its beginning.
      pool: None: the text alone.
      groups: int32[B]; None: group 0 for all rows.

    Raises:
      ValueError, TypeError: at trace time, naming the argument; for a `ScanState` too.
    """
    check_state(state)
    max_draft, attributes = check_lookup(
        max_draft, min_match, max_match, occurrence, draft_factor, periodic
    )
    rows = _check_text(state, tokens, lengths, slots)
    _check_limits(rows, limits)
    operands = [
        Argument("tokens", ROWS, tokens),
        Argument("lengths", ROWS, lengths),
        Argument("slots", SLOT_IDS, slots),
        Argument("limits", ROWS, limits),
        *_check_seen(rows, pool, groups),
    ]
    drafted = _draft_results(max_draft)
    (draft_tokens, numbers), _ = _call("lookup_after", operands, state, drafted, attributes)
    return Draft(draft_tokens, numbers=numbers)


def extend_lookup(
    state: StateT,
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
) -> tuple[StateT, Draft]:
    """`extend`, then `lookup` of the same rows, in one kernel launch, or two for long rows.

    Arguments, results and errors are theirs, but for one thing: of rows that name one slot, only
    the first drafts.
    """
    check_state(state)
    max_draft, attributes = check_lookup(
        max_draft, min_match, max_match, occurrence, draft_factor, periodic
    )
    rows = _check_text(state, tokens, lengths, slots)
    _check_limits(rows, limits)
    operands = [
        Argument("tokens", ROWS, tokens),
        Argument("lengths", ROWS, lengths),
        Argument("slots", SLOT_IDS, slots),
        Argument("limits", ROWS, limits),
        *_check_seen(rows, pool, groups),
    ]
    drafted = _draft_results(max_draft)
    results, state = _call("extend_lookup", operands, state, drafted, attributes, updates=True)
    return state, Draft(results[0], numbers=results[1])


def reset(state: StateT, slots: jax.Array) -> StateT:
    """Empties slots, their status included: every array of an empty slot is zeros but its seed.

    Args:
      state: of S slots.
      slots: int32[B]; -1 skips the row.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_state(state)
    check_array("slots", slots, jnp.int32, ("B",))
    _, state = _call("reset", [Argument("slots", SLOT_IDS, slots)], state, updates=True)
    return state


def copy_slots(state: StateT, src: jax.Array, dst: jax.Array) -> StateT:
    """Makes slot `dst[b]` a copy of slot `src[b]`, seed included, as when a request is forked.

    Args:
      state: of S slots.
      src: int32[B]; -1 skips the row.
      dst: int32[B]; -1 skips the row. If rows name one slot twice, the first has it. A row whose
        source another row overwrites copies nothing. `Status.CONFLICT` of the destination says so.
        A row whose source is out of range copies nothing; `Status.OUT_OF_RANGE` says so. So it is
        with a source on another device, where the state is split over devices.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_state(state)
    (rows,) = check_array("src", src, jnp.int32, ("B",))
    check_array("dst", dst, jnp.int32, (rows,))
    operands = [Argument("src", SLOT_IDS, src), Argument("dst", SLOT_IDS, dst)]
    _, state = _call("copy_slots", operands, state, updates=True)
    return state


def insert(state: StateT, built: StateT, slot: jax.Array | int) -> StateT:
    """Makes one slot a copy of the only slot of another state, seed and status included.

    Args:
      state: of S slots.
      built: of one slot, of the same index and `max_seq_len`, as `build_on_host` returns it. It is
        only read. In jit, it must be on the devices of `state`.
      slot: int32[] or an int in 0..S-1. An array out of that range, known on the device only,
        changes nothing.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype, or an int out of range.
    """
    check_state(state)
    check_state(built)
    if type(built) is not type(state):
        raise TypeError(
            f"built: expected a jax_sa.{type(state).__name__}, got {type(built).__name__}"
        )
    if (built.num_slots, built.max_seq_len) != (1, state.max_seq_len):
        raise ValueError(
            f"built: expected one slot of max_seq_len {state.max_seq_len}, "
            f"got {built.num_slots} of {built.max_seq_len}"
        )
    if isinstance(slot, jax.Array | np.ndarray):
        check_array("slot", slot, jnp.int32, ())
    else:
        slot = np.int32(check_int("slot", slot, 0, state.num_slots - 1))
    operands = [
        Argument("slot", SLOT_IDS, jnp.asarray(slot)[None]),
        *leaves_of("built", ROWS, built),
    ]
    _, state = _call("insert", operands, state, updates=True)
    return state


def read_tokens(
    state: AnyState, starts: jax.Array, *, length: int, slots: jax.Array | None = None
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
    rows = _check_slots(state, slots)
    check_array("starts", starts, jnp.int32, (rows,))
    operands = [Argument("starts", ROWS, starts), Argument("slots", SLOT_IDS, slots)]
    (tokens,), _ = _call("read_tokens", operands, state, [Result(ROWS, (length,))])
    return tokens


def validate(state: AnyState) -> jax.Array:
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
    scratch = [Result(SLOTS, leaf.shape[1:]) for leaf in jax.tree.leaves(state)]
    (invalid, *_), _ = _call("validate", [], state, [Result(ROWS, ()), *scratch])
    return invalid


def _check_text(state: AnyState, tokens: Any, lengths: Any, slots: Any) -> int:
    """The rows of a call."""
    rows = _check_slots(state, slots)
    check_array("tokens", tokens, jnp.int32, (rows, "T"))
    check_array("lengths", lengths, jnp.int32, (rows,))
    return rows


def _check_slots(state: AnyState, slots: Any) -> int:
    """The rows of a call."""
    if slots is None:
        return state.num_slots
    (rows,) = check_array("slots", slots, jnp.int32, ("B",))
    return rows


def _check_limits(rows: int, limits: Any) -> None:
    if limits is not None:
        check_array("limits", limits, jnp.int32, (rows,))


def _check_seen(rows: int, pool: Any, groups: Any, *, has_others: bool = False) -> list[Argument]:
    """What rows see of a pool, as the targets take it; or of others in groups, if there are any."""
    if pool is not None:
        check_pool(pool)
    elif not has_others:
        if groups is not None:
            raise ValueError("groups: expected a pool whose groups they are, got none")
    if pool is not None or has_others:
        if groups is None:
            groups = jnp.zeros(rows, jnp.int32)
        check_array("groups", groups, jnp.int32, (rows,))
    return [
        Argument("groups", GROUP_IDS, groups),
        Argument("pool.ring", GROUPS, None if pool is None else pool.ring, rank=2),
        Argument("pool.head", GROUPS, None if pool is None else pool.head),
        Argument("pool.table", GROUPS, None if pool is None else pool.table, rank=3),
    ]


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


def _draft_results(max_draft: int) -> list[Result]:
    """What the fields of a `Draft` are."""
    return [Result(ROWS, (max_draft,)), Result(ROWS, (len(DRAFT_NUMBERS),))]


def _call(
    op: str,
    operands: Sequence[Argument],
    state: StateT,
    results: Sequence[Result] = (),
    attributes: dict[str, Any] | None = None,
    *,
    updates: bool = False,
) -> tuple[list[jax.Array], StateT]:
    """The results of an op of the state's index, and the state as it left it."""
    run = scan.call if isinstance(state, ScanState) else call_on_state
    return run(op, operands, state, results, attributes or {}, updates=updates)
