"""A chain of drafted tokens for each row, and what the numbers in it stand for."""

import dataclasses
import enum

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array

DRAFT_FILL = 0
"""The token at the places of a draft beyond its length: one that every model can embed."""


class Source(enum.IntEnum):
    """Values of `Draft.source`: where the drafted tokens come from."""

    NONE = 0
    """Nowhere: there is no match, and so no draft."""
    OWN = 1
    """The row's own text."""
    POOL = 2
    """A text in the pool."""
    NEURAL = 3
    """A neural drafter."""
    FOLLOWER = 4
    """What the model expected after a token when it last read it; in trees only."""


DRAFT_NUMBERS = ("length", "match_length", "match_end", "source")
"""The columns of `Draft.numbers`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, init=False)
class Draft:
    """The tokens after an earlier occurrence of the longest repeated suffix, for B rows.

    A call from Python takes about a microsecond for each array that it is given or returns, so they
    are two: what there is one of for each row are columns of `numbers`. The properties below take
    them out, as copies.
    """

    tokens: jax.Array
    """int32[B, K] the drafted tokens; `DRAFT_FILL` beyond `length`."""
    numbers: jax.Array
    """int32[B, 4] `length`, `match_length`, `match_end` and `source`."""

    def __init__(
        self,
        tokens: jax.Array,
        length: jax.Array | None = None,
        match_length: jax.Array | None = None,
        match_end: jax.Array | None = None,
        source: jax.Array | None = None,
        *,
        numbers: jax.Array | None = None,
    ) -> None:
        """A draft made by hand, or `dataclasses.replace(draft, length=...)`.

        Args:
          tokens: int32[B, K].
          length: int32[B], and so are the other columns. None, of any: that of `numbers`.
          match_length: without `numbers`, None is 0.
          match_end: without `numbers`, None is 0.
          source: without `numbers`, None is the row's own text where there is a match, else a
            neural drafter where there are tokens.
          numbers: int32[B, 4]. None: made of the columns.

        Raises:
          ValueError, TypeError: the columns are not alike, or there is no length.
        """
        # JAX makes drafts too, of whatever a tree of arrays may be mapped to, at every call.
        if not (length is match_length is match_end is source is None):
            columns = (length, match_length, match_end, source)
            numbers = _with_columns(dict(zip(DRAFT_NUMBERS, columns, strict=True)), numbers)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "numbers", numbers)

    @property
    def length(self) -> jax.Array:
        """int32[B] drafted tokens, 0..K."""
        return self.numbers[..., DRAFT_NUMBERS.index("length")]

    @property
    def match_length(self) -> jax.Array:
        """int32[B] tokens of the suffix that occurred before; 0 without a match."""
        return self.numbers[..., DRAFT_NUMBERS.index("match_length")]

    @property
    def match_end(self) -> jax.Array:
        """int32[B] tokens of the text up to the earlier occurrence's end, so the index in the text
        of the first drafted token; in a draft from a pool, its index in the group's `Pool.ring`. 0
        without a match.
        """
        return self.numbers[..., DRAFT_NUMBERS.index("match_end")]

    @property
    def source(self) -> jax.Array:
        """int32[B] a `Source`: where the match is, even if a limit of 0 leaves no tokens of it."""
        return self.numbers[..., DRAFT_NUMBERS.index("source")]


def _with_columns(columns: dict[str, jax.Array | None], numbers: jax.Array | None) -> jax.Array:
    """`Draft.numbers` with those columns that are given."""
    if numbers is not None:
        columns = {
            name: numbers[..., i] if columns[name] is None else columns[name]
            for i, name in enumerate(DRAFT_NUMBERS)
        }
    if columns["length"] is None:
        raise TypeError("length: expected int32[B], got None")
    for name, column in columns.items():
        if column is not None:
            check_array(name, column, jnp.int32, jnp.shape(columns["length"]))
    length, match_length, match_end, source = columns.values()
    none = jnp.zeros_like(length)
    match_length = none if match_length is None else match_length
    match_end = none if match_end is None else match_end
    if source is None:
        without = jnp.where(length > 0, jnp.int32(Source.NEURAL), jnp.int32(Source.NONE))
        source = jnp.where(match_length > 0, jnp.int32(Source.OWN), without)
    return jnp.stack([length, match_length, match_end, source], axis=-1)
