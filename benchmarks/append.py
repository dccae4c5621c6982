"""Times appending source code to one slot on one CPU core, beside a textbook automaton in C++.

    JAX_PLATFORMS=cpu taskset -c 0 python benchmarks/append.py --json out.json

Nanoseconds per appended token, median and maximum over runs that take turns; both sides end with
the same number of nodes. The baseline is compiled with the system's c++ -O3.
"""

import argparse
import ctypes
import pathlib
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from report import add_json, positive, report
from source_tokens import source_tokens

import jax_sa
from jax_sa.cli.progress import ProgressBar


def build_textbook():
    """The textbook automaton's function that appends tokens, compiled."""
    folder = pathlib.Path(tempfile.mkdtemp())
    source = pathlib.Path(__file__).with_name("textbook.cc")
    library = folder / "textbook.so"
    subprocess.run(
        ["c++", "-std=c++17", "-O3", "-shared", "-fPIC", source, "-o", library], check=True
    )
    function = ctypes.CDLL(str(library)).textbook_append
    function.restype = ctypes.c_int64
    return function


def measure(tokens, runs, textbook):
    """Nanoseconds per token of each run, of jax_sa and of the textbook."""
    length = len(tokens)
    extend = jax.jit(jax_sa.extend, donate_argnums=0)
    reset = jax.jit(jax_sa.reset, donate_argnums=0)
    block, lengths = jnp.asarray(tokens[None]), jnp.full(1, length, jnp.int32)
    state = extend(jax_sa.init(1, length), block, lengths)
    times = {"jax_sa": [], "textbook": []}
    for _ in range(runs):
        state = jax.block_until_ready(reset(state, jnp.zeros(1, jnp.int32)))
        start = time.perf_counter()
        state = jax.block_until_ready(extend(state, block, lengths))
        times["jax_sa"].append((time.perf_counter() - start) / length * 1e9)
        start = time.perf_counter()
        nodes = textbook(tokens.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(length))
        times["textbook"].append((time.perf_counter() - start) / length * 1e9)
        assert nodes == 1 + length + int(state.num_clones[0])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=[8_192, 32_768, 131_072, 262_144]
    )
    parser.add_argument("--runs", type=positive, default=9)
    add_json(parser)
    args = parser.parse_args()

    textbook = build_textbook()
    bar = ProgressBar(len(args.lengths), "lengths")
    rows = []
    for length in args.lengths:
        times = measure(source_tokens(length), args.runs, textbook)
        ours, theirs = (float(np.median(times[name])) for name in ("jax_sa", "textbook"))
        rows.append(
            {
                "tokens": length,
                "ns_per_token": ours,
                "max": max(times["jax_sa"]),
                "textbook": theirs,
                "textbook_max": max(times["textbook"]),
                "ratio": theirs / ours,
            }
        )
        bar.advance(1)
    report(rows, args.json, device=jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
