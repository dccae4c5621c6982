"""Times prompts: `extend` with one long row, beside the same tokens in rows of 128.

    python benchmarks/prefill.py --json out.json

Milliseconds, less those of the copy that every iteration starts from. On a GPU, long rows may be
built in parallel, and short ones never are. On a CPU there is only one way, and no difference.
"""

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from loops import iteration_us  # first: it sets XLA's flags
from report import add_json, positive, report
from source_tokens import slot_texts

import jax_sa
from jax_sa.cli.progress import ProgressBar

SHORT = 128


class Case(NamedTuple):
    """Texts of `before` tokens each, to which `appended` are appended."""

    slots: int
    before: int
    appended: int


CASES = (
    Case(1, 0, 256),
    Case(1, 0, 512),
    Case(1, 0, 2_048),
    Case(1, 0, 8_192),
    Case(1, 0, 32_768),
    Case(1, 0, 131_072),
    Case(8, 0, 32_768),
    Case(64, 0, 512),
    Case(64, 0, 2_048),
    Case(64, 0, 32_768),
    Case(1, 30_720, 512),
    Case(1, 30_720, 2_048),
    Case(8, 30_720, 2_048),
    Case(64, 30_720, 2_048),
)


def texts(kind: str, slots: int, length: int) -> np.ndarray:
    """int32[slots, length]"""
    if kind == "source":
        return slot_texts(slots, length)
    if kind == "random":
        return np.random.default_rng(0).integers(0, 32_000, (slots, length), np.int32)
    text = np.ones((slots, length), np.int32)
    if kind == "run-end":
        text[:, -1] = 2
    return text


def copy(state: jax_sa.State, slots: int) -> jax_sa.State:
    """The first half of the slots become copies of the second half."""
    to = jnp.arange(slots, dtype=jnp.int32)
    return jax_sa.copy_slots(state, to + slots, to)


def extend(state: jax_sa.State, tokens: jax.Array) -> jax_sa.State:
    slots, length = tokens.shape
    rows = jnp.arange(slots, dtype=jnp.int32)
    return jax_sa.extend(state, tokens, jnp.full(slots, length, jnp.int32), slots=rows)


def extend_in_parts(state: jax_sa.State, tokens: jax.Array) -> jax_sa.State:
    parts = tokens.reshape(tokens.shape[0], -1, SHORT).swapaxes(0, 1)
    return jax.lax.fori_loop(0, len(parts), lambda i, state: extend(state, parts[i]), state)


def measure(case: Case, kind: str, repeats: int) -> dict[str, float]:
    """Milliseconds of both ways."""
    length = case.before + case.appended
    text = texts(kind, case.slots, length)
    tokens = jnp.asarray(text[:, case.before :])
    state = jax_sa.init(2 * case.slots, length)
    if case.before:
        prepare = jax.jit(jax_sa.extend, donate_argnums=0)
        before = jnp.asarray(np.concatenate([text, text])[:, : case.before])
        state = prepare(state, before, jnp.full(2 * case.slots, case.before, jnp.int32))
    empty = jax.tree.map(jnp.copy, state)

    def body(append, state, tokens):
        return append(copy(state, case.slots), tokens)

    def milliseconds(append, steps):
        carry = jax.tree.map(jnp.copy, empty)
        run = functools.partial(body, append)
        return iteration_us(run, carry, tokens, steps, repeats) / 1e3

    base = milliseconds(lambda state, _: state, 20)
    return {
        "rows_of_128_ms": milliseconds(extend_in_parts, 1) - base,
        "one_row_ms": milliseconds(extend, 10) - base,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", choices=("source", "random", "run", "run-end"), default="source")
    parser.add_argument("--repeats", type=positive, default=5, help="loops; the median counts")
    parser.add_argument("--cases", type=positive, nargs="+", help="which lines; default: all")
    add_json(parser)
    args = parser.parse_args()

    chosen = [CASES[i - 1] for i in args.cases] if args.cases else CASES
    bar = ProgressBar(len(chosen), "prompts")
    rows = []
    for case in chosen:
        rows.append(case._asdict() | measure(case, args.texts, args.repeats))
        bar.advance(1)
    report(rows, args.json, device=jax.devices()[0].device_kind, texts=args.texts)


if __name__ == "__main__":
    main()
