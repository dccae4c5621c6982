"""Blocks of one width for all rows, none of which goes beyond its row's room.

Letters: B rows, G maximum new tokens, W drafted tokens of a block.

A row has room for its prompt and G new tokens. Near its end, or once it has finished, that is less
than a block that other rows want wide. Its block then begins earlier: with the row's latest tokens,
which the model reads again and stores where they are. As the row has written all of them, a block
must not be wider than G: the decoder chooses W below it.
"""

import jax
import jax.numpy as jnp

from jax_sa._explicit import follow_rows


def tokens_again(lengths: jax.Array, width: int, max_new_tokens: int) -> jax.Array:
    """int32[B] tokens that each row's block of 1 + W begins with, and that were read before.

    Args:
      lengths: int32[B] new tokens so far.
      width: W.
      max_new_tokens: G.
    """
    return jnp.maximum(lengths + (width - max_new_tokens), 0)


@follow_rows()
def move_back(
    block: jax.Array, tokens: jax.Array, lengths: jax.Array, again: jax.Array
) -> jax.Array:
    """int32[B, 1 + W] a block that begins with `again` tokens before its row's last.

    Args:
      block: int32[B, 1 + W] the last token of each row, and its draft; the draft's end, for which
        there is no room, is left out.
      tokens: int32[B, G] new tokens.
      lengths: int32[B] of them so far, the last one included.
      again: int32[B] as `tokens_again` says.
    """
    place = jnp.arange(block.shape[1], dtype=jnp.int32)[None] - again[:, None]
    before = jnp.maximum(lengths[:, None] - 1 + place, 0)
    read = jnp.take_along_axis(tokens, jnp.minimum(before, tokens.shape[1] - 1), axis=1)
    own = jnp.take_along_axis(block, jnp.maximum(place, 0), axis=1)
    return jnp.where(place < 0, read, own)


@follow_rows()
def from_last_token(values: jax.Array, again: jax.Array) -> jax.Array:
    """[B, 1 + W, ...] values of a block's places, from that of the last token on.

    What is not in the block is its last value, which nobody asks for.
    """
    width = values.shape[1]
    place = jnp.minimum(jnp.arange(width, dtype=jnp.int32)[None] + again[:, None], width - 1)
    place = place.reshape(*place.shape, *(1 for _ in values.shape[2:]))
    return jnp.take_along_axis(values, place, axis=1)
