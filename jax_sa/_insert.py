"""`insert`, for states and for pools."""

from typing import Any, overload

import jax

from jax_sa.automaton import insert as insert_built
from jax_sa.pool import Pool
from jax_sa.pool_insert import insert_texts
from jax_sa.state import AnyState, StateT


@overload
def insert(state: StateT, built: StateT, slot: jax.Array | int) -> StateT: ...
@overload
def insert(
    pool: Pool, tokens: jax.Array, lengths: jax.Array, *, groups: jax.Array | None = None
) -> Pool: ...
def insert(*arguments: Any, **options: Any) -> AnyState | Pool:
    """Puts a text that was built into a slot of a state, or texts into a pool.

    `insert(state, built, slot)` makes one slot a copy of the only slot of another state, seed and
    status included.

    - built: of one slot with the same `max_seq_len`, as `build_on_host` returns it. It is only
      read. In jit, it must be on the devices of `state`.
    - slot: int32[] or an int in 0..S-1. An array out of that range, known on the device only,
      changes nothing.

    `insert(pool, tokens, lengths, groups=None)` puts the texts `tokens[b, :lengths[b]]` into a
    pool, and forgets the oldest for them.

    - tokens: int32[B, T]. `jax_sa.SEPARATOR` ends a text, so one that holds it counts as several.
      Of a text of C tokens or more, C the capacity, the last C - 1 stay.
    - lengths: int32[B] in 0..T; 0 inserts nothing. Another length inserts nothing, and
      `Status.OUT_OF_RANGE` of the group says so.
    - groups: int32[B] the group of each text, 0..G-1; -1 skips the row, and so does any other,
      which has no group to say so. None: group 0.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype, or an int out of range.
    """
    into_pool = isinstance(arguments[0], Pool) if arguments else "pool" in options
    return (insert_texts if into_pool else insert_built)(*arguments, **options)
