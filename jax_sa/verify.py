"""Which drafted tokens the model confirms, in plain jnp.

Letters: B rows, K draft tokens, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array
from jax_sa.automaton import DRAFT_FILL, Draft


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accepted:
    """The tokens that a step emits, for B rows."""

    tokens: jax.Array
    """int32[B, 1 + K] the confirmed drafted tokens, then the model's own next token;
    `DRAFT_FILL` beyond `length`."""
    length: jax.Array
    """int32[B] emitted tokens, 1..1 + K."""


def accept_greedy(draft: Draft, targets: jax.Array) -> Accepted:
    """Keeps the longest prefix of each draft that greedy decoding would have written.

    The output of a loop that emits this is token for token that of greedy decoding (Leviathan et
    al. 2023, section 2, at temperature 0).

    Args:
      draft: of B rows and K tokens.
      targets: what the model says after the last token and after each drafted one: logits
        [B, 1 + K, V] of a floating dtype, or the tokens int32[B, 1 + K] it would choose.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    if not isinstance(draft, Draft):
        raise TypeError(f"draft: expected a jax_sa.Draft, got {type(draft).__name__}")
    rows, max_draft = check_array("draft.tokens", draft.tokens, jnp.int32, ("B", "K"))
    check_array("draft.length", draft.length, jnp.int32, (rows,))
    chosen = _chosen_tokens(targets, rows, max_draft)
    position = jnp.arange(max_draft, dtype=jnp.int32)[None]
    confirmed = (draft.tokens == chosen[:, :-1]) & (position < draft.length[:, None])
    # The first unconfirmed position, and one for the model's own token: one reduction on a GPU.
    length = jnp.min(jnp.where(confirmed, 1 + max_draft, 1 + position), axis=1)
    emitted = jnp.arange(1 + max_draft, dtype=jnp.int32)[None] < length[:, None]
    return Accepted(tokens=jnp.where(emitted, chosen, DRAFT_FILL), length=length)


def _chosen_tokens(targets: jax.Array, rows: int, max_draft: int) -> jax.Array:
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.floating):
        check_array("targets", targets, jnp.int32, (rows, 1 + max_draft))
        return targets
    check_array("targets", targets, targets.dtype, (rows, 1 + max_draft, "V"))
    return jnp.argmax(targets, axis=-1).astype(jnp.int32)
