"""Settings of the whole suite: it runs on the CPU, and on a GPU where there is one."""

import os

if os.environ.get("JAX_PLATFORMS") == "cpu" and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    # Most of the time is compilation, and most of that the optimization of what a fusion does, by
    # MLIR and by LLVM. What XLA makes of a program, its copies and buffers, is the same without.
    # In the environment, for the processes that tests start; before JAX is imported, which reads
    # it then.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    flag = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jax_sa import calibration

calibration.SECONDS = 0.3  # no test is about what a step costs here
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_code():
    """Frees the programs of a module: a process has room for only so many mapped at a time."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Keeps compiled programs in a folder that all workers share.

    For modules whose tests run one command again and again, each time with functions of its own
    that JAX would compile anew.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    options = {
        "jax_compilation_cache_dir": str(shared / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the folder's name once
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
