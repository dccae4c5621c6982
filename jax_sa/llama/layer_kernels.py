"""A decoder layer as eight kernels for GPUs, for blocks of few tokens.

Where few tokens are read, a step waits for kernels to start and for weights to come. So the kernel
of a product also does what follows it: the rotary embedding and the writing of keys and values, the
gate, the residual sum. It reads its weights in place, from the array of all layers. Its time hardly
depends on the number of tokens: they share one reading of the weights.

A program of a product computes one tile of tokens times one tile of outputs, with tensor cores, and
goes over the inputs chunk by chunk. A token's result does not depend on the block's other tokens.

Letters: T tokens, L layers, D hidden size, G key/value heads, R query heads of each, H head size,
I inner size of the MLP, N pages, S tokens of a page; M tokens of a tile, C columns, K inputs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jax_sa.llama import attention_kernel
from jax_sa.llama.attention import Block, Memory

MOST_TOKENS = 256
"""Blocks of more tokens are left to XLA's products: prompts."""
TOKENS = 64
"""Tokens of a tile at most; at least 16, of which a product may use fewer."""
COLUMNS = 32
"""Outputs of a tile."""
INPUTS = 128
"""Inputs of a chunk."""
WARPS = 4
STAGES = 4
"""Chunks that are on their way at the same time at most."""
SHARED_BYTES = 96 * 1024
"""What these may take of a multiprocessor's memory: every GPU from 2018 on has so much."""


def is_possible(layers: Any, tokens: int, head_dim: int) -> bool:
    """Whether a block of so many tokens can go through these layers' kernels.

    The arrays of all layers are one, the layers have nothing but norms, matrices and a SwiGLU,
    their sizes are whole tiles, and they are in bfloat16: float32 does not use tensor cores.
    """
    names = {"attention_norm", "qkv", "o", "mlp_norm", "gate_up", "down"}
    if not isinstance(layers, dict) or set(layers) != names or tokens > MOST_TOKENS:
        return False
    hidden, inner = layers["o"].shape[-1], layers["down"].shape[-2]
    is_tiled = hidden % COLUMNS == 0 and inner % COLUMNS == 0
    return is_tiled and head_dim in (32, 64, 128) and layers["qkv"].dtype == jnp.bfloat16


def through_layers(
    layers: dict[str, jax.Array],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    block: Block,
    memory: Memory,
    eps: float,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, Memory]:
    """The states [T, D] after all layers, and the memory with the block.

    Args:
      layers: of all layers.
      x: [T, D].
      rotation: cosines and sines float32[T, 1, H / 2].
      block: of the tokens.
      memory: keys and values, one array each.
      eps: of the normalisations.
      interpret: whether to compute it without a GPU, slowly.
    """
    ((keys,), (values,)) = memory

    @jax.jit  # so that it is lowered once
    def step(x, keys, values, layer):
        normed = normalise(x, layers["attention_norm"], layer, eps, interpret=interpret)
        q, keys, values = project_heads(
            normed, layers["qkv"], layer, rotation, block, keys, values, interpret=interpret
        )
        seen = attention_kernel.paged_attention(q, keys, values, layer, block, interpret=interpret)
        x = add_product(x, seen.reshape(x.shape[0], -1), layers["o"], layer, interpret=interpret)
        normed = normalise(x, layers["mlp_norm"], layer, eps, interpret=interpret)
        gated = gate(normed, layers["gate_up"], layer, interpret=interpret)
        return add_product(x, gated, layers["down"], layer, interpret=interpret), keys, values

    # Not a loop in the program: a GPU would wait for the host before every layer.
    for layer in range(layers["o"].shape[0]):
        x, keys, values = step(x, keys, values, jnp.asarray(layer, jnp.int32))
    return x, ((keys,), (values,))


