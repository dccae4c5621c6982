"""The products of a decoder layer as kernels for GPUs, for blocks of few tokens.

Where few tokens are read, a step waits for kernels to start and for weights to come. So what
belongs to a product is done by its kernel: the normalisation before it, the rotary embedding, the
writing of keys and values, the gate, the residual sum. With the attention a layer is five kernels,
and each reads its weights in place from the array of all layers.

A program computes one tile of tokens times one tile of outputs, with tensor cores, and goes over
the inputs chunk by chunk. A token's result does not depend on the other tokens of the block.

Letters: T tokens, L layers, D hidden size, Q query heads, G key/value heads, R = Q / G, H head
size, I inner size of the MLP, N pages, S tokens of a page, P parts of an attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from llama import attention_kernel
from llama.attention import Block, Memory

import os
MOST_TOKENS = int(os.environ.get("MOST","256"))
"""Blocks of more tokens are left to XLA's products: prompts."""
TOKENS = 64
"""Tokens of a tile at most; at least 16, of which a product may use fewer."""
OUTPUTS = 32
"""Outputs of a tile at most."""
INPUTS = 128
"""Inputs of a chunk at most."""
WARPS = 4
STAGES = 4

Tokens = tuple[jax.Array, jax.Array]
"""The tokens int32[M] of a tile, and bool[M] which there are. Nothing is read or stored at others,
and no two are the same: of two stores to one place, one of them masked, either could remain."""


