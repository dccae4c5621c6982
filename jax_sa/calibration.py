"""The cost of steps, measured through the compiled loop that will run them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.state import AnyState

CALIBRATION_TOKENS = 8
"""New tokens that a calibration needs at least, to see steps of every width."""

MAX_SLICE = 64
"""Steps that are timed together at most."""

SLICE_SECONDS = 0.05
"""A slice of more than one step takes no longer."""

UNCOUNTED = 6
"""Steps of the narrowest width before a slice that are not counted, if it has more than one step.
Where a GPU finds the buffers of a graph elsewhere than in its last run, it has to tell each kernel
so, which takes longer than some steps; and a decoder whose last steps were all plain goes on in a
loop, and so a graph, of its own."""

SECONDS = 2.0
"""Slices of all widths are timed, one of each in a round, until all rounds take about so long."""

ROUNDS = (3, 12)
"""The least and the most rounds; of each width's slices the fastest counts."""


class Calibration(NamedTuple):
    """Measured costs, and the buffers that were used to measure them."""

    costs: jax.Array
    """float32[W] seconds of a step of each width."""
    cache: Any
    """The model's, for the next call."""
    state: AnyState | None
    """The automata, for the next call."""


class _Stopwatch:
    """Times slices of work, which begins anew where it has come to its end."""

    def __init__(
        self,
        restart: Callable[[Any], Any],
        advance: Callable[[Any, jax.Array, int], tuple[Any, int]],
        narrowest: jax.Array,
    ):
        self.restart, self.advance, self.narrowest = restart, advance, narrowest
        self.work = restart(None)

    def time(self, costs: jax.Array, steps: int) -> tuple[float, int]:
        """The seconds of a slice, and its steps: fewer only where all of the work has fewer.

        ValueError if it has none.
        """
        for _ in range(2):
            if steps > 1:
                self._advance(self.narrowest, UNCOUNTED)
            taken, done = self._advance(costs, steps)
            if done == steps:
                return taken, done
            self.work = self.restart(self.work)
        if done == 0:
            taken, done = self._advance(costs, steps)
        if done == 0:
            raise ValueError("prompts: expected answers of several steps, all ended at once")
        return taken, done

    def _advance(self, costs: jax.Array, steps: int) -> tuple[float, int]:
        begun = time.perf_counter()
        self.work, done = self.advance(self.work, costs, steps)
        return time.perf_counter() - begun, done


def measure_costs(
    restart: Callable[[Any], Any],
    advance: Callable[[Any, jax.Array, int], tuple[Any, int]],
    num_widths: int,
    on_progress: Callable[[int, int], None],
) -> tuple[jax.Array, Any]:
    """float32[W] the seconds of a step of each width, and the last work.

    A width is forced by costs that make all others worthless, so that what is timed is the program
    that will run, and nothing else is compiled. A call takes its time without any step: that is
    measured too, and not counted. It is not known exactly, so the slices of all widths have equally
    many steps: then an error of it falls on all of them alike, and hardly on their ratios.

    Args:
      restart: makes work that is ready to decode, from None or from work that is done with.
      advance: `advance(work, costs, steps)` does at most so many steps, and says how many it did.
      num_widths: W.
      on_progress: called with the number of widths that were measured, and of all.

    Raises:
      ValueError: work has no step to measure.
    """
    forced = [
        jnp.where(jnp.arange(num_widths) == width, 1.0, jnp.inf).astype(jnp.float32)
        for width in range(num_widths)
    ]
    watch = _Stopwatch(restart, advance, forced[0])
    rough = _warm_up(watch, forced)
    steps = int(np.clip(SLICE_SECONDS / np.max(rough), 1, MAX_SLICE))
    while True:
        uncounted = UNCOUNTED * num_widths * rough[0] if steps > 1 else 0.0
        rounds = int(np.clip(SECONDS / (steps * np.sum(rough) + uncounted), *ROUNDS))
        seconds, done = _time_rounds(watch, forced, steps, rounds, on_progress)
        if done == steps:
            break
        steps = min(done, steps // 2)  # at most half, so that this does not go on for long
    call, *best = np.min(seconds, axis=0)
    # At least half, because clocks are not exact, and a step never costs nothing.
    steps_alone = np.maximum(np.subtract(best, call), np.divide(best, 2))
    return _smooth(steps_alone / steps), watch.work


def _warm_up(watch: _Stopwatch, forced: list[jax.Array]) -> np.ndarray:
    """float[W] the seconds of a step of each width, roughly."""
    seconds = []
    for costs in forced:
        watch.time(costs, 1)  # the first run of a program takes longer
        seconds.append(watch.time(costs, 1)[0])
    call, _ = watch.time(forced[0], 0)
    # Not less than an eighth: one step and one call are too few to tell them apart any better.
    return np.maximum(np.subtract(seconds, call), np.divide(seconds, 8))


def _time_rounds(
    watch: _Stopwatch,
    forced: list[jax.Array],
    steps: int,
    rounds: int,
    on_progress: Callable[[int, int], None],
) -> tuple[np.ndarray, int]:
    """float[R, 1 + W] the seconds of a call without a step, and of a slice of each width.

    Round by round, so that a while in which the machine is slow does not hit one width alone.

    Returns:
      The seconds, and the steps of all slices; of the first one that has fewer, if there is one.
    """
    seconds = np.empty((rounds, 1 + len(forced)))
    for number in range(rounds):
        seconds[number, 0], _ = watch.time(forced[0], 0)
        for width, costs in enumerate(forced, 1):
            seconds[number, width], done = watch.time(costs, steps)
            if done < steps:
                return seconds, done
            if number == rounds - 1:
                on_progress(width, len(forced))
    return seconds, steps


def _smooth(seconds: np.ndarray) -> jax.Array:
    """float32[W] costs that do not fall with the width: a step never does less than a narrower one.

    Where a wider step was measured as faster, the difference is noise, and the faster one counts.
    """
    falling = np.minimum.accumulate(seconds.astype(np.float32)[::-1])
    return jnp.asarray(falling[::-1])
