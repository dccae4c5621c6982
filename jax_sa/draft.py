"""What the numbers in a draft stand for."""

import enum

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
