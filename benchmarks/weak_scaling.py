"""Times a decode loop on one device and on several, each with as many slots.

    python benchmarks/weak_scaling.py --json out.json

Every device has the same texts of real source code, so that each has the work of one device alone:
a jitted lax.fori_loop whose every step appends m tokens to all slots and drafts 8 more. The state
is split over its slots, and the program either plain jit or a jax.shard_map. What all devices
leave must be, bit for bit, what one device leaves, and the program must hold no collective.
Efficiency is the time of a step on one device over that on several.
"""

import argparse
import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from loops import FLAGS  # before JAX starts
from report import add_json, positive, report
from source_tokens import slot_texts

import jax_sa
from jax_sa.cli.progress import ProgressBar

DRAFT = 8
STEPS = 64
AXIS = "slots"
COLLECTIVE = r" (all-\w+|collective-\w+|reduce-scatter)(-start)?\("


def decode(state, draft, blocks):
    """The state and the drafts after STEPS steps; blocks are int32[S, STEPS, m]."""
    lengths = jnp.full_like(state.length, blocks.shape[2])

    def step(i, carry):
        state, _ = carry
        return jax_sa.extend_lookup(state, blocks[:, i], lengths, max_draft=DRAFT)

    return jax.lax.fori_loop(0, STEPS, step, (state, draft))


def compile_decode(kind, mesh, *arguments):
    split = PartitionSpec(AXIS)
    body = decode
    if kind == "shard_map":
        body = jax.shard_map(decode, mesh=mesh, in_specs=split, out_specs=split)
    compiled = jax.jit(body, donate_argnums=(0, 1)).lower(*arguments).compile()
    found = re.search(COLLECTIVE, compiled.as_text())
    assert not found, f"{kind} on {mesh.size} devices: a collective: {found[0]}"
    return compiled


def fill(prompts, max_seq_len):
    """A state with the prompts, on the host: what all devices begin with.

    A GPU that builds a prompt leaves its edges in any places of their table.
    """
    num_slots, width = prompts.shape
    lengths = np.full(num_slots, width, np.int32)
    extend = jax.jit(jax_sa.extend, donate_argnums=0)
    return jax.device_get(extend(jax_sa.init(num_slots, max_seq_len), prompts, lengths))


def measure(kind, devices, state, texts, accepted, runs):
    """Microseconds per step of each run, and the state and the drafts after them."""
    mesh = jax.make_mesh((len(devices),), (AXIS,), devices=devices)
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    state, texts = jax.tree.map(lambda x: np.concatenate([x] * len(devices)), (state, texts))
    num_slots, context = texts.shape
    prefill = context - (runs + 1) * STEPS * accepted
    state = jax.device_put(state, split)
    draft = jax.jit(functools.partial(jax_sa.lookup, max_draft=DRAFT))(state)
    compiled, times = None, []
    for i in range(runs + 1):  # the first is not counted
        new = texts[:, prefill + i * STEPS * accepted :][:, : STEPS * accepted]
        blocks = jax.device_put(new.reshape(num_slots, STEPS, accepted), split)
        compiled = compiled or compile_decode(kind, mesh, state, draft, blocks)
        jax.block_until_ready((state, draft, blocks))
        start = time.perf_counter()
        state, draft = jax.block_until_ready(compiled(state, draft, blocks))
        times.append((time.perf_counter() - start) / STEPS * 1e6)
    return times[1:], jax.device_get((state, draft))


def assert_parts_equal(results, whole, num_slots):
    """Every part of `num_slots` slots of the results is the whole of one device."""
    for leaf, expected in zip(*map(jax.tree.leaves, (results, whole)), strict=True):
        for part in leaf.reshape(-1, num_slots, *leaf.shape[1:]):
            np.testing.assert_array_equal(part, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=positive, nargs="+", help="default: 1, 2, 4, ... all")
    parser.add_argument("--slots", type=positive, default=64, help="on each device")
    parser.add_argument("--context", type=positive, default=32_768)
    parser.add_argument("--accepted", type=positive, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=positive, default=30, help="of 64 steps each")
    add_json(parser)
    args = parser.parse_args()

    devices = jax.devices()
    counts = args.devices or [2**i for i in range(len(devices).bit_length())]
    if max(counts) > len(devices):
        parser.error(f"--devices: expected at most {len(devices)}, got {max(counts)}")
    print(f"{devices[0].device_kind}, jax {jax.__version__}, XLA_FLAGS={FLAGS}")
    texts = slot_texts(args.slots, args.context)
    bar = ProgressBar(2 * len(args.accepted) * len(counts), "cases")
    rows = []
    for accepted in args.accepted:
        prefill = args.context - (args.runs + 1) * STEPS * accepted
        state = fill(texts[:, :prefill], args.context)
        for kind in ("jit", "shard_map"):
            alone = whole = None
            for count in sorted({1, *counts}):
                us, results = measure(kind, devices[:count], state, texts, accepted, args.runs)
                median = float(np.median(us))
                alone, whole = (median, results) if count == 1 else (alone, whole)
                assert_parts_equal(results, whole, args.slots)
                rows.append(
                    {
                        "program": kind,
                        "accepted": accepted,
                        "devices": count,
                        "median_us": median,
                        "max_us": max(us),
                        "efficiency_percent": 100 * alone / median,
                    }
                )
                bar.advance(1)
    facts = {"device": devices[0].device_kind, "flags": FLAGS}
    report(rows, args.json, slots_per_device=args.slots, context=args.context, **facts)


if __name__ == "__main__":
    main()
