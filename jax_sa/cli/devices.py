"""The devices that a command runs on."""

from typing import Any

import jax


def start_jax() -> list[Any]:
    """Each `jax.Device` of JAX's default backend.

    Raises:
      ValueError: JAX cannot use the platforms that `JAX_PLATFORMS` names.
    """
    try:
        return jax.devices()
    except (
        Exception
    ) as error:  # RuntimeError for some platforms, an empty AssertionError for others
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"JAX_PLATFORMS: expected platforms that JAX can use here, "
            f"got {jax.config.jax_platforms!r}" + (f": {reason}" if reason else "")
        ) from None
