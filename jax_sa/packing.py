"""One flat block of the tokens of all rows, one row after the other.

Letters: B rows, C own tokens of a row, K draft tokens, T places of the block.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int
from jax_sa.automaton import DRAFT_FILL, Draft
from jax_sa.seqlens import expand_seqlens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A flat block: of each row its own tokens, then its draft."""

    tokens: jax.Array
    """int32[T] the tokens; `DRAFT_FILL` in places that no row takes."""
    rows: jax.Array
    """int32[T] the row of each token; B, an index that JAX's scatters drop, in places not taken."""
    positions: jax.Array
    """int32[T] the position of each token in its row's text; 0 in places not taken."""
    offsets: jax.Array
    """int32[B + 1] the place of each row's first token; last, the number of all tokens, which is
    more than T if some found no place."""
    first: jax.Array
    """int32[B] the place of each row's last own token, after which its draft begins: the logits
    there judge the first drafted token (`first` of `accept_greedy` and `accept_sampled`)."""


def pack(
    tokens: jax.Array, counts: jax.Array, draft: Draft, positions: jax.Array, *, total: int
) -> Packed:
    """Lays out a step's tokens one row after the other, so that no row is padded to another's.

    In a decode step a row's own token is its last one, which the model has not read:
    `pack(last[:, None], jnp.ones(B, jnp.int32), draft, cache.length, total=T)`. A row that reads
    its prompt has a chunk of it, and no draft.

    Args:
      tokens: int32[B, C] the tokens that each row certainly has.
      counts: int32[B] how many of them count, in 0..C. A row with 0 takes no place, nor does its
        draft.
      draft: of B rows and K tokens.
      positions: int32[B] the position of each row's first token in its text.
      total: T. Tokens that find no place are left out, and `offsets[B]` says so.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    rows, width = check_array("tokens", tokens, jnp.int32, ("B", "C"))
    check_array("counts", counts, jnp.int32, (rows,))
    check_array("draft.length", getattr(draft, "length", None), jnp.int32, (rows,))
    check_array("positions", positions, jnp.int32, (rows,))
    total = check_int("total", total, 1)
    counts = jnp.clip(counts, 0, width)
    lengths = jnp.where(counts > 0, counts + draft.length, 0)
    flat = expand_seqlens(
        positions + lengths,
        lengths,
        total=total,
        fill=1,
        return_offsets=True,
        return_row_ids=True,
    )
    row = jnp.minimum(flat.row_ids, rows - 1)
    place = jnp.arange(total, dtype=jnp.int32) - flat.offsets[row]
    # One gather from all that a row has: its own tokens, then its draft.
    column = jnp.where(place < counts[row], place, width + place - counts[row])
    both = jnp.concatenate([tokens, draft.tokens], axis=1)
    packed = both.at[row, column].get(mode="clip")
    return Packed(
        tokens=jnp.where(flat.row_ids < rows, packed, DRAFT_FILL),
        rows=flat.row_ids,
        positions=flat.values - 1,
        offsets=flat.offsets,
        first=flat.offsets[:-1] + jnp.maximum(counts - 1, 0),
    )
