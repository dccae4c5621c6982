"""Settings of the whole suite: it runs on the CPU, and on a GPU where there is one."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_code():
    """Frees the programs of a module: a process has room for only so many mapped at a time."""
    yield
    jax.clear_caches()
