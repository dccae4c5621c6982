"""Times a function of a carry, as the body of one jitted loop.

Import it before anything runs: it sets the flags with which XLA makes the loop one CUDA graph.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

FLAGS = "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_graph_min_graph_size=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax
from report import add_json, positive


def parse_args(description: str) -> argparse.Namespace:
    """The command line of a benchmark of loops."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=positive, default=500, help="iterations of a loop")
    parser.add_argument(
        "--repeats", type=positive, default=11, help="loops, of which the median counts"
    )
    add_json(parser)
    return parser.parse_args()


def iteration_us(
    body: Callable[[Any, Any], Any], carry: Any, fixed: Any, steps: int, repeats: int
) -> float:
    """Median microseconds of an iteration of `carry = body(carry, fixed)`."""

    def loop(carry, fixed):
        return jax.lax.fori_loop(0, steps, lambda _, carry: body(carry, fixed), carry)

    loop = jax.jit(loop, donate_argnums=0)
    carry = jax.block_until_ready(loop(carry, fixed))  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        carry = jax.block_until_ready(loop(carry, fixed))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / steps * 1e6
