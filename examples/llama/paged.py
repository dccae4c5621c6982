"""The model with its keys and values in pages, for texts that grow side by side in one pool.

Letters: T tokens, B rows, P pages of a row, N pages of the pool, S tokens of a page, C = P * S
places of a row, D hidden size, G key/value heads, H head size.

Tokens of any rows, any number of each, make one flat block: token t belongs to row `row_ids[t]`
and stands at `positions[t]` of its text. A row's page table names the pages that hold its text, in
order: position p is in page p // S of the row, at place p % S. What a page holds of other texts,
or of this one from the row's last token on, is overwritten before anything attends to it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llama import model
from llama.config import Config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """A pool of pages, the same in every layer."""

    keys: tuple[jax.Array, ...]
    """Of each layer [N, S, G, H]."""
    values: tuple[jax.Array, ...]
    """Likewise."""

    @property
    def num_pages(self) -> int:
        """N, which as a page means none: what is written there is dropped."""
        return self.keys[0].shape[0]


def init_cache(config: Config, num_pages: int, page_size: int, dtype: Any) -> PagedCache:
    """A pool of `num_pages` pages of `page_size` tokens."""
    shape = (num_pages, page_size, config.num_kv_heads, config.head_dim)

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    return PagedCache(keys=zeros(), values=zeros())


def apply(
    config: Config,
    params: dict[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    row_ids: jax.Array,
    page_table: jax.Array,
    cache: PagedCache,
) -> tuple[jax.Array, PagedCache]:
    """The normalised hidden states [T, D] after each token, and the cache with the tokens written.

    Args:
      config: of the model.
      params: as `weights.describe` lays them out.
      tokens: int32[T].
      positions: int32[T], no position of a row twice.
      row_ids: int32[T]; B for padding, which writes nothing and whose hidden states mean nothing.
      page_table: int32[B, P]; N where a row has no page.
      cache: of N pages.
    """
    pages = page_table.at[row_ids].get(mode="fill", fill_value=cache.num_pages)
    memories = list(zip(cache.keys, cache.values, strict=True))
    embedded = params["embed"][tokens][None]
    attend = paged_attention(positions, pages)
    x, memories = model.decode(config, params, embedded, positions[None], attend, memories)
    keys, values = zip(*memories, strict=True)
    return x[0], PagedCache(keys, values)


def paged_attention(positions: jax.Array, pages: jax.Array) -> model.Attend:
    """Attention of tokens at `positions` int32[T] to their own rows, up to themselves.

    Args:
      positions: of the tokens.
      pages: int32[T, P] those of each token's row.

    Returns:
      An `attend` of a block [1, T]. The memory is the layer's keys and values, [N, S, G, H] each.
    """

    def attend(q, k, v, memory):
        keys, values = (
            _write(old, positions, pages, new[0]) for old, new in zip(memory, (k, v), strict=True)
        )
        own_keys, own_values = (_gather(pool, pages) for pool in (keys, values))
        tokens, places, groups, head_dim = own_keys.shape
        q = q.reshape(tokens, groups, -1, head_dim)
        scores = jnp.einsum("tgqh,tcgh->tgqc", q, own_keys, preferred_element_type=jnp.float32)
        visible = jnp.arange(places, dtype=jnp.int32)[None] <= positions[:, None]
        scores = jnp.where(visible[:, None, None], scores / math.sqrt(head_dim), -jnp.inf)
        share = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = jnp.einsum("tgqc,tcgh->tgqh", share, own_values)
        return out.reshape(1, tokens, -1, head_dim), (keys, values)

    return attend


def _write(pool: jax.Array, positions: jax.Array, pages: jax.Array, new: jax.Array) -> jax.Array:
    """The pool with `new` [T, G, H] at its tokens' places; what has no page is dropped."""
    none, size = pool.shape[:2]
    page = jnp.take_along_axis(
        pages, positions[:, None] // size, axis=1, mode="fill", fill_value=none
    )[:, 0]
    return pool.at[page, positions % size].set(new, mode="drop")


def _gather(pool: jax.Array, pages: jax.Array) -> jax.Array:
    """The rows' texts [T, C, G, H]; of a page that is none, some other page, never seen."""
    return pool.at[pages].get(mode="clip").reshape(pages.shape[0], -1, *pool.shape[2:])
