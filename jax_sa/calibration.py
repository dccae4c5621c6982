"""What steps cost, measured through the compiled loop that will run them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_sa.state import State

CALIBRATION_TOKENS = 8
"""New tokens that a calibration needs at least, to see steps of every width."""

SLICE_SECONDS = 0.05
"""Steps of one width are timed in slices that take about so long."""

MAX_SLICE = 32
"""Steps of a slice at most."""

SLICES = 3
"""Slices of each width; the fastest counts."""


class Calibration(NamedTuple):
    """Measured costs, and the buffers that were used to measure them."""

    costs: jax.Array
    """float32[W] seconds of a step of each width."""
    cache: Any
    """The model's, for the next call."""
    state: State | None
    """The automata, for the next call."""


def measure_costs(
    restart: Callable[[Any], Any],
    advance: Callable[[Any, jax.Array, int], tuple[Any, int]],
    num_widths: int,
    on_progress: Callable[[int, int], None],
) -> tuple[jax.Array, Any]:
    """float32[W] the seconds of a step of each width, and the last work.

    A width is forced by costs that make all others worthless, so that what is timed is the program
    that will run, and nothing else is compiled.

    Args:
      restart: makes work that is ready to decode, from None or from work that is done with.
      advance: `advance(work, costs, steps)` does at most so many steps, and says how many it did.
      num_widths: W.
      on_progress: called with the number of widths that were measured, and of all.
    """
    work, seconds = restart(None), []
    for width in range(num_widths):
        forced = jnp.where(jnp.arange(num_widths) == width, 1.0, jnp.inf).astype(jnp.float32)
        best, slices, steps = float("inf"), 0, 1
        while slices <= SLICES:  # the first warms up, and says how long a slice is to be
            begun = time.perf_counter()
            work, done = advance(work, forced, steps)
            elapsed = time.perf_counter() - begun
            if done < steps:  # it came to its end
                work, steps = restart(work), max(1, steps // 2)
                continue
            if slices > 0:
                best = min(best, elapsed / steps)
            steps = max(1, min(MAX_SLICE, int(SLICE_SECONDS * steps / elapsed)))
            slices += 1
        seconds.append(best)
        on_progress(width + 1, num_widths)
    return jnp.asarray(seconds, jnp.float32), work
