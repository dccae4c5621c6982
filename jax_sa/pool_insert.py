"""The ops that put texts into a pool: check the arguments, call the target.

Letters: G groups, C capacity of a group, B rows of a call, T tokens of a row, S slots.

They work in jit, scan, fori_loop, while_loop and shard_map. The pool is updated in place where it
is donated or carried by a loop. What is left does not depend on the order in which a device works:
it is the same, bit for bit, on a CPU and a GPU. The rows of a call come into the ring in their
order.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._call import Argument, call, leaves_of
from jax_sa._checks import check_array
from jax_sa._shard_map import check_varies
from jax_sa._target import GROUP_IDS, GROUPS, ROWS, SLOT_IDS, SLOTS, Result
from jax_sa.pool import Pool, check_pool
from jax_sa.state import AnyState, check_state


def insert_texts(
    pool: Pool, tokens: jax.Array, lengths: jax.Array, *, groups: jax.Array | None = None
) -> Pool:
    """Puts the texts `tokens[b, :lengths[b]]` into a pool, and forgets the oldest for them.

    Args:
      pool: of G groups.
      tokens: int32[B, T]. `SEPARATOR` ends a text, so one that holds it counts as several. Of a
        text of C tokens or more, the last C - 1 stay.
      lengths: int32[B] in 0..T; 0 inserts nothing. Another length inserts nothing, and
        `Status.OUT_OF_RANGE` of the group says so.
      groups: int32[B] the group of each text, 0..G-1; -1 skips the row, and so does any other,
        which has no group to say so. None: group 0.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_pool(pool)
    rows, _ = check_array("tokens", tokens, jnp.int32, ("B", "T"))
    check_array("lengths", lengths, jnp.int32, (rows,))
    arguments = [
        Argument("tokens", ROWS, tokens),
        Argument("lengths", ROWS, lengths),
        Argument("groups", GROUP_IDS, _check_groups(groups, rows)),
    ]
    return _call_insert("pool_insert", arguments, pool)


def insert_slots(
    pool: Pool,
    state: AnyState,
    slots: jax.Array,
    *,
    starts: jax.Array | None = None,
    lengths: jax.Array | None = None,
    groups: jax.Array | None = None,
) -> Pool:
    """Puts the texts of a state's slots into a pool, as `insert` does, without copying them.

    A state does not know where a prompt ends, so the caller says which part of a text is meant:
    prompts with `lengths=prompt_lengths`, responses with `starts=prompt_lengths`.

    Args:
      pool: of G groups.
      state: of S slots; it is only read, and slots may come twice.
      slots: int32[B]; -1 skips the row, and so does any other that is no slot.
      starts: int32[B] the index in the text of the first token to insert. None: 0.
      lengths: int32[B] tokens to insert. None: all up to the end of the text. A part that is not
        within the text inserts nothing, nor does a slot with `Status.OUT_OF_RANGE`, whose text has
        a gap: `Status.OUT_OF_RANGE` of the group says so.
      groups: int32[B], as in `insert`.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    check_pool(pool)
    check_state(state)
    (rows,) = check_array("slots", slots, jnp.int32, ("B",))
    for name, value in (("starts", starts), ("lengths", lengths)):
        if value is not None:
            check_array(name, value, jnp.int32, (rows,))
    arguments = [
        Argument("slots", SLOT_IDS, slots),
        Argument("starts", ROWS, starts),
        Argument("lengths", ROWS, lengths),
        Argument("groups", GROUP_IDS, _check_groups(groups, rows)),
        Argument("state.tokens", SLOTS, state.tokens),
        Argument("state.length", SLOTS, state.length),
        Argument("state.status", SLOTS, state.status),
    ]
    return _call_insert("pool_insert_slots", arguments, pool)


def _check_groups(groups: Any, rows: int) -> jax.Array:
    if groups is None:
        return jnp.zeros(rows, jnp.int32)
    check_array("groups", groups, jnp.int32, (rows,))
    return groups


def _call_insert(op: str, arguments: list[Argument], pool: Pool) -> Pool:
    given = [a.value for a in arguments if a.value is not None]
    check_varies("pool", pool.ring, given)
    scratch = [Result(ROWS, ()), Result(GROUPS, ())]
    leaves = leaves_of("pool", GROUPS, pool)
    updated = range(len(arguments), len(arguments) + len(leaves))
    outputs = call(op, GROUPS, [*arguments, *leaves], [*scratch, *updated])
    return Pool(*outputs[len(scratch) :])
