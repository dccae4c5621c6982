"""The pages of each slot's blocks: pure functions on a pytree, usable in `jax.jit`.

Letters: S slots, M blocks in the longest request, P pages in a layer. Slot 0 and page 0 are
padding. Slot 0 never has a page, and a block without a page is in page 0, so that a stray write
lands where nobody reads.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int

PADDING_PAGE = 0
"""The page that padding tokens are written to: no request has it."""

PADDING_SLOT = 0
"""The slot of a padding token: no request has it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockTable:
    """The pages of each slot's blocks, and the free pages."""

    pages: jax.Array
    """int32[S, M] the page of each block, PADDING_PAGE beyond the slot's blocks."""
    num_blocks: jax.Array
    """int32[S] the number of blocks of each slot."""
    unclaimed: jax.Array
    """int32[P] a stack of free pages: the first `num_unclaimed`, of which the last is taken
    first."""
    num_unclaimed: jax.Array
    """int32[] the number of free pages."""
    block_size: int = field(metadata={"static": True})
    """Tokens in a block."""


class TokenLocation(NamedTuple):
    """The places of tokens' entries."""

    page: jax.Array
    """int32[B] the page."""
    offset: jax.Array
    """int32[B] the entry within the page."""


def init_block_table(
    *, num_slots: int, num_pages: int, max_blocks: int, block_size: int
) -> BlockTable:
    """A table in which no slot has a page. The counts include padding slot 0 and page 0."""
    num_slots = check_int("num_slots", num_slots, 1)
    num_pages = check_int("num_pages", num_pages, 1)
    max_blocks = check_int("max_blocks", max_blocks, 1)
    block_size = check_int("block_size", block_size, 1)
    return BlockTable(
        pages=jnp.full((num_slots, max_blocks), PADDING_PAGE, jnp.int32),
        num_blocks=jnp.zeros(num_slots, jnp.int32),
        unclaimed=jnp.arange(num_pages, dtype=jnp.int32)[::-1],  # page 0 is last, beyond the count
        num_unclaimed=jnp.asarray(num_pages - 1, jnp.int32),
        block_size=block_size,
    )


def block_table_bytes(num_slots: int, num_pages: int, max_blocks: int) -> int:
    """Bytes of a `BlockTable`."""
    return 4 * (num_slots * max_blocks + num_slots + num_pages + 1)


def claim_blocks(table: BlockTable, num_tokens: Any) -> tuple[BlockTable, jax.Array]:
    """Gives each slot the pages that its first `num_tokens` tokens still lack.

    Args:
      table: the block table.
      num_tokens: int32[S]; 0 for a slot that needs nothing.

    Returns:
      The new table, and granted: bool[S]. A slot gets all the pages that it lacks or none. It gets
      none if it would have more than M blocks, if it is slot 0, or if it and the slots before it
      lack more pages than are free.

    """
    num_slots, _ = table.pages.shape
    check_array("num_tokens", num_tokens, jnp.int32, (num_slots,))
    needed = -(-num_tokens // table.block_size)
    lacking = jnp.maximum(needed - table.num_blocks, 0)
    is_padding = jnp.arange(num_slots) == PADDING_SLOT
    possible = (lacking == 0) | ((needed <= table.pages.shape[1]) & ~is_padding)
    asked = jnp.where(possible, lacking, 0)
    up_to = jnp.cumsum(asked, dtype=jnp.int32)
    granted = possible & ((asked == 0) | (up_to <= table.num_unclaimed))
    given = jnp.where(granted, asked, 0)

    nth = _blocks(table) - table.num_blocks[:, None]  # of the slot's new blocks
    is_new = (nth >= 0) & (nth < given[:, None])
    taken = table.num_unclaimed - 1 - (up_to - asked)[:, None] - nth
    claimed = replace(
        table,
        pages=jnp.where(is_new, table.unclaimed[jnp.where(is_new, taken, 0)], table.pages),
        num_blocks=table.num_blocks + given,
        num_unclaimed=table.num_unclaimed - jnp.sum(given, dtype=jnp.int32),
    )
    return claimed, granted


def free_blocks(table: BlockTable, slots: Any) -> BlockTable:
    """Takes back all pages of the slots marked in `slots`: bool[S]."""
    check_array("slots", slots, jnp.bool_, table.num_blocks.shape)
    freed = jnp.where(slots, table.num_blocks, 0)
    before = table.num_unclaimed + jnp.cumsum(freed, dtype=jnp.int32) - freed
    is_freed = _blocks(table) < freed[:, None]
    place = jnp.where(is_freed, before[:, None] + _blocks(table), table.unclaimed.size)
    return replace(
        table,
        pages=jnp.where(slots[:, None], PADDING_PAGE, table.pages),
        num_blocks=jnp.where(slots, 0, table.num_blocks),
        unclaimed=table.unclaimed.at[place].set(table.pages, mode="drop"),
        num_unclaimed=table.num_unclaimed + jnp.sum(freed, dtype=jnp.int32),
    )


def locate_tokens(
    table: BlockTable, slots: Any, positions: Any, *, ratio: int = 1
) -> TokenLocation:
    """The page of each token's block, and the entry of that page for the token.

    Args:
      table: the block table.
      slots: int32[B]; the slot of each token.
      positions: int32[B]; its position in the request, from 0.
      ratio: tokens per entry: `csa_ratio` for CSA and indexer pools, `hca_ratio` for HCA ones.

    Returns:
      int32[B] each. A token whose block has no page, or whose slot or position is out of range,
      is at (PADDING_PAGE, 0).

    """
    (batch,) = check_array("slots", slots, jnp.int32, ("B",))
    check_array("positions", positions, jnp.int32, (batch,))
    ratio = check_int("ratio", ratio, 1)
    if table.block_size % ratio:
        raise ValueError(f"ratio: expected a divisor of {table.block_size}, got {ratio}")
    num_slots, max_blocks = table.pages.shape
    block, token = jnp.divmod(positions, table.block_size)
    in_range = (slots >= 0) & (slots < num_slots) & (block >= 0) & (block < max_blocks)
    page = table.pages[jnp.where(in_range, slots, 0), jnp.where(in_range, block, 0)]
    page = jnp.where(in_range, page, PADDING_PAGE)
    return TokenLocation(page, jnp.where(page == PADDING_PAGE, 0, token // ratio))


def _blocks(table: BlockTable) -> jax.Array:
    """int32[1, M]: the numbers of a slot's blocks."""
    return jnp.arange(table.pages.shape[1], dtype=jnp.int32)[None, :]
