"""The cost of steps, measured through the compiled loop that will run them."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.state import AnyState

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
    state: AnyState | None
    """The automata, for the next call."""


def measure_costs(
    restart: Callable[[Any], Any],
    advance: Callable[[Any, jax.Array, int], tuple[Any, int]],
    num_widths: int,
    on_progress: Callable[[int, int], None],
) -> tuple[jax.Array, Any]:
    """float32[W] the seconds of a step of each width, and the last work.

    A width is forced by costs that make all others worthless, so that what is timed is the program
    that will run, and nothing else is compiled. A call takes its time without any step: that is
    measured too, and not counted.

    Args:
      restart: makes work that is ready to decode, from None or from work that is done with.
      advance: `advance(work, costs, steps)` does at most so many steps, and says how many it did.
      num_widths: W.
      on_progress: called with the number of widths that were measured, and of all.

    Raises:
      ValueError: work has no step to measure.
    """
    work, fresh = restart(None), True
    call = math.inf
    for _ in range(1 + SLICES):
        begun = time.perf_counter()
        work, _ = advance(work, jnp.ones(num_widths, jnp.float32), 0)
        call = min(call, time.perf_counter() - begun)
    best, steps, longest = [math.inf] * num_widths, [1] * num_widths, MAX_SLICE
    # Round by round, so that a while in which the machine is slow does not hit one width alone.
    for number in range(1 + SLICES):
        for width in range(num_widths):
            forced = jnp.where(jnp.arange(num_widths) == width, 1.0, jnp.inf).astype(jnp.float32)
            while True:
                begun = time.perf_counter()
                work, done = advance(work, forced, steps[width])
                taken = time.perf_counter() - begun
                # At least half, because clocks are not exact, and a step never costs nothing.
                seconds = max(taken - call, taken / 2) / steps[width]
                if done == steps[width]:
                    break
                if fresh and done == 0:
                    raise ValueError(
                        "prompts: expected answers of several steps, all ended at once"
                    )
                # It came to its end. The slices get shorter, so that this does not go on forever.
                longest = steps[width] = max(1, steps[width] // 2)
                work, fresh = restart(work), True
            fresh = False
            if number > 0:  # the first round warms up, and says how long a slice is to be
                best[width] = min(best[width], seconds)
            steps[width] = max(1, min(longest, int(SLICE_SECONDS / seconds)))
            if number == SLICES:
                on_progress(width + 1, num_widths)
    return _smooth(best), work


def _smooth(seconds: list[float]) -> jax.Array:
    """float32[W] costs that do not fall with the width: a step never does less than a narrower one.

    Where a wider step was measured as faster, the difference is noise, and the faster one counts.
    """
    falling = np.minimum.accumulate(np.asarray(seconds, np.float32)[::-1])
    return jnp.asarray(falling[::-1])
