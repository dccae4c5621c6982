"""The devices that a command runs on."""

import jax


def start_jax() -> list[jax.Device]:
    """The devices of JAX's default backend.

    Raises:
      ValueError: JAX cannot use the platforms that `JAX_PLATFORMS` names.
    """
    try:
        return jax.devices()
    except Exception as error:  # RuntimeError for some platforms, AssertionError for others
        platforms = jax.config.jax_platforms
        reason = str(error).partition("\n")[0] or "it cannot be used here"
        raise ValueError(f"JAX_PLATFORMS={platforms or ''}: {reason}") from None
