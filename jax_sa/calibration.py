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

SLICE_SECONDS = 0.1
"""A slice of more than one step takes no longer."""

SHORT = 4
"""Beside each slice one of so many times fewer steps is timed, but of one at least where there are
several: what both take besides their steps is the same. On a CPU, a call's first step may take
half as long again as the next."""

SECONDS = 1.0
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
    ):
        self.restart, self.advance = restart, advance
        self.work = restart(None)

    def time(self, costs: jax.Array, steps: int, *, again: bool = False) -> tuple[float, int]:
        """The seconds of a slice, and its steps: fewer only where all of the work has fewer.

        With `again`, a step that is not counted comes before: where a GPU finds the buffers of a
        graph elsewhere than in its last run, it has to tell each kernel so, which takes longer than
        some steps. ValueError if the work has no step.
        """
        for _ in range(2):
            if again:
                self._advance(costs, 1)
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
    that will run, and nothing else is compiled. What a call takes besides its steps is not counted:
    a longer slice and a shorter one have it both.

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
    watch = _Stopwatch(restart, advance)
    rough = _warm_up(watch, forced)
    steps = np.clip(SLICE_SECONDS / rough, 1, MAX_SLICE).astype(int)
    while True:
        short = np.where(steps > 1, np.maximum(steps // SHORT, 1), 0)
        sizes = np.stack([short, steps], axis=1)
        rounds = int(np.clip(SECONDS / np.sum(sizes * rough[:, None]), *ROUNDS))
        seconds, done = _time_rounds(watch, forced, sizes, rounds, on_progress)
        if done is None:
            break
        # At most half, so that this does not go on for long.
        steps = np.minimum(steps, min(done, np.max(steps) // 2))
    of_short, of_long = np.min(seconds, axis=0).T
    more = steps - short
    # At least half, because clocks are not exact, and a step never costs nothing.
    least = of_long * more / steps / 2
    return _smooth(np.maximum(of_long - of_short, least) / more), watch.work


def measure_more(run: Callable[[Any, bool], Any], work: Any) -> tuple[float, Any]:
    """The seconds that `run(work, True)` takes more than `run(work, False)`, and the last work."""
    seconds = np.empty((ROUNDS[0], 2))
    for number in range(len(seconds)):
        for more in (False, True):
            begun = time.perf_counter()
            work = jax.block_until_ready(run(work, more))
            seconds[number, int(more)] = time.perf_counter() - begun
    without, with_more = np.min(seconds, axis=0)
    return max(with_more - without, 0.0), work


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
    sizes: np.ndarray,
    rounds: int,
    on_progress: Callable[[int, int], None],
) -> tuple[np.ndarray, int | None]:
    """float[R, W, 2] the seconds of slices of int[W, 2] `sizes`, two for each width.

    Round by round, so that a while in which the machine is slow does not hit one width alone.

    Returns:
      The seconds, and None; or, as soon as a slice had fewer steps than asked for, how many it had.
    """
    seconds = np.empty((rounds, *sizes.shape))
    for number in range(rounds):
        for width, costs in enumerate(forced):
            for size, steps in enumerate(sizes[width].tolist()):
                again = sizes[width, 1] > 1  # a step that takes long is not done once more
                seconds[number, width, size], done = watch.time(costs, steps, again=again)
                if done < steps:
                    return seconds, done
            if number == rounds - 1:
                on_progress(width + 1, len(forced))
    return seconds, None


def _smooth(seconds: np.ndarray) -> jax.Array:
    """float32[W] costs that do not fall with the width: a step never does less than a narrower one.

    Where a wider step was measured as faster, the difference is noise, and the faster one counts.
    """
    falling = np.minimum.accumulate(seconds.astype(np.float32)[::-1])
    return jnp.asarray(falling[::-1])
