"""Settings of the whole suite: it runs on the CPU, and on a GPU where there is one.

JAX_SA_REQUIRE_GPU=1 turns the skips of what needs a GPU or its compiler into failures.
"""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def unavailable(reason):
    """Skips the test where something is missing, or fails it where it must not be."""
    if os.environ.get("JAX_SA_REQUIRE_GPU") == "1":
        pytest.fail(f"JAX_SA_REQUIRE_GPU=1, but {reason}")
    pytest.skip(reason)
