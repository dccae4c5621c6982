"""The options of drafting as an object, which the options of a decoder and a manager inherit."""

import dataclasses
from typing import Any

from jax_sa.automaton import check_lookup


def normalise(options: Any, **values: Any) -> None:
    """Sets fields of a frozen dataclass, in its `__post_init__`, to their checked values.

    So that NumPy's numbers become Python's, and options that mean the same are equal.
    """
    for name, value in values.items():
        object.__setattr__(options, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """The options of `jax_sa.lookup`, as fields to inherit.

    Raises:
      ValueError, TypeError: naming the option.
    """

    max_draft: int = 16
    """K, the maximum tokens of a draft."""
    min_match: int = 1
    """Shorter matches draft nothing."""
    max_match: int | None = None
    """Longer matches count as this long. None: no limit."""
    occurrence: str = "recent"
    """The earlier occurrence to follow, "first" or "recent"."""
    draft_factor: float | None = None
    """Drafts at most `ceil(draft_factor * match_length)` tokens. None: no limit."""
    periodic: bool = True
    """Where the continuation reaches the end of the text, go on with its beginning."""

    def __post_init__(self) -> None:
        check_lookup(**self.lookup_options())
        normalise(
            self,
            max_draft=int(self.max_draft),
            min_match=int(self.min_match),
            max_match=None if self.max_match is None else int(self.max_match),
            draft_factor=None if self.draft_factor is None else float(self.draft_factor),
            periodic=bool(self.periodic),
        )

    def lookup_options(self) -> dict[str, Any]:
        """The keyword arguments of `jax_sa.lookup`."""
        fields = dataclasses.fields(DraftOptions)
        return {field.name: getattr(self, field.name) for field in fields}
