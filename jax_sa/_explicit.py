"""Mesh axes of type Explicit, under which JAX asks for the sharding of each intermediate result."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

_P = ParamSpec("_P")
_R = TypeVar("_R")


def follow_rows(results: Any = True) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Makes a function on arrays [B, ...] run where the mesh axes of its arguments are Explicit.

    Inside they are Auto, and what it returns is sharded over its rows as its arguments are.

    Args:
      results: a prefix of the result's structure: True where arrays have rows, False elsewhere.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            rows = _sharding_of_rows((args, kwargs))
            if rows is None:
                return function(*args, **kwargs)
            leaves, structure = jax.tree.flatten((args, kwargs))
            is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
            arrays = [leaf for leaf, a in zip(leaves, is_array, strict=True) if a]

            def call(*arrays: jax.Array) -> Any:
                given = iter(arrays)
                values = [next(given) if a else x for x, a in zip(leaves, is_array, strict=True)]
                args, kwargs = jax.tree.unflatten(structure, values)
                return function(*args, **kwargs)

            whole = rows.update(spec=PartitionSpec())
            out = jax.tree.map(lambda has_rows: rows if has_rows else whole, results)
            return jax.sharding.auto_axes(call, out_sharding=out)(*arrays)

        return run

    return decorate


def _sharding_of_rows(arguments: Any) -> NamedSharding | None:
    """How the first axis of the arguments is sharded; None unless mesh axes are Explicit."""
    result = None
    for leaf in jax.tree.leaves(arguments):
        if not isinstance(leaf, jax.Array):
            continue
        sharding = jax.typeof(leaf).sharding
        if AxisType.Explicit not in sharding.mesh.axis_types:
            continue
        first = sharding.spec[0] if sharding.spec else None
        if result is None or first is not None:
            result = sharding.update(spec=PartitionSpec(first))
        if first is not None:
            break
    return result
