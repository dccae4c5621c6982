"""How the automaton drafts, as an object: what a decoder and a manager are configured with."""

import dataclasses
from typing import Any

from jax_sa.automaton import check_lookup


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """The options of `jax_sa.lookup`, as the fields of what inherits them.

    Raises:
      ValueError, TypeError: naming the option.
    """

    max_draft: int = 16
    """K, the tokens to draft at most."""
    min_match: int = 1
    """Shorter matches draft nothing."""
    max_match: int | None = None
    """Longer matches count as this long. None: no limit."""
    occurrence: str = "recent"
    """Which earlier occurrence to follow, "first" or "recent"."""
    draft_factor: float | None = None
    """Drafts at most `ceil(draft_factor * match_length)` tokens. None: no limit."""
    periodic: bool = True
    """Where the continuation reaches the end of the text, go on with its beginning."""

    def __post_init__(self):
        check_lookup(**self.lookup_options())

    def lookup_options(self) -> dict[str, Any]:
        """The keyword arguments of `jax_sa.lookup`."""
        fields = dataclasses.fields(DraftOptions)
        return {field.name: getattr(self, field.name) for field in fields}
