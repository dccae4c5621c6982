"""Times expand_seqlens against the forms that plain JAX offers.

    python benchmarks/seqlens.py --json out.json

The figures are microseconds per iteration of one jitted loop that expands lengths. Each iteration
depends on the result before it, so that none can be skipped. `loop` is the same loop without the
expansion. The result of every form is checked.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from loops import FLAGS, iteration_us, parse_args
from report import report

import jax_sa
from jax_sa.cli.progress import ProgressBar

SHAPES = [(1, 4), (64, 4), (256, 4), (1024, 4), (1024, 16), (4096, 4), (65_536, 4), (64, 65_536)]


def kernel(kv_lens, q_lens, total):
    return jax_sa.expand_seqlens(kv_lens, q_lens, total=total).values


def repeat(kv_lens, q_lens, total):
    ends = jnp.cumsum(q_lens)
    shift = jnp.repeat(kv_lens - ends + 1, q_lens, total_repeat_length=total)
    place = jnp.arange(total)
    return jnp.where(place < ends[-1], jnp.maximum(shift + place, 0), 0)


def searchsorted(kv_lens, q_lens, total, method):
    ends = jnp.cumsum(q_lens)
    place = jnp.arange(total)
    row = jnp.searchsorted(ends, place, side="right", method=method)
    value = kv_lens.at[row].get(mode="clip") - ends.at[row].get(mode="clip") + 1 + place
    return jnp.where(place < ends[-1], jnp.maximum(value, 0), 0)


def uniform(kv_lens, q_lens, total, q_len):
    return jax_sa.expand_seqlens(kv_lens, q_len, total=total).values


def alone(kv_lens, q_lens, total):
    return None


def measure(form, kv_lens, q_lens, total, steps, repeats):
    """Microseconds per iteration; the form's values must be the kernel's."""
    expected = kernel(kv_lens, q_lens, total)
    got = form(kv_lens, q_lens, total)
    assert got is None or np.array_equal(got, expected)

    def body(carry, q_lens):
        kv_lens, values = carry
        kv_lens = jnp.where(values[0] == -7, 0, kv_lens)
        new = form(kv_lens, q_lens, total)
        return kv_lens, values if new is None else new

    return iteration_us(body, (kv_lens + 0, expected), q_lens, steps, repeats)


def main():
    args = parse_args(__doc__.splitlines()[0])

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {FLAGS}", flush=True)
    bar = ProgressBar(len(SHAPES), "shapes")
    rng = np.random.default_rng(0)
    rows = []
    for num_rows, q_len in SHAPES:
        kv_lens = jnp.asarray(rng.integers(q_len, 100_000, num_rows), jnp.int32)
        all_same = jnp.full(num_rows, q_len, jnp.int32)
        ragged = all_same if q_len > 64 else jnp.asarray(rng.integers(0, 2 * q_len, num_rows))
        searches = {
            f"searchsorted_{method}": functools.partial(searchsorted, method=method)
            for method in ("scan", "scan_unrolled", "sort", "compare_all")
            # Its intermediate has an entry for every row and place.
            if method != "compare_all" or num_rows * num_rows * q_len < 10**8
        }
        forms = {
            "loop": (alone, ragged),
            "kernel": (kernel, ragged),
            "repeat": (repeat, ragged),
            **{name: (form, ragged) for name, form in searches.items()},
            "uniform_kernel": (kernel, all_same),
            "uniform_jnp": (functools.partial(uniform, q_len=q_len), all_same),
        }
        row = {"rows": num_rows, "q": q_len}
        for name, (form, q_lens) in forms.items():
            total = int(q_lens.sum())
            row[name] = measure(form, kv_lens, q_lens, total, args.steps, args.repeats)
        best = min(row[name] for name in searches)
        row = {k: v for k, v in row.items() if k not in searches} | {"best_searchsorted": best}
        rows.append(row)
        bar.advance(1)
    report(rows, args.json, device=device.device_kind, flags=FLAGS)


if __name__ == "__main__":
    main()
