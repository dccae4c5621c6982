"""Times a step of the example's model that verifies drafts, by batch size and tokens a row.

    python benchmarks/verify_step.py --json out.json

The model has random weights, and by default the shape of SmolLM2-135M in bfloat16; its cache is
paged, with texts of a third to five thirds of `--context` tokens. A step reads the tokens of all
rows, one after the other, and takes the likeliest next token after each. Steps are timed as
iterations of one jitted loop.

`floor_us` is the time in which the weights and the keys and values that a step needs can be read
once, at the rate of a large copy on the same device. `kernels` are those of a step in the compiled
program, each of which takes a microsecond or two to start.
"""

import argparse
import dataclasses
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import report

from jax_sa.cache_schema import claim_blocks
from jax_sa.cli.progress import ProgressBar

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from jax_sa.llama import config as llama_config
from jax_sa.llama import paged, weights
from jax_sa.llama.config import Config

SMOLLM2 = Config(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    tied=True,
)
KERNELS = re.compile(r" (fusion|custom-call|copy|scatter|gather|sort|dot|convolution|reduce)\(")
LOOP = re.compile(r" while\(.*body=%?([\w.-]+).*?\"n\":\"(\d+)\"")


def random_params(config: Config, dtype: Any) -> Any:
    """Parameters of a model that learned nothing."""
    random = np.random.default_rng(0)

    def draw(weight: weights.Weight) -> np.ndarray:
        scale = 1 if len(weight.shape) == 1 else 0.05
        return (scale * random.standard_normal(weight.shape, np.float32)).astype(dtype)

    return weights.place(weights.fuse(config, jax.tree.map(draw, weights.describe(config))), None)


def make_cache(
    config: Config, args: argparse.Namespace, batch: int, dtype: Any
) -> paged.PackedCache:
    """A cache in which every row has the pages of `args.max_context` tokens."""
    pages = batch * -(-args.max_context // args.page_size)
    cache = paged.init_packed_cache(config, batch, pages, args.page_size, args.max_context, dtype)
    wanted = np.full(1 + batch, args.max_context, np.int32)
    wanted[0] = 0
    table, granted = claim_blocks(cache.block_table, jnp.asarray(wanted))
    assert bool(granted.all()), "a row did not get its pages"
    return dataclasses.replace(cache, block_table=table)


def contexts(args: argparse.Namespace, batch: int) -> np.ndarray:
    """int32[batch] the tokens of each row's text."""
    return np.linspace(args.context / 3, args.context * 5 / 3, batch + 2)[1:-1].astype(np.int32)


def make_loop(config: Config, args: argparse.Namespace, batch: int, width: int) -> Callable:
    """`loop(params, tokens, cache)`, which does `args.steps` steps."""
    rows = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), width)
    starts = jnp.asarray(contexts(args, batch))[:, None]
    positions = (starts + jnp.arange(width, dtype=jnp.int32)[None]).ravel()
    places = jnp.arange(batch * width, dtype=jnp.int32)

    def loop(params, tokens, cache):
        def step(_, carry):
            tokens, cache = carry
            logits, cache = paged.apply_packed(config, params, tokens, rows, positions, cache)
            return jnp.argmax(logits(places), axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, args.steps, step, (tokens, cache))

    return loop


def count_kernels(text: str, steps: int) -> float:
    """The kernels of a step, in the text of a compiled program of so many."""
    bodies, name = {}, ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            name = "ENTRY" if line.startswith("ENTRY") else line.split(" ")[0].lstrip("%")
            bodies[name] = []
        bodies.setdefault(name, []).append(line)

    def count(name: str) -> int:
        own = sum(bool(KERNELS.search(line)) for line in bodies[name])
        loops = (LOOP.search(line) for line in bodies[name])
        return own + sum(int(loop[2]) * count(loop[1]) for loop in loops if loop)

    return count("ENTRY") / steps


def measure(
    config: Config, args: argparse.Namespace, params: Any, batch: int, width: int
) -> dict[str, Any]:
    """The time of a step of `batch` rows that read `width` tokens each."""
    dtype = params["embed"].dtype
    loop = jax.jit(make_loop(config, args, batch, width), donate_argnums=2)
    carry = jnp.zeros(batch * width, jnp.int32), make_cache(config, args, batch, dtype)
    begun = time.perf_counter()
    compiled = loop.lower(params, *carry).compile()
    compile_seconds = time.perf_counter() - begun
    carry = jax.block_until_ready(compiled(params, *carry))
    seconds = []
    for _ in range(args.repeats):
        begun = time.perf_counter()
        carry = jax.block_until_ready(compiled(params, *carry))
        seconds.append(time.perf_counter() - begun)
    return {
        "batch": batch,
        "tokens_a_row": width,
        "step_us": statistics.median(seconds) / args.steps * 1e6,
        "kernels": count_kernels(compiled.as_text(), args.steps),
        "compile_s": compile_seconds,
    }


def step_bytes(config: Config, args: argparse.Namespace, params: Any, batch: int) -> int:
    """The fewest bytes that a step must read."""
    entry = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    cached = int(contexts(args, batch).sum()) * entry * params["embed"].dtype.itemsize
    held = dict(params)
    if config.tied and "head" in held:
        del held["embed"]  # the same in another layout
    return cached + sum(x.nbytes for x in jax.tree.leaves(held))


def copy_rate(megabytes: int = 512) -> float:
    """Bytes a second, read and written, of a large copy."""
    copy = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(copy(jnp.zeros(megabytes * 2**18, jnp.float32)))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(copy(x))
        seconds.append(time.perf_counter() - begun)
    return 2 * x.nbytes / min(seconds)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 128], metavar="B")
    add("--tokens", type=int, nargs="+", default=[1, 2, 3, 5, 9, 17], metavar="T", help="a row")
    add("--context", type=int, default=600, help="tokens of a text, on average")
    add("--max_context", type=int, default=1280, help="tokens for which a row has pages")
    add("--page_size", type=int, default=64, help="tokens of a page")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--model", type=pathlib.Path, help="directory of a config.json, for another shape")
    add("--steps", type=int, default=100, help="iterations of a loop")
    add("--repeats", type=int, default=5, help="loops, of which the median counts")
    add("--json", help="write the figures here")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    config = llama_config.read(args.model) if args.model else SMOLLM2
    params = random_params(config, jnp.dtype(args.dtype))
    rate = copy_rate()
    bar = ProgressBar(len(args.batch_sizes) * len(args.tokens), "steps")
    rows = []
    for batch in args.batch_sizes:
        first = None
        for width in args.tokens:
            row = measure(config, args, params, batch, width)
            first = first or row["step_us"]
            row["ratio"] = row["step_us"] / first
            row["floor_us"] = step_bytes(config, args, params, batch) / rate * 1e6
            rows.append(row)
            bar.advance(1)
    device = jax.devices()[0].device_kind
    options = {name: str(value) for name, value in vars(args).items() if name != "json"}
    report(rows, args.json, device=device, gigabytes_per_second=rate / 1e9, options=options)


if __name__ == "__main__":
    main()
