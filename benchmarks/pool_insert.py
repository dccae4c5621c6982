"""Times inserting texts into a pool, in one jitted loop whose pool stays in place.

    python benchmarks/pool_insert.py --json out.json

Rows of source code, given as a block of tokens (`insert`) and as slots of a state (`insert_slots`).
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from report import add_json, positive, report
from source_tokens import slot_texts

import jax_sa
from jax_sa.cli.progress import ProgressBar

SHAPES = ((1, 1024), (16, 1024), (64, 1024), (64, 8192))


def times_of(insert, capacity, repeats, runs):
    """Microseconds of one insert, for each run of a loop of them."""

    @functools.partial(jax.jit, donate_argnums=0)
    def loop(pool):
        return jax.lax.fori_loop(0, repeats, lambda _, pool: insert(pool), pool)

    pool = jax.block_until_ready(loop(jax_sa.init_pool(capacity)))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        pool = jax.block_until_ready(loop(pool))
        times.append((time.perf_counter() - start) / repeats * 1e6)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity", type=positive, default=2**20)
    parser.add_argument("--repeats", type=positive, default=50, help="inserts in a loop (50)")
    parser.add_argument("--runs", type=positive, default=9)
    add_json(parser)
    args = parser.parse_args()

    bar = ProgressBar(2 * len(SHAPES), "cases")
    figures = []
    for rows, length in SHAPES:
        tokens = jnp.asarray(slot_texts(rows, length))
        lengths = jnp.full(rows, length, jnp.int32)
        state = jax_sa.init(rows, length)
        state = jax.jit(jax_sa.extend, donate_argnums=0)(state, tokens, lengths)
        slots = jnp.arange(rows, dtype=jnp.int32)
        for name, insert in (
            ("insert", lambda pool: jax_sa.insert(pool, tokens, lengths)),  # noqa: B023
            ("insert_slots", lambda pool: jax_sa.insert_slots(pool, state, slots)),  # noqa: B023
        ):
            times = times_of(insert, args.capacity, args.repeats, args.runs)
            us = float(np.median(times))
            figures.append(
                {
                    "op": name,
                    "rows": rows,
                    "length": length,
                    "us": us,
                    "max_us": max(times),
                    "million_tokens_per_s": rows * length / us,
                }
            )
            bar.advance(1)
    report(figures, args.json, device=jax.devices()[0].device_kind, capacity=args.capacity)


if __name__ == "__main__":
    main()
