"""Fields of frozen dataclasses."""

from typing import Any


def set_fields(instance: Any, **values: Any) -> None:
    """Sets fields to their checked values, in the `__post_init__` of a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
