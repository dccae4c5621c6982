"""What a test needs of the machine. JAX_SA_REQUIRE_GPU=1 turns such skips into failures."""

import os

import pytest


def unavailable(reason):
    """Skips the test where something is missing, or fails it where it must not be."""
    if os.environ.get("JAX_SA_REQUIRE_GPU") == "1":
        pytest.fail(f"JAX_SA_REQUIRE_GPU=1, but {reason}")
    pytest.skip(reason)
