"""Times both indexes: a decode step, and the prompts of all slots.

    python benchmarks/index_crossover.py --json out.json

A step appends m tokens of real source code to every slot, just short of its capacity, and drafts 8
more, as in decode_step.py, whose loops these are: microseconds per step, less those of the same
loop without an index. `fill_ms` is one `extend` with the prompts of all slots at once. Both indexes
must draft the same lengths at every last step.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from decode_step import DRAFT, STEPS, baseline, decode, microseconds_per_step  # before JAX starts
from loops import FLAGS
from report import add_json, positive, report
from source_tokens import slot_texts

import jax_sa
from jax_sa.cli.progress import ProgressBar

extend = jax.jit(jax_sa.extend, donate_argnums=0)
reset = jax.jit(jax_sa.reset, donate_argnums=0)


def fill(state, prompts):
    """The state with the prompts, and the milliseconds that one call takes."""
    lengths = jnp.full(state.num_slots, prompts.shape[1], jnp.int32)
    every_slot = jnp.arange(state.num_slots, dtype=jnp.int32)
    prompts = jnp.asarray(prompts)
    jax.block_until_ready(state)
    for _ in range(2):  # the first compiles
        state = jax.block_until_ready(reset(state, every_slot))
        start = time.perf_counter()
        state = jax.block_until_ready(extend(state, prompts, lengths))
    return state, (time.perf_counter() - start) * 1e3


def measure(index, texts, accepted, runs):
    """The last draft, microseconds per step, and milliseconds to fill all slots."""
    num_slots, context = texts.shape
    prefill = context - (runs + 1) * STEPS * accepted
    state = jax.jit(functools.partial(jax_sa.init, num_slots, context, index=index))()
    state, fill_ms = fill(state, texts[:, :prefill])
    draft = jax_sa.lookup(state, max_draft=DRAFT)
    last = jnp.zeros((num_slots, accepted), jnp.int32)
    times, without = [], []
    for i in range(runs + 1):  # the first compiles
        new = texts[:, prefill + i * STEPS * accepted :][:, : STEPS * accepted]
        blocks = jnp.asarray(new.reshape(num_slots, STEPS, accepted).swapaxes(0, 1))
        jax.block_until_ready((state, blocks))
        last, us = microseconds_per_step(baseline, last, blocks)
        without.append(us)
        (state, draft), us = microseconds_per_step(decode, state, draft, blocks)
        times.append(us)
    return draft, float(np.median(times[1:]) - np.median(without[1:])), fill_ms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--contexts", type=positive, nargs="+", default=[8_192, 32_768, 131_072])
    parser.add_argument("--accepted", type=positive, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=positive, default=15, help="of 64 steps each")
    add_json(parser)
    args = parser.parse_args()

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, XLA_FLAGS={FLAGS}")
    cases = [(c, s, m) for c in args.contexts for s in args.slots for m in args.accepted]
    bar = ProgressBar(len(cases), "cases")
    rows = []
    for context, num_slots, accepted in cases:
        texts = slot_texts(num_slots, context)
        row = {"slots": num_slots, "context": context, "accepted": accepted}
        drafts = []
        for index in ("automaton", "scan"):
            draft, step_us, fill_ms = measure(index, texts, accepted, args.runs)
            drafts.append(np.asarray(draft.match_length))
            row |= {f"{index}_step_us": step_us, f"{index}_fill_ms": fill_ms}
        assert np.array_equal(*drafts)
        rows.append(row)
        bar.advance(1)
    report(rows, args.json, device=device.device_kind, flags=FLAGS)


if __name__ == "__main__":
    main()
