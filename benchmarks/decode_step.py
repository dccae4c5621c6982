"""Times a decode step's automaton work: append m accepted tokens and draft 8 more.

    python benchmarks/decode_step.py --json out.json

Every slot replays another stretch of real source code, just short of its capacity. The steps run
as one jitted program: `unrolled` is a chain of steps, which XLA puts into one CUDA graph; `loop`
is a lax.while_loop, with the slicing of its inputs. Microseconds per step, median and maximum over
repeated programs; the drafts are checked against a separate lookup.
"""

import argparse
import functools
import json
import os
import time

FLAGS = "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_graph_min_graph_size=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax
import jax.numpy as jnp
import numpy as np
from source_tokens import slot_texts

import jax_sa
from jax_sa._table import format_table

DRAFT = 8
STEPS = 64


@functools.partial(jax.jit, donate_argnums=0)
def unrolled(state, blocks):
    lengths = jnp.full(state.num_slots, blocks[0].shape[1], jnp.int32)
    for block in blocks:
        state, draft = jax_sa.extend_lookup(state, block, lengths, max_draft=DRAFT)
    return state, draft


@functools.partial(jax.jit, donate_argnums=0)
def loop(state, blocks):
    lengths = jnp.full(state.num_slots, blocks.shape[2], jnp.int32)

    def step(i, carry):
        state, _ = carry
        return jax_sa.extend_lookup(state, blocks[i], lengths, max_draft=DRAFT)

    return jax.lax.fori_loop(0, STEPS, step, (state, jax_sa.lookup(state, max_draft=DRAFT)))


def measure(num_slots, context, accepted, programs, form):
    """Microseconds per step of each program run."""
    texts = slot_texts(num_slots, context)
    prefill = context - (programs + 1) * STEPS * accepted
    state = jax.jit(functools.partial(jax_sa.init, num_slots, context))()
    start = time.perf_counter()
    state = jax.jit(jax_sa.extend, donate_argnums=0)(
        state, jnp.asarray(texts[:, :prefill]), jnp.full(num_slots, prefill, jnp.int32)
    )
    jax.block_until_ready(state)
    prefill_seconds = time.perf_counter() - start
    times = []
    for i in range(programs + 1):  # the first compiles
        begin = prefill + i * STEPS * accepted
        new = texts[:, begin : begin + STEPS * accepted]
        new = new.reshape(num_slots, STEPS, accepted).swapaxes(0, 1)
        blocks = jnp.asarray(new) if form is loop else [jnp.asarray(block) for block in new]
        jax.block_until_ready((state, blocks))
        start = time.perf_counter()
        state, draft = form(state, blocks)
        jax.block_until_ready((state, draft))
        times.append((time.perf_counter() - start) / STEPS * 1e6)
    check = jax_sa.lookup(state, max_draft=DRAFT)
    assert all(map(np.array_equal, jax.tree.leaves(draft), jax.tree.leaves(check)))
    assert np.all(np.asarray(state.length) == context) and not np.any(np.asarray(state.status))
    return times[1:], prefill_seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--accepted", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--programs", type=int, default=30, help="runs of 64 steps each")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {FLAGS}", flush=True)
    rows = []
    for context in args.contexts:
        for num_slots in args.slots:
            for accepted in args.accepted:
                for form in (unrolled, loop):
                    times, prefill = measure(num_slots, context, accepted, args.programs, form)
                    rows.append(
                        {
                            "slots": num_slots,
                            "context": context,
                            "accepted": accepted,
                            "form": form.__name__,
                            "median_us": float(np.median(times)),
                            "min_us": min(times),
                            "max_us": max(times),
                            "prefill_s": prefill,
                            "slot_mb": jax_sa.get_state_size(context) / 1e6,
                        }
                    )
                    print(list(rows[-1].values()), flush=True)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": device.device_kind, "flags": FLAGS, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
