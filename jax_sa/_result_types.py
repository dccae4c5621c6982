"""The types of a target's results."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def result_type(
    like: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.int32
) -> jax.ShapeDtypeStruct:
    """A result that, under shard_map, varies over the mesh axes that the argument `like` does."""
    argument = jax.typeof(like)
    if argument.sharding.mesh.empty:
        return jax.ShapeDtypeStruct(shape, dtype)
    return jax.ShapeDtypeStruct(
        shape,
        dtype,
        sharding=NamedSharding(argument.sharding.mesh, PartitionSpec()),
        manual_axis_type=argument.manual_axis_type,
    )
