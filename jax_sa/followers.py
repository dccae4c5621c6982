"""What a model expects after each token: the likeliest next tokens, to draft trees from.

A text has nothing to draft from where its last token never occurred before. But a model has read
that token in other places, and its logits said what may follow. Kept for each token of the
vocabulary, as of its last reading, they fill what texts leave of a tree (Token Recycling, Luo et
al. 2024, arXiv:2408.08696).

Letters: G groups, V vocabulary, T places.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._call import Argument, call
from jax_sa._checks import check_array, check_int
from jax_sa._shard_map import check_varies
from jax_sa._target import GROUP_IDS, GROUPS, ROWS

NUM_FOLLOWERS = 8
"""The followers that are known of a token at most."""

NO_FOLLOWER = -1
"""In place of a follower that is not known."""

MAX_VOCABULARY = 2**28 // NUM_FOLLOWERS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Followers:
    """The likeliest next tokens after each token of a vocabulary, as of when it was last read.

    G: groups; V: vocabulary. A row that drafts sees one group, and nothing of the others: such as
    one for each tenant, whose texts the others must not be able to guess. 32 bytes a token.
    """

    tokens: jax.Array
    """int32[G, V, 8] the `NUM_FOLLOWERS` likeliest next tokens, the likeliest first;
    `NO_FOLLOWER` where none is known."""

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return self.tokens.shape[0]

    @property
    def vocabulary(self) -> int:
        """V, the tokens of the vocabulary."""
        return self.tokens.shape[1]


def init_followers(vocabulary: int, *, num_groups: int = 1) -> Followers:
    """Followers of which none is known.

    Args:
      vocabulary: V, the tokens of the model's vocabulary: as many as it gives logits.
      num_groups: G.

    Raises:
      ValueError: `vocabulary` is not in [1, 2**25], or `num_groups` is below 1.
      TypeError: one of them is not an int.
    """
    vocabulary = check_int("vocabulary", vocabulary, 1, MAX_VOCABULARY)
    num_groups = check_int("num_groups", num_groups, 1)
    return Followers(jnp.full((num_groups, vocabulary, NUM_FOLLOWERS), NO_FOLLOWER, jnp.int32))


def note_followers(
    followers: Followers, tokens: jax.Array, logits: jax.Array, *, groups: jax.Array | None = None
) -> Followers:
    """Notes what a model's logits say of the tokens that it has read.

    The followers of `tokens[t]` are then those with the largest `logits[t]`; of equal ones, the
    smaller token comes first. A logit of minus infinity or NaN is no follower's. Where a token is
    at several places, the last one counts. The result is the same, bit for bit, on a CPU and a GPU.

    Args:
      followers: of G groups and V tokens; updated in place where they are donated or carried by a
        loop.
      tokens: int32[T] the tokens that were read; one that is not in 0..V-1 is skipped, as those of
        padding should be.
      logits: [T, V] of a floating dtype; compared in float32.
      groups: int32[T] the group of each token, 0..G-1; any other is skipped. None: group 0.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    check_followers(followers)
    (places,) = check_array("tokens", tokens, jnp.int32, ("T",))
    is_float = hasattr(logits, "dtype") and jnp.issubdtype(logits.dtype, jnp.floating)
    dtype = logits.dtype if is_float else jnp.float32
    check_array("logits", logits, dtype, (places, followers.vocabulary))
    if groups is None:
        groups = jnp.zeros_like(tokens)
    check_array("groups", groups, jnp.int32, (places,))
    arguments = [
        Argument("groups", GROUP_IDS, groups),
        Argument("tokens", ROWS, tokens),
        Argument("logits", ROWS, jnp.asarray(logits, jnp.float32)),
        Argument("followers.tokens", GROUPS, followers.tokens),
    ]
    check_varies("followers", followers.tokens, [a.value for a in arguments])
    return Followers(*call("note_followers", GROUPS, arguments, [len(arguments) - 1]))


def check_followers(followers: Any) -> None:
    """Raises TypeError or ValueError unless they are followers."""
    if not isinstance(followers, Followers):
        raise TypeError(f"followers: expected a jax_sa.Followers, got {type(followers).__name__}")
    shape = ("G", "V", NUM_FOLLOWERS)
    groups, vocabulary, _ = check_array("followers.tokens", followers.tokens, jnp.int32, shape)
    if not groups:
        raise ValueError("followers.tokens: expected a group at least, got none")
    check_int("followers.tokens: vocabulary", vocabulary, 1, MAX_VOCABULARY)
