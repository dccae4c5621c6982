"""The model with its keys and values in pages, for texts that grow side by side in one pool.

`apply_packed` is the `model(params, tokens, rows, positions, cache)` of a packed step: the tokens
of all rows, any number of each, one after the other. The pages are claimed and freed by who calls
it; the model only looks up where they are. What a page holds of other texts, or of this one from
the row's last token on, is overwritten before anything attends to it.

Letters: T tokens, B rows, N pages and page 0, S tokens of a page, L layers, D hidden size, G
key/value heads, H head size, A places whose logits are asked for, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_sa
from jax_sa.cache_schema import PADDING_PAGE, BlockTable, init_block_table
from jax_sa.llama import model
from jax_sa.llama.attention import make_block, move
from jax_sa.llama.config import Config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedCache:
    """A pool of pages, the same in every layer, and which rows have them."""

    keys: tuple[jax.Array, ...]
    """L times [1, 1 + N, G, S, H], or one array [L, 1 + N, ...]. Page 0 is padding."""
    values: tuple[jax.Array, ...]
    """Likewise."""
    block_table: BlockTable
    """Slot b + 1 is row b's; slot 0 is padding."""
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})
    """The devices that share the model; None for one."""

    def move(self, start: jax.Array, path: jax.Array) -> "PackedCache":
        """The cache with the entries of accepted paths in order: see `jax_sa.PackedDecoder`."""
        memory, pages = (self.keys, self.values), self.block_table.pages[1:]
        keys, values = move(memory, start, path, pages, self.mesh)
        return dataclasses.replace(self, keys=keys, values=values)


def init_packed_cache(
    config: Config,
    rows: int,
    pages: int,
    page_size: int,
    max_tokens_per_row: int,
    dtype: Any,
    mesh: Mesh | None = None,
) -> PackedCache:
    """A pool of `pages` pages of `page_size` tokens, of which no row has any.

    Args:
      config: of the model.
      rows: B.
      pages: N, not counting page 0.
      page_size: S.
      max_tokens_per_row: of the longest text.
      dtype: of keys and values.
      mesh: the devices that share the model.
    """
    table = init_block_table(
        num_slots=1 + rows,
        num_pages=1 + pages,
        max_blocks=-(-max_tokens_per_row // page_size),
        block_size=page_size,
    )
    if mesh is not None:
        table = jax.device_put(table, NamedSharding(mesh, PartitionSpec()))
    keys, values = model.init_memory(config, config.num_layers, 1 + pages, page_size, dtype, mesh)
    return PackedCache(keys, values, table, mesh)


def apply_packed(
    config: Config,
    params: dict[str, Any],
    tokens: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    cache: PackedCache,
    tree: jax_sa.TreeBlock | None = None,
) -> tuple[Callable[[jax.Array], jax.Array], PackedCache]:
    """Reads a packed block, and keeps what it must remember of it in the rows' pages.

    Args:
      config: of the model.
      params: as `weights.fuse` lays them out.
      tokens: int32[T].
      rows: int32[T], tokens of one row side by side; B or more for padding, which writes nothing
        and whose logits mean nothing.
      positions: int32[T], ascending in a row. What has no page is not kept.
      cache: of B rows.
      tree: of a block that holds trees, [T, ...].

    Returns:
      `logits(places)`, a function of places int32[A] of the block, which gives the logits
      float32[A, V] after these tokens; and the cache with the block written.

    """
    memory = (cache.keys, cache.values)
    pages = cache.block_table.pages[1:]
    pages = jnp.where(pages == PADDING_PAGE, cache.keys[0].shape[1], pages)
    shared = config.num_heads // config.num_kv_heads
    block = make_block(rows, positions, pages, memory, shared, tree=tree)
    x, (keys, values) = model.forward(config, params, tokens, block, memory, cache.mesh)

    def logits(places: jax.Array) -> jax.Array:
        return model.unembed(config, params, x.at[places].get(mode="clip"), cache.mesh)

    return logits, dataclasses.replace(cache, keys=keys, values=values)
