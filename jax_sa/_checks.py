"""Argument checks whose errors name the argument, what was expected, and what came."""

import numbers
import operator
from collections.abc import Collection
from typing import Any

import numpy as np

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def check_int(name: str, value: Any, low: int, high: int = INT32_MAX) -> int:
    """`value` as a plain int in [low, high]; TypeError for anything that is not an integer."""
    expected = f"{name}: expected an int in [{low}, {high}], got {value!r}"
    if isinstance(value, bool | np.bool_):
        raise TypeError(expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(expected) from None
    if not low <= number <= high:
        raise ValueError(expected)
    return number


def check_positive_float(name: str, value: Any) -> float:
    """`value` as a plain float, finite and above 0."""
    expected = f"{name}: expected a finite number above 0, got {value!r}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(expected)
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        number = float("inf")
    if not (0.0 < number < float("inf")):
        raise ValueError(expected)
    return number


def check_bool(name: str, value: Any) -> bool:
    """`value` as a plain bool; TypeError for anything else, 0 and 1 included."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """`value` if it is one of `choices`."""
    expected = f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}"
    if not isinstance(value, str):
        raise TypeError(expected)
    if value not in choices:
        raise ValueError(expected)
    return value


def check_array(name: str, value: Any, dtype: Any, shape: tuple[int | str, ...]) -> tuple[int, ...]:
    """The shape of an array of exactly `dtype` whose axes match `shape`.

    An int in `shape` is the size that axis must have; a str is a letter for any size, shown in
    the message.
    """
    axes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    expected = f"{name}: expected {np.dtype(dtype).name}[{axes}]"
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    got = f"{value.dtype}{list(value.shape)}"
    if value.dtype != np.dtype(dtype):
        raise TypeError(f"{expected}, got {got}")
    sizes_match = len(value.shape) == len(shape) and all(
        isinstance(want, str) or want == size for want, size in zip(shape, value.shape, strict=True)
    )
    if not sizes_match:
        raise ValueError(f"{expected}, got {got}")
    return tuple(value.shape)
