"""Times a step that is called from Python: one token appended to each slot, and the next draft.

    JAX_PLATFORMS=cpu python benchmarks/dispatch.py

A call of a jitted function takes time for each array that it is given, donated and returns, however
little it computes. So the steps are timed beside ones that compute next to nothing: on one array,
and on as many as a state has. They take turns, so that whatever else the machine does slows all.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import add_json, positive, report

import jax_sa

DRAFT = 4
"""Tokens of a draft."""

RUN = 50
"""Calls of a step in a row, before it is the next one's turn."""


def lookup_all(state, tokens, lengths):
    return jax_sa.extend_lookup(state, tokens, lengths, max_draft=DRAFT)


def lookup_tokens(state, tokens, lengths):
    state, draft = jax_sa.extend_lookup(state, tokens, lengths, max_draft=DRAFT)
    return state, (draft.tokens, draft.length)


def append(state, tokens, lengths):
    return jax_sa.extend(state, tokens, lengths), ()


def add_one(state, tokens, lengths):
    """Next to nothing, on as many arrays as `append`."""
    first, *rest = jax.tree.leaves(state)
    return jax.tree.unflatten(jax.tree.structure(state), [first + 1, *rest]), ()


def cases(slots: int, capacity: int) -> dict[str, tuple[Callable, Any]]:
    """Steps by name, and what each is given first."""
    make = functools.partial(jax_sa.init, slots, capacity)
    return {
        "one array": (add_one, jnp.zeros((slots, 4), jnp.int32)),
        "as many arrays as a state": (add_one, jax.tree.map(jnp.zeros_like, make())),
        "extend": (append, make()),
        "extend_lookup, tokens and length returned": (lookup_tokens, make()),
        "extend_lookup, all of the draft returned": (lookup_all, make()),
        "the same, index='scan'": (lookup_all, make(index="scan")),
    }


def measure(slots: int, steps: int) -> list[dict[str, Any]]:
    """Microseconds of each step, until its results are there."""
    random = np.random.default_rng(0)
    tokens = [jnp.asarray(random.integers(0, 4, (slots, 1)), jnp.int32) for _ in range(64)]
    one = jnp.ones(slots, jnp.int32)
    compiled, carry, seconds = {}, {}, {}
    for name, (step, first) in cases(slots, steps + 1).items():
        compiled[name] = jax.jit(step, donate_argnums=0)
        carry[name], _ = jax.block_until_ready(compiled[name](first, tokens[0], one))
        seconds[name] = []
    for begin in range(0, steps, RUN):
        for name, step in compiled.items():
            for i in range(begin, min(begin + RUN, steps)):
                begun = time.perf_counter()
                carry[name], _ = jax.block_until_ready(step(carry[name], tokens[i % 64], one))
                seconds[name].append(time.perf_counter() - begun)
    return [
        {
            "slots": slots,
            "step": name,
            "p10 us": 1e6 * sorted(times)[len(times) // 10],
            "p50 us": 1e6 * statistics.median(times),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 64])
    parser.add_argument("--steps", type=positive, default=4000, help="timed calls of each step")
    add_json(parser)
    args = parser.parse_args()
    rows = [row for slots in args.slots for row in measure(slots, args.steps)]
    report(rows, args.json, device=jax.devices()[0].device_kind, jax=jax.__version__)


if __name__ == "__main__":
    main()
