"""Times the automaton's share of a decode loop: append m accepted tokens, draft 8 more.

    python benchmarks/decode_step.py --json out.json

Every slot replays another stretch of real source code, just short of its capacity, in one jitted
lax.while_loop whose every step slices m tokens off, appends them and drafts. `baseline` is the
same loop without the automaton, so that the difference is what the automaton adds. Microseconds
per step over repeated runs of 64 steps; the drafts are checked against a separate lookup.
benchmarks/graph_step.cu times the kernels alone.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from loops import FLAGS  # before JAX starts
from report import add_json, positive, report
from source_tokens import slot_texts

import jax_sa
from jax_sa.cli.progress import ProgressBar

DRAFT = 8
STEPS = 64


@functools.partial(jax.jit, donate_argnums=(0, 1))
def decode(state, draft, blocks):
    """The state and the drafts after STEPS steps; blocks are int32[STEPS, S, m]."""
    lengths = jnp.full(state.num_slots, blocks.shape[2], jnp.int32)

    def step(i, carry):
        state, _ = carry
        return jax_sa.extend_lookup(state, blocks[i], lengths, max_draft=DRAFT)

    return jax.lax.fori_loop(0, STEPS, step, (state, draft))


@functools.partial(jax.jit, donate_argnums=0)
def baseline(last, blocks):
    """The same loop without the automaton."""
    return jax.lax.fori_loop(0, STEPS, lambda i, last: last ^ blocks[i], last)


def microseconds_per_step(run, *arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return result, (time.perf_counter() - start) / STEPS * 1e6


def measure(num_slots, context, accepted, runs):
    """Microseconds per step of each run, and of each run of the baseline."""
    texts = slot_texts(num_slots, context)
    prefill = context - (runs + 1) * STEPS * accepted
    state = jax.jit(functools.partial(jax_sa.init, num_slots, context))()
    state = jax.jit(jax_sa.extend, donate_argnums=0)(
        state, jnp.asarray(texts[:, :prefill]), jnp.full(num_slots, prefill, jnp.int32)
    )
    draft = jax_sa.lookup(state, max_draft=DRAFT)
    last = jnp.zeros((num_slots, accepted), jnp.int32)
    with_automaton, without = [], []
    for i in range(runs + 1):  # the first compiles
        new = texts[:, prefill + i * STEPS * accepted :][:, : STEPS * accepted]
        blocks = jnp.asarray(new.reshape(num_slots, STEPS, accepted).swapaxes(0, 1))
        jax.block_until_ready((state, blocks))
        last, us = microseconds_per_step(baseline, last, blocks)
        without.append(us)
        (state, draft), us = microseconds_per_step(decode, state, draft, blocks)
        with_automaton.append(us)
    check = jax_sa.lookup(state, max_draft=DRAFT)
    assert all(map(np.array_equal, jax.tree.leaves(draft), jax.tree.leaves(check)))
    assert np.all(np.asarray(state.length) == context) and not np.any(np.asarray(state.status))
    return with_automaton[1:], without[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 64, 256])
    parser.add_argument("--contexts", type=positive, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--accepted", type=positive, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=positive, default=30, help="of 64 steps each")
    add_json(parser)
    args = parser.parse_args()

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, XLA_FLAGS={FLAGS}")
    cases = [(c, s, m) for c in args.contexts for s in args.slots for m in args.accepted]
    bar = ProgressBar(len(cases), "cases")
    rows = []
    for context, num_slots, accepted in cases:
        with_automaton, without = measure(num_slots, context, accepted, args.runs)
        rows.append(
            {
                "slots": num_slots,
                "context": context,
                "accepted": accepted,
                "median_us": float(np.median(with_automaton)),
                "max_us": max(with_automaton),
                "baseline_us": float(np.median(without)),
                "slot_mb": jax_sa.get_state_size(context) / 1e6,
            }
        )
        bar.advance(1)
    report(rows, args.json, device=device.device_kind, flags=FLAGS)


if __name__ == "__main__":
    main()
