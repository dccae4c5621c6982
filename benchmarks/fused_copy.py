"""Times fused_copy against the forms that plain JAX offers.

    python benchmarks/fused_copy.py --json out.json

The figures are microseconds per iteration of one jitted loop that copies the same sources into
buffers that it carries. `loop` is an empty loop. `sets` is a donated `.at[].set` for each tensor.
`packed` is one `.at[].set` of a single buffer, where all sources are packed without row strides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from loops import FLAGS, iteration_us, parse_args
from report import report

import jax_sa
from jax_sa.cli.progress import ProgressBar

# Rows and pages of a step, and shapes of tensors: (count, rows, columns, columns of the buffer).
STEPS_METADATA = {f"metadata, {rows} rows": (rows, 64) for rows in (1, 64, 256)}
TENSORS = {
    "6 x 8192": (6, 1, 8192, 8192),
    "1 x [256, 8192]": (1, 256, 8192, 8192),
    "1 x [256, 8192] of 8200": (1, 256, 8192, 8200),
    "1 x [256, 8191] of 8193": (1, 256, 8191, 8193),
    "6 x [256, 8192]": (6, 256, 8192, 8192),
    "1 x [16384, 8192]": (1, 16_384, 8192, 8192),
}
MAX_ROWS, MAX_PAGES = 256, 512


def metadata(rows, pages, seed):
    rng = np.random.default_rng(seed)
    shapes = [(rows,), (rows,), (rows + 1,), (rows,), (rows,), (rows, pages)]
    return [jnp.asarray(rng.integers(0, 1000, shape), jnp.int32) for shape in shapes]


def tensors(count, rows, columns, seed):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.integers(0, 1000, (rows, columns), dtype=np.int32)) for _ in range(count)
    ]


def fused(buffers, sources):
    return jax_sa.fused_copy(buffers, sources).destinations


def dynamic(buffers, given):
    sources, rows = given
    return jax_sa.fused_copy(
        buffers,
        sources,
        rows=rows,
        extra_rows=[source.shape[0] - sources[0].shape[0] for source in sources],
    ).destinations


def sets(buffers, sources):
    return [
        buffer.at[tuple(map(slice, source.shape))].set(source)
        for buffer, source in zip(buffers, sources, strict=True)
    ]


def packed(buffer, sources):
    items = jnp.concatenate([source.ravel() for source in sources])
    return buffer.at[: items.size].set(items)


def alone(buffers, sources):
    return buffers


def main():
    args = parse_args(__doc__.splitlines()[0])

    cases = {
        name: (metadata(MAX_ROWS, MAX_PAGES, seed=0), metadata(rows, pages, seed=1))
        for name, (rows, pages) in STEPS_METADATA.items()
    } | {
        name: (tensors(count, rows, width, seed=0), tensors(count, rows, columns, seed=1))
        for name, (count, rows, columns, width) in TENSORS.items()
    }
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {FLAGS}", flush=True)
    bar = ProgressBar(len(cases), "cases")
    rows = []
    for name, (buffers, sources) in cases.items():
        expected = sets(buffers, sources)
        assert all(map(np.array_equal, fused(buffers, sources), expected))
        size = jnp.int32(sources[0].shape[0])
        items = sum(source.size for source in sources)
        forms = {
            "loop": (alone, buffers, sources),
            "fused": (fused, buffers, sources),
            "dynamic": (dynamic, buffers, (sources, size)),
            "sets": (sets, buffers, sources),
            "packed": (packed, jnp.zeros(items + 1, jnp.int32), sources),
        }
        row = {"tensors": name}
        for form, (body, carry, fixed) in forms.items():
            carry = jax.tree.map(jnp.copy, carry)
            row[form] = iteration_us(body, carry, fixed, args.steps, args.repeats)
        row["fused_GB/s"] = 8 * items / row["fused"] / 1e3
        rows.append(row)
        bar.advance(1)
    report(rows, args.json, device=device.device_kind, flags=FLAGS)


if __name__ == "__main__":
    main()