def normalise(
    x: jax.Array, weight: jax.Array, layer: jax.Array, eps: float, *, interpret: bool = False
) -> jax.Array:
    """`jax_sa.llama.model.rms_norm` of states [T, D] by the layer's weights of [L, D]."""
    hidden = x.shape[1]

    def normalise_kernel(layer_ref, x_ref, weight_ref, out_ref):
        column = jnp.arange(pl.next_power_of_2(hidden), dtype=jnp.int32)
        is_in, token = column < hidden, pl.program_id(0)
        wide = triton.load(x_ref.at[token, column], mask=is_in, other=0).astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.sum(wide * wide) / hidden + eps)
        weight = triton.load(weight_ref.at[layer_ref[0], column], mask=is_in, other=0)
        out = (wide * scale).astype(out_ref.dtype) * weight
        triton.store(out_ref.at[token, column], out, mask=is_in)

    call = _call(normalise_kernel, (x.shape[0],), [_like(x)], interpret)
    return call(layer[None], x, weight)[0]


def project_heads(
    x: jax.Array,
    weight: jax.Array,
    layer: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    block: Block,
    keys: jax.Array,
    values: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [T, G, R, H] of normalised states, rotated, and the memory with keys and values.

    Args:
      x: [T, D].
      weight: [L, D, G * (R + 2) * H].
      layer: int32[].
      rotation: cosines and sines float32[T, 1, H / 2].
      block: of the tokens.
      keys: [L, N, G, S, H].
      values: likewise.
      interpret: whether to compute it without a GPU, slowly.
    """
    total, (groups, head_dim) = x.shape[0], (keys.shape[2], keys.shape[4])
    shared = weight.shape[-1] // (groups * head_dim) - 2
    tile = _tile(total)
    cos, sin = (angle.reshape(total, -1) for angle in rotation)

    def heads_kernel(
        layer_ref, page_ref, place_ref, cos_ref, sin_ref, x_ref, weight_ref, _, __,
        q_ref, k_ref, v_ref,
    ):  # fmt: skip
        layer, token, member, group = layer_ref[0], _token(tile), *map(pl.program_id, (1, 2))
        is_in, is_value = token < total, member == shared + 1
        half = jnp.arange(head_dim // 2, dtype=jnp.int32)
        begin = (group * (shared + 2) + member) * head_dim
        columns = (begin + half, begin + head_dim // 2 + half)
        places = [lambda row, column=column: (layer, row, column[None]) for column in columns]
        first, second = _products(x_ref, weight_ref, places, token, half.size)
        angle, mask = (token[:, None], half[None]), is_in[:, None]
        cos = jnp.where(is_value, 1.0, triton.load(cos_ref.at[angle], mask=mask, other=0.0))
        sin = jnp.where(is_value, 0.0, triton.load(sin_ref.at[angle], mask=mask, other=0.0))
        page = triton.load(page_ref.at[token], mask=is_in, other=k_ref.shape[1])
        place = triton.load(place_ref.at[token], mask=is_in, other=0)
        is_kept = mask & (page < k_ref.shape[1])[:, None]
        turned = (first * cos - second * sin, second * cos + first * sin)
        for part, lane in zip(turned, (half, head_dim // 2 + half), strict=True):
            out, lane = part.astype(q_ref.dtype), lane[None]
            at = (token[:, None], group, jnp.minimum(member, shared - 1), lane)
            triton.store(q_ref.at[at], out, mask=mask & (member < shared))
            at = (layer, page[:, None], group, place[:, None], lane)
            triton.store(k_ref.at[at], out, mask=is_kept & (member == shared))
            triton.store(v_ref.at[at], out, mask=is_kept & is_value)

    q = jax.ShapeDtypeStruct((total, groups, shared, head_dim), x.dtype)
    return _call(
        heads_kernel,
        (pl.cdiv(total, tile), shared + 2, groups),
        [q, _like(keys), _like(values)],
        interpret,
        chunk=INPUTS * (tile + head_dim),
        aliases={7: 1, 8: 2},
    )(layer[None], block.page, block.place, cos, sin, x, weight, keys, values)


def gate(
    x: jax.Array, weight: jax.Array, layer: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """[T, I] the gated inner states of the MLP: states [T, D] by the layer's [L, D, 2, I]."""
    (total, _), inner = x.shape, weight.shape[-1]
    tile = _tile(total)

    def gate_kernel(layer_ref, x_ref, weight_ref, out_ref):
        token, column = _token(tile), _column()
        layer = layer_ref[0]
        places = [lambda row, which=which: (layer, row, which, column[None]) for which in (0, 1)]
        gate, up = _products(x_ref, weight_ref, places, token, COLUMNS)
        out = gate / (1.0 + jnp.exp(-gate)) * up
        mask = (token < total)[:, None]
        triton.store(out_ref.at[token[:, None], column[None]], out.astype(out_ref.dtype), mask=mask)

    out = jax.ShapeDtypeStruct((total, inner), x.dtype)
    grid, chunk = (pl.cdiv(total, tile), inner // COLUMNS), INPUTS * (tile + 2 * COLUMNS)
    call = _call(gate_kernel, grid, [out], interpret, chunk=chunk)
    return call(layer[None], x, weight)[0]


def add_product(
    x: jax.Array, inputs: jax.Array, weight: jax.Array, layer: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """States x [T, D], plus inputs [T, K] by the layer's matrix of [L, K, D]."""
    total, hidden = x.shape
    tile = _tile(total)

    def add_product_kernel(layer_ref, x_ref, inputs_ref, weight_ref, out_ref):
        token, column = _token(tile), _column()
        layer = layer_ref[0]
        places = [lambda row: (layer, row, column[None])]
        (product,) = _products(inputs_ref, weight_ref, places, token, COLUMNS)
        at, mask = (token[:, None], column[None]), (token < total)[:, None]
        states = triton.load(x_ref.at[at], mask=mask, other=0).astype(jnp.float32)
        triton.store(out_ref.at[at], (states + product).astype(out_ref.dtype), mask=mask)

    grid, chunk = (pl.cdiv(total, tile), hidden // COLUMNS), INPUTS * (tile + COLUMNS)
    call = _call(add_product_kernel, grid, [_like(x)], interpret, chunk=chunk)
    return call(layer[None], x, inputs, weight)[0]


def _products(
    x_ref: Any, weight_ref: Any, places: list[Callable], token: jax.Array, width: int
) -> list[jax.Array]:
    """float32[M, width] the products of rows int32[M] of x [T, K] and tiles of matrices.

    Each of `places` gives the places of a tile in the weights for its rows int32[K', 1].
    """
    total, size = x_ref.shape

    def visit(i: jax.Array, products: list[jax.Array]) -> list[jax.Array]:
        row = i * INPUTS + jnp.arange(INPUTS, dtype=jnp.int32)
        mask = (token < total)[:, None] & (row < size)[None]
        x = triton.load(x_ref.at[token[:, None], row[None]], mask=mask, other=0)
        row = row[:, None]
        loaded = [triton.load(weight_ref.at[at(row)], mask=row < size, other=0) for at in places]
        return [p + _product(x, weight) for p, weight in zip(products, loaded, strict=True)]

    start = [jnp.zeros((token.size, width), jnp.float32) for _ in places]
    return jax.lax.fori_loop(0, pl.cdiv(size, INPUTS), visit, start)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _call(
    kernel: Callable,
    grid: tuple[int, ...],
    results: list[jax.ShapeDtypeStruct],
    interpret: bool,
    *,
    chunk: int = 1,
    aliases: dict[int, int] | None = None,
) -> Callable:
    """A kernel, of which a chunk has so many inputs and weights, all of two bytes."""
    stages = max(1, min(STAGES, SHARED_BYTES // (2 * chunk)))
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=results,
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=stages),
        interpret=interpret,
        name=kernel.__name__,
    )


def _tile(total: int) -> int:
    """M, for blocks of so many tokens."""
    return min(TOKENS, max(16, pl.next_power_of_2(total)))


def _token(tile: int) -> jax.Array:
    """int32[M] the tokens of a program.

    Those that there are not are neither read nor stored. No two are the same: of two stores to one
    place, one of them masked, either could remain.
    """
    return pl.program_id(0) * tile + jnp.arange(tile, dtype=jnp.int32)


def _column() -> jax.Array:
    """int32[C] the outputs of a program."""
    return pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS, dtype=jnp.int32)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
