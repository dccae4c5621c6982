"""Facts about dtypes, those of ml_dtypes included."""

import jax.numpy as jnp
import numpy as np


def has_whole_bytes(dtype: np.dtype) -> bool:
    """Whether an item takes whole bytes, unlike one of int4 or float4_e2m1fn."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits % 8 == 0
    return not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits % 8 == 0