def is_possible(layers: Any, tokens: int, head_dim: int) -> bool:
    """Whether a block of so many tokens can go through these layers' kernels.

    The arrays of all layers are one, the heads are as tiles, the layers have nothing but norms,
    matrices and a SwiGLU, and they are of 16 bits, because other products do not use tensor cores.
    """
    names = {"attention_norm", "qkv", "o", "mlp_norm", "gate_up", "down"}
    if not isinstance(layers, dict) or set(layers) != names or tokens > MOST_TOKENS:
        return False
    hidden, inner = layers["o"].shape[-1], layers["down"].shape[-2]
    is_tiled = min(_chunk(hidden, INPUTS), _chunk(inner, OUTPUTS), _chunk(inner, INPUTS)) >= 16
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
      memory: keys and values.
      eps: of the normalisations.
      interpret: whether to compute it without a GPU, slowly.
    """
    ((keys,), (values,)) = memory

    def body(layer: jax.Array, carry: tuple) -> tuple:
        x, keys, values = carry
        q, keys, values = project_heads(
            x, layers, layer, eps, rotation, block, keys, values, interpret=interpret
        )
        found = attention_kernel.attend_in_parts(q, keys, values, layer, block, interpret=interpret)
        x = project_out(x, found, layers, layer, interpret=interpret)
        gated = gate(x, layers, layer, eps, interpret=interpret)
        return project_down(x, gated, layers, layer, interpret=interpret), keys, values

    import os
    U=int(os.environ.get("UNROLL","1"))
    if U>=30:
        c=(x,keys,values)
        body=jax.jit(body)
        for i in range(layers["o"].shape[0]): c=body(jnp.asarray(i,jnp.int32),c)
        x,keys,values=c
    else:
        x, keys, values = jax.lax.fori_loop(0, layers["o"].shape[0], body, (x, keys, values), unroll=U)
    return x, ((keys,), (values,))


def project_heads(
    x: jax.Array,
    layers: dict[str, jax.Array],
    layer: jax.Array,
    eps: float,
    rotation: tuple[jax.Array, jax.Array],
    block: Block,
    keys: jax.Array,
    values: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [T, G, R, H] of states x [T, D], rotated, and the memory with keys and values.

    Args:
      x: [T, D].
      layers: of all layers.
      layer: int32[].
      eps: of the normalisation.
      rotation: cosines and sines float32[T, 1, H / 2].
      block: of the tokens.
      keys: [L, N, G, S, H].
      values: likewise.
      interpret: whether to compute it without a GPU, slowly.
    """
    groups, head_dim = keys.shape[2], keys.shape[4]
    shared = layers["qkv"].shape[-1] // (groups * head_dim) - 2
    tile = _tile(x.shape[0])
    cos, sin = (angle.reshape(x.shape[0], -1) for angle in rotation)

    def project_heads_kernel(
        layer_ref, page_ref, place_ref, cos_ref, sin_ref, x_ref, norm_ref, weight_ref, _, __,
        q_ref, k_ref, v_ref,
    ):  # fmt: skip
        layer, tokens = layer_ref[0], _tokens(x_ref, tile)
        member, group, (token, is_in) = pl.program_id(1), pl.program_id(2), tokens
        head = group * (shared + 2) + member
        half = jnp.arange(head_dim // 2, dtype=jnp.int32)
        columns = (head * head_dim + half, head * head_dim + head_dim // 2 + half)
        weights = [functools.partial(_load_matrix, weight_ref, layer, c) for c in columns]
        first, second = _norm_product(x_ref, norm_ref, layer, weights, half.size, tokens, eps)
        angle_at, mask = (token[:, None], half[None]), is_in[:, None]
        is_value = member == shared + 1
        cos = jnp.where(is_value, 1.0, triton.load(cos_ref.at[angle_at], mask=mask, other=0.0))
        sin = jnp.where(is_value, 0.0, triton.load(sin_ref.at[angle_at], mask=mask, other=0.0))
        turned = (first * cos - second * sin, second * cos + first * sin)
        page = triton.load(page_ref.at[token], mask=is_in, other=k_ref.shape[1])
        place = triton.load(place_ref.at[token], mask=is_in, other=0)
        is_kept = mask & (page < k_ref.shape[1])[:, None]
        for part, lane in zip(turned, (half, head_dim // 2 + half), strict=True):
            lane = lane[None]
            at = (token[:, None], group, jnp.minimum(member, shared - 1), lane)
            out = part.astype(q_ref.dtype)
            triton.store(q_ref.at[at], out, mask=mask & (member < shared))
            at = (layer, page[:, None], group, place[:, None], lane)
            triton.store(k_ref.at[at], out, mask=is_kept & (member == shared))
            triton.store(v_ref.at[at], out, mask=is_kept & is_value)

    q = jax.ShapeDtypeStruct((x.shape[0], groups, shared, head_dim), x.dtype)
    return _call(
        project_heads_kernel,
        (pl.cdiv(x.shape[0], tile), shared + 2, groups),
        [q, _like(keys), _like(values)],
        interpret,
        aliases={8: 1, 9: 2},
    )(
        layer[None], block.page, block.place, cos, sin, x, layers["attention_norm"],
        layers["qkv"], keys, values,
    )  # fmt: skip


def project_out(
    x: jax.Array,
    found: list[jax.Array],
    layers: dict[str, jax.Array],
    layer: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """States [T, D]: x and the output product of an attention.

    Args:
      x: [T, D].
      found: of `attention_kernel.attend_in_parts`.
      layers: of all layers.
      layer: int32[].
      interpret: whether to compute it without a GPU, slowly.
    """
    (parts, total, groups, shared, head_dim), hidden = found[0].shape, x.shape[1]
    tile, width = _tile(total), _chunk(hidden, OUTPUTS)

    def project_out_kernel(layer_ref, x_ref, weight_ref, out_ref, *refs):
        *found_refs, result_ref = (out_ref, *refs)
        layer, tokens = layer_ref[0], _tokens(x_ref, tile)
        column = pl.program_id(1) * width + jnp.arange(width, dtype=jnp.int32)

        def visit(group, total):
            for member in range(shared):
                seen = _join(found_refs, tokens, group, member)
                row = (group * shared + member) * head_dim + jnp.arange(head_dim, dtype=jnp.int32)
                weight = _load_matrix(weight_ref, layer, column, row)
                total += _product(seen.astype(weight.dtype), weight)
            return total

        start = jnp.zeros((tile, width), jnp.float32)
        total = jax.lax.fori_loop(0, groups, visit, start)
        _add_to(result_ref, x_ref, tokens, column, total)

    return _call(
        project_out_kernel, (pl.cdiv(total, tile), hidden // width), [_like(x)], interpret, stages=1
    )(layer[None], x, layers["o"], *found)[0]  # fmt: skip


def gate(
    x: jax.Array,
    layers: dict[str, jax.Array],
    layer: jax.Array,
    eps: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """[T, I] the gated inner states of the MLP, from states x [T, D]."""
    inner = layers["gate_up"].shape[-1]
    tile, width = _tile(x.shape[0]), _chunk(inner, OUTPUTS)

    def gate_kernel(layer_ref, x_ref, norm_ref, weight_ref, out_ref):
        layer, tokens = layer_ref[0], _tokens(x_ref, tile)
        token, is_in = tokens
        column = pl.program_id(1) * width + jnp.arange(width, dtype=jnp.int32)

        def load(which: int, row: jax.Array) -> jax.Array:
            return triton.load(weight_ref.at[layer, row[:, None], which, column[None]])

        weights = [functools.partial(load, which) for which in (0, 1)]
        gate, up = _norm_product(x_ref, norm_ref, layer, weights, width, tokens, eps)
        out = gate / (1.0 + jnp.exp(-gate)) * up
        at = (token[:, None], column[None])
        triton.store(out_ref.at[at], out.astype(out_ref.dtype), mask=is_in[:, None])

    out = jax.ShapeDtypeStruct((x.shape[0], inner), x.dtype)
    return _call(gate_kernel, (pl.cdiv(x.shape[0], tile), inner // width), [out], interpret)(
        layer[None], x, layers["mlp_norm"], layers["gate_up"]
    )[0]


def project_down(
    x: jax.Array,
    gated: jax.Array,
    layers: dict[str, jax.Array],
    layer: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """States [T, D]: x and the output of the MLP, of inner states `gated` [T, I]."""
    (total, inner), hidden = gated.shape, x.shape[1]
    tile, width, chunk = _tile(total), _chunk(hidden, OUTPUTS), _chunk(inner, INPUTS)

    def project_down_kernel(layer_ref, x_ref, gated_ref, weight_ref, out_ref):
        layer, tokens = layer_ref[0], _tokens(x_ref, tile)
        column = pl.program_id(1) * width + jnp.arange(width, dtype=jnp.int32)

        def visit(i, total):
            row = i * chunk + jnp.arange(chunk, dtype=jnp.int32)
            seen = _load_states(gated_ref, tokens, row)
            return total + _product(seen, _load_matrix(weight_ref, layer, column, row))

        start = jnp.zeros((tile, width), jnp.float32)
        total = jax.lax.fori_loop(0, inner // chunk, visit, start)
        _add_to(out_ref, x_ref, tokens, column, total)

    return _call(
        project_down_kernel, (pl.cdiv(total, tile), hidden // width), [_like(x)], interpret
    )(layer[None], x, gated, layers["down"])[0]  # fmt: skip


def _call(
    kernel: Callable,
    grid: tuple,
    results: list,
    interpret: bool,
    *,
    aliases: dict[int, int] | None = None,
    stages: int = STAGES,
) -> Callable:
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=results,
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=stages),
        interpret=interpret,
        name=kernel.__name__,
    )


def _norm_product(
    x_ref: Any,
    norm_ref: Any,
    layer: jax.Array,
    weights: list[Callable],
    width: int,
    tokens: Tokens,
    eps: float,
) -> tuple[jax.Array, ...]:
    """The products of normalised states and matrices, given as functions that load some rows.

    The norm's scale is one number for each token, so it can come after the product.
    """
    hidden = x_ref.shape[1]
    chunk = _chunk(hidden, INPUTS)

    def visit(i, carry):
        squares, *products = carry
        row = i * chunk + jnp.arange(chunk, dtype=jnp.int32)
        states = _load_states(x_ref, tokens, row)
        wide = states.astype(jnp.float32)
        squares += jnp.sum(wide * wide, axis=1)
        scale = triton.load(norm_ref.at[layer, row]).astype(jnp.float32)
        scaled = (wide * scale[None]).astype(states.dtype)
        loaded = [load(row=row) for load in weights]
        return squares, *(p + _product(scaled, w) for p, w in zip(products, loaded, strict=True))

    size = tokens[0].shape[0]
    start = jnp.zeros(size, jnp.float32), *(jnp.zeros((size, width), jnp.float32) for _ in weights)
    squares, *products = jax.lax.fori_loop(0, hidden // chunk, visit, start)
    scale = jax.lax.rsqrt(squares / hidden + eps)[:, None]
    return tuple(scale * product for product in products)


def _join(found: list, tokens: Tokens, group: jax.Array, member: jax.Array) -> jax.Array:
    """[M, H] what a head saw, of the parts of an attention."""
    token, is_in = tokens
    lane = jnp.arange(found[0].shape[-1], dtype=jnp.int32)

    def load(ref: Any, part: int, lane: jax.Array | None = None) -> jax.Array:
        if lane is None:
            return triton.load(ref.at[part, token, group, member], mask=is_in, other=0.0)
        at = (part, token[:, None], group, member, lane[None])
        return triton.load(ref.at[at], mask=is_in[:, None], other=0.0)

    if len(found) == 1:
        return load(found[0], 0, lane)
    out_ref, highest_ref, sums_ref = found
    parts = range(out_ref.shape[0])
    highest = [load(highest_ref, part) for part in parts]
    most = functools.reduce(jnp.maximum, highest)
    scales = [jnp.exp(h - most) for h in highest]
    sums = sum(scale * load(sums_ref, part) for part, scale in zip(parts, scales, strict=True))
    out = sum(
        scale[:, None] * load(out_ref, part, lane)
        for part, scale in zip(parts, scales, strict=True)
    )
    return out / sums[:, None]


def _tile(total: int) -> int:
    """Tokens of a tile."""
    return min(TOKENS, max(16, pl.next_power_of_2(total)))


def _chunk(size: int, most: int) -> int:
    """The largest power of two that divides `size`, up to `most`."""
    return min(size & -size, most)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _tokens(x_ref: Any, tile: int) -> Tokens:
    token = pl.program_id(0) * tile + jnp.arange(tile, dtype=jnp.int32)
    return token, token < x_ref.shape[0]


def _load_states(ref: Any, tokens: Tokens, column: jax.Array) -> jax.Array:
    token, is_in = tokens
    return triton.load(ref.at[token[:, None], column[None]], mask=is_in[:, None], other=0)


def _load_matrix(ref: Any, layer: jax.Array, column: jax.Array, row: jax.Array) -> jax.Array:
    return triton.load(ref.at[layer, row[:, None], column[None]])


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )


def _add_to(
    out_ref: Any, x_ref: Any, tokens: Tokens, column: jax.Array, added: jax.Array
) -> None:
    token, is_in = tokens
    states = _load_states(x_ref, tokens, column).astype(jnp.float32)
    at = (token[:, None], column[None])
    triton.store(out_ref.at[at], (states + added).astype(out_ref.dtype), mask=is_in[:, None])
