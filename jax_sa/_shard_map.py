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


def vary_like(tree: Any, other: Any) -> Any:
    """The arrays of a pytree, each varying over the mesh axes that its counterpart does, too."""
    return jax.tree.map(lambda leaf, like: vary(leaf, _axes(like)), tree, other)


def check_varies(name: str, table: jax.Array, arguments: list[Any]) -> None:
    """Raises ValueError inside shard_map for a table that all shards share, but texts that differ.

    Each shard would go on with a table of its own, while JAX believed them to be one.
    """
    missing = varying_axes(arguments) - varying_axes(table)
    if missing:
        raise ValueError(
            f"{name}: expected one that varies over the mesh axes {sorted(missing)}, as the texts "
            "do: shard its groups over them, or gather the texts first"
        )


def _axes(leaf: Any) -> frozenset[str]:
    type_ = jax.typeof(leaf)
    return type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma
