"""Functions that are written anew, such as a lambda in a loop: all is compiled anew for each."""

import functools
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

_seen: dict[Any, "weakref.WeakSet[Any]"] = {}
"""By their code, the functions that were given so far and are still in use."""


def warn_if_written_anew(name: str, function: Callable[..., Any]) -> None:
    """Warns where another function object with the same code and captured values came before.

    Compiled code is cached by the function object, so all of it is compiled again.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    code = getattr(inner, "__code__", None)
    if code is None:
        return
    group = _seen.setdefault(code, weakref.WeakSet())
    if function in group:
        return
    twin = any(_same(function, other) for other in group)
    group.add(function)
    if twin:
        where = f"{code.co_filename}:{code.co_firstlineno}"
        warnings.warn(
            f"{name}: expected the same function object in every call, got another one of the same "
            f"code, {inner.__qualname__} of {where}: everything is compiled again. Define it once, "
            "outside of the loop",
            stacklevel=4,
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two functions, or partials, do the same for certain."""
    if type(one) is not type(other):
        return False
    if isinstance(one, functools.partial):
        return (
            _same(one.func, other.func)
            and one.keywords.keys() == other.keywords.keys()
            and _identical(one.args, other.args)
            and all(one.keywords[name] is other.keywords[name] for name in one.keywords)
        )
    if one is other:
        return True
    if not isinstance(one, types.FunctionType):
        return False
    return one.__code__ is other.__code__ and _identical(_captured(one), _captured(other))


def _captured(function: types.FunctionType) -> tuple[Any, ...]:
    """The values that a function holds besides its code."""
    defaults = function.__defaults__ or ()
    keywords = function.__kwdefaults__ or {}
    cells = function.__closure__ or ()
    try:
        return (*defaults, *keywords.values(), *(cell.cell_contents for cell in cells))
    except ValueError:  # a cell that is still empty is like no other
        return (object(),)


def _identical(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
