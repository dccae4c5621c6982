"""The index of one text, built on the host while the device does something else."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_sa._checks import INT32_MAX
from jax_sa.automaton import extend
from jax_sa.scan_state import ScanState
from jax_sa.state import AnyState, get_state_size, init

PROMPT_CHUNK = 1024
"""Tokens that the host appends to an automaton at a time: one compiled program builds prompts of
any length. A scan has them all appended at once, which takes one pass."""


def build_on_host(
    tokens: Sequence[int] | np.ndarray,
    max_seq_len: int,
    *,
    seed: int = 0,
    index: str = "automaton",
) -> AnyState:
    """A state of one slot that holds a text, on the CPU, for `insert`.

    The device goes on with what it was given while the host builds. `extend` takes less time where
    it builds long rows in parallel, but all of the device.

    Args:
      tokens: 0..N ints, each an int32.
      max_seq_len: N, as of the state that it is for.
      seed: of the slot, as in `init`; `insert` takes it along.
      index: "automaton" or "scan", as of the state that it is for.

    Raises:
      ValueError: the tokens are too many or no int32s, `max_seq_len` or `seed` is out of range,
        `index` is neither, or JAX was told to have no CPU (`JAX_PLATFORMS`).
      TypeError: the tokens are no ints, `max_seq_len` or `seed` is none, or `index` no str.
    """
    get_state_size(max_seq_len, index=index)  # which checks them
    tokens = check_tokens(tokens, max_seq_len)
    with jax.default_device(_host()):
        built = init(1, max_seq_len, seed=seed, index=index)
        width = max_seq_len if isinstance(built, ScanState) else min(PROMPT_CHUNK, max_seq_len)
        for begin in range(0, len(tokens), width):
            chunk = tokens[begin : begin + width]
            padded = np.pad(chunk, (0, width - len(chunk)))[None]
            built = _extend(built, padded, np.full(1, len(chunk), np.int32))
    return built


def check_tokens(tokens: Any, max_seq_len: int) -> np.ndarray:
    """`tokens` as int32[n], n at most `max_seq_len`."""
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(
            f"tokens: expected a sequence of ints, got {array.dtype}{list(array.shape)}"
        )
    if array.size > max_seq_len:
        raise ValueError(f"tokens: expected at most {max_seq_len}, got {array.size}")
    if array.size and not -INT32_MAX - 1 <= array.min() <= array.max() <= INT32_MAX:
        raise ValueError(f"tokens: expected int32s, got {array.min()}..{array.max()}")
    return array.astype(np.int32)


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ValueError(
            f"JAX_PLATFORMS: expected cpu among them, got {jax.config.jax_platforms!r}"
        ) from None


_extend = jax.jit(extend, donate_argnames="state")
