"""Arrays that vary over the same mesh axes, as the carry of a loop inside shard_map must."""

from typing import Any

import jax


def varying_axes(tree: Any) -> frozenset[str]:
    """The mesh axes that some array of a pytree varies over; none outside of shard_map."""
    return frozenset().union(*map(_axes, jax.tree.leaves(tree)))


def vary(tree: Any, axes: frozenset[str]) -> Any:
    """The arrays of a pytree, each varying over `axes` and the axes that it varied over before."""

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def _axes(leaf: Any) -> frozenset[str]:
    type_ = jax.typeof(leaf)
    return type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma
