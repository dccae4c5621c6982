"""The pool: texts of earlier requests, or of a corpus, that drafts may come from, as arrays."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int

NGRAM_LENGTHS = (1, 2, 3, 5, 8, 16)
"""The lengths of the n-grams that lead into a pool.

Measured on recorded responses of language models: without 16, drafts save 0.1 % fewer steps. The
match that is found is as long as it truly is, up to `MAX_POOL_MATCH`: an n-gram only leads there.
"""

MAX_POOL_MATCH = 32
"""The longest match in a pool: longer ones count as this long."""

SEPARATOR = -(2**31)
"""The token that ends each text in a pool. No match runs across it and no draft holds it, so a
text that holds it counts as several."""

MAX_CAPACITY = 2**28

_BRANCHES, _TOKENS = 2, 4
"""The entries of an n-gram, and the tokens of the ring for which one length has that many."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """The last tokens of all texts that were inserted, and an index of their n-grams.

    G: groups; C: capacity, the tokens that a group holds; L: lengths of n-grams, 6; E: entries of
    one length, C / 2 rounded up to an even number.

    A row that drafts sees one group, and nothing of the others. In a group the texts lie in a ring,
    one after the other, each followed by `SEPARATOR`: what was inserted first is overwritten first,
    and nothing else is forgotten. A position counts the tokens that were put into the ring before,
    so the token of position p is `ring[p % C]` while `head - C <= p < head`.

    The index leads from an n-gram to the last position where it ended, of two entries that differ
    in a bit of the next token's hash the right one. It is a hint: n-grams whose hashes collide
    share an entry, entries outlive their text, and whatever an entry says is compared with the text
    that stands in the ring. So a lookup reads no memory but the pool's, and returns no text but
    what stands there, whatever a pool holds.

    Every array is int32, and an empty pool is zeros. 16 bytes a token.
    """

    ring: jax.Array
    """[G, C] the texts; 0 where there is none yet."""
    head: jax.Array
    """[G] the position after the last separator. Before it would exceed int32, a multiple of C is
    taken off it and off the entries of `table`."""
    status: jax.Array
    """[G] bits of `Status`: OUT_OF_RANGE where a text was out of range, and so not inserted."""
    table: jax.Array
    """[G, L, E] for each of `NGRAM_LENGTHS`, by hash: the position of the token after the last
    occurrence of an n-gram; 0 for none."""

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return self.ring.shape[0]

    @property
    def capacity(self) -> int:
        """C, the tokens that a group holds, separators included."""
        return self.ring.shape[1]


def pool_shapes(capacity: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one group's arrays, by field of `Pool`."""
    return {
        "ring": (capacity,),
        "head": (),
        "status": (),
        "table": (len(NGRAM_LENGTHS), _BRANCHES * -(-capacity // _TOKENS)),
    }


def get_pool_size(capacity: int) -> int:
    """The bytes of one group: 16 for each token of `capacity`, up to 36 more for an index of whole
    entries where that is no multiple of 4, and 8.

    Raises:
      ValueError: `capacity` is not in [1, 2**28].
      TypeError: it is not an int.
    """
    shapes = pool_shapes(_check_capacity(capacity))
    return sum(4 * math.prod(shape) for shape in shapes.values())


def init_pool(capacity: int, *, num_groups: int = 1) -> Pool:
    """An empty pool.

    Args:
      capacity: C, the tokens that each group holds, of which one is a separator for each text. A
        million is a good size: see docs/pool.md.
      num_groups: G, such as one for each tenant, whose requests must not see the others' texts.

    Raises:
      ValueError: `capacity` is not in [1, 2**28], or `num_groups` is below 1.
      TypeError: one of them is not an int.
    """
    capacity = _check_capacity(capacity)
    num_groups = check_int("num_groups", num_groups, 1)
    return Pool(
        **{
            name: jnp.full((num_groups, *shape), 0, jnp.int32)
            for name, shape in pool_shapes(capacity).items()
        }
    )


def check_pool(pool: Any) -> None:
    """Raises TypeError or ValueError unless `pool`'s arrays belong together."""
    if not isinstance(pool, Pool):
        raise TypeError(f"pool: expected a jax_sa.Pool, got {type(pool).__name__}")
    num_groups, capacity = check_array("pool.ring", pool.ring, jnp.int32, ("G", "C"))
    if num_groups == 0:
        raise ValueError("pool.ring: expected a group at least, got none")
    _check_capacity(capacity, "pool.ring: capacity")
    for name, shape in pool_shapes(capacity).items():
        check_array(f"pool.{name}", getattr(pool, name), jnp.int32, (num_groups, *shape))


def _check_capacity(capacity: Any, name: str = "capacity") -> int:
    return check_int(name, capacity, 1, MAX_CAPACITY)
