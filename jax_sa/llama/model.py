"""The Llama family as a function of a block of tokens and a cache.

Letters: B slots, T tokens of a block, N positions of the cache, L layers, D hidden size, Q query
heads, G key/value heads, R = Q / G, H head size, V vocabulary.

`forward` is the model: it reads a flat block of tokens, of any rows. `apply` is the
`model(params, tokens, cache)` of a speculative decoding loop: it reads token t of slot b at
position `cache.length[b] + t`, and leaves `cache.length` to its caller. Whatever lies at or beyond
`cache.length` is overwritten before anything attends to it, so a rejected token needs no cleanup.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_sa
from jax_sa.llama import weights
from jax_sa.llama.attention import (
    Attend,
    Block,
    Memory,
    cached_attention,
    gpu_kernel,
    make_block,
    move,
)
from jax_sa.llama.config import Config, Llama3Rope
from jax_sa.llama.weights import AXIS

INT32_MAX = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The model's memory of the text in each slot, in static shapes."""

    length: jax.Array
    """int32[B] tokens whose keys and values are valid."""
    keys: tuple[jax.Array, ...]
    """L times [1, B, G, N, H], or one array [L, B, ...]; one layer more for an MTP module."""
    values: tuple[jax.Array, ...]
    """Likewise."""
    hidden: jax.Array | None
    """[B, N, D] the hidden states that an MTP module reads; None without one."""
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})
    """The devices that share the model; None for one."""

    def move(self, start: jax.Array, path: jax.Array) -> "Cache":
        """The cache with the entries of accepted paths in order: see `jax_sa.Decoder`."""
        keys, values = move((self.keys, self.values), start, path, None, self.mesh)
        hidden = jax_sa.move_entries(self.hidden, start, path, axes=(0, 1))
        return dataclasses.replace(self, keys=keys, values=values, hidden=hidden)


def init_cache(
    config: Config, num_slots: int, size: int, dtype: Any, *, mtp: bool, mesh: Mesh | None = None
) -> Cache:
    """An empty cache of `num_slots` texts of at most `size` tokens.

    Args:
      config: of the model.
      num_slots: B.
      size: N. A block may reach beyond it; what does not fit is not kept, so the caller sees to it
        that no text that matters grows longer.
      dtype: of keys, values and hidden states.
      mtp: whether it also serves the MTP module.
      mesh: the devices that share the model.
    """
    whole = mesh and NamedSharding(mesh, PartitionSpec())
    hidden_shape = (num_slots, size, config.hidden_size)
    keys, values = init_memory(config, config.num_layers + mtp, num_slots, size, dtype, mesh)
    return Cache(
        length=jnp.zeros((num_slots,), jnp.int32, device=whole),
        keys=keys,
        values=values,
        hidden=jnp.zeros(hidden_shape, dtype, device=whole) if mtp else None,
        mesh=mesh,
    )


def init_memory(
    config: Config, layers: int, pages: int, size: int, dtype: Any, mesh: Mesh | None
) -> Memory:
    """Keys and values of so many layers, each in `pages` pages of `size` tokens."""
    split = mesh and NamedSharding(mesh, PartitionSpec(None, None, AXIS))
    together, arrays = (layers, 1) if weights.in_one_array() else (1, layers)
    shape = (together, pages, config.num_kv_heads, size, config.head_dim)

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype, device=split) for _ in range(arrays))

    return zeros(), zeros()


def apply(
    config: Config,
    params: dict[str, Any],
    tokens: jax.Array,
    cache: Cache,
    tree: jax_sa.TreeBlock | None = None,
) -> tuple[jax.Array, Cache]:
    """The logits float32[B, T, V] after each token of a block, and the cache with it written.

    Args:
      config: of the model.
      params: as `weights.fuse` lays them out.
      tokens: int32[B, T].
      cache: of B slots.
      tree: of a block that holds trees, [B, T, ...].
    """
    positions = block_positions(cache.length, tokens.shape[1])
    memory = (cache.keys, cache.values)
    block = dense_block(config, positions, memory, tree)
    x, (keys, values) = forward(config, params, tokens.ravel(), block, memory, cache.mesh)
    x = x.reshape(*tokens.shape, -1)
    hidden = cache.hidden
    if hidden is not None:
        hidden = _write_hidden(hidden, positions, x)
    cache = dataclasses.replace(cache, keys=keys, values=values, hidden=hidden)
    return unembed(config, params, x, cache.mesh), cache


def dense_block(
    config: Config, positions: jax.Array, memory: Memory, tree: jax_sa.TreeBlock | None = None
) -> Block:
    """The block of tokens at `positions` int32[B, T], in a cache without pages."""
    slots = jnp.arange(positions.shape[0], dtype=jnp.int32)
    rows = jnp.broadcast_to(slots[:, None], positions.shape).ravel()
    shared = config.num_heads // config.num_kv_heads
    tree = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    pages = slots[:, None]
    return make_block(rows, positions.ravel(), pages, memory, shared, is_dense=True, tree=tree)


def forward(
    config: Config,
    params: dict[str, Any],
    tokens: jax.Array,
    block: Block,
    memory: Memory,
    mesh: Mesh | None,
) -> tuple[jax.Array, Memory]:
    """The normalised hidden states [T, D] after each token of a flat block, which is remembered.

    Args:
      config: of the model.
      params: as `weights.fuse` lays them out.
      tokens: int32[T].
      block: where the tokens stand.
      memory: keys and values.
      mesh: the devices that share the model; None for one.
    """
    embedded = params["embed"][tokens]
    if kernels := _layer_kernels(config, params, tokens.size, mesh):
        rotation, eps = rotate_by(config, block.text_positions), config.rms_norm_eps
        layers, norm = params["layers"], params["norm"]
        return kernels.through_layers(layers, norm, embedded, rotation, block, memory, eps)
    attend = cached_attention(block, mesh)
    return decode(config, params, embedded, block.text_positions, attend, memory)


def _layer_kernels(
    config: Config, params: dict[str, Any], total: int, mesh: Mesh | None
) -> ModuleType | None:
    """The module of kernels for blocks of so many tokens; None where layers are left to XLA."""
    kernels = _kernels(config, mesh)
    if kernels and kernels.is_possible(params["layers"], total, config.head_dim):
        return kernels
    return None


def _kernels(config: Config, mesh: Mesh | None) -> ModuleType | None:
    """The module of kernels, where the device has them and has the model to itself."""
    shared = config.num_heads // config.num_kv_heads
    if mesh is not None or not gpu_kernel(config.head_dim, shared):
        return None
    from jax_sa.llama import layer_kernels

    return layer_kernels


def decode(
    config: Config,
    params: dict[str, Any],
    embedded: jax.Array,
    positions: jax.Array,
    attend: Attend,
    memory: Any,
) -> tuple[jax.Array, Any]:
    """The normalised hidden states [..., D] after the last layer, and the layers' memory.

    `embedded` [..., D] are the embeddings of the tokens at `positions` int32[...].
    """
    rotation = rotate_by(config, positions)

    def step(x: jax.Array, memory: Any, layer: dict[str, jax.Array], index: Any) -> tuple:
        return decoder_layer(config, layer, x, rotation, attend, memory, index)

    x, memory = _through_layers(step, params["layers"], embedded, memory)
    return rms_norm(x, params["norm"], config.rms_norm_eps), memory


def _through_layers(step: Callable[..., tuple], layers: Any, x: jax.Array, memory: Any) -> tuple:
    """Applies `x, memory = step(x, memory, layer, index)` for every layer."""
    if isinstance(layers, list):
        for index, layer in enumerate(layers):
            x, memory = step(x, memory, layer, index)
        return x, memory
    indices = jnp.arange(jax.tree.leaves(layers)[0].shape[0], dtype=jnp.int32)

    def body(carry: tuple, xs: tuple) -> tuple:
        return step(*carry, *xs), None

    carry, _ = jax.lax.scan(body, (x, memory), (layers, indices))
    return carry


def decoder_layer(
    config: Config,
    layer: dict[str, jax.Array],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
    memory: Any,
    index: Any,
) -> tuple[jax.Array, Any]:
    """The layer of number `index`, [..., D] to [..., D]: grouped-query attention, then SwiGLU."""
    eps = config.rms_norm_eps
    q, k, v = _qkv(config, layer, rms_norm(x, layer["attention_norm"], eps))
    if config.qk_norm:
        q, k = rms_norm(q, layer["q_norm"], eps), rms_norm(k, layer["k_norm"], eps)
    out, memory = attend(rotate(q, rotation), rotate(k, rotation), v, memory, index)
    out = out.reshape(*x.shape[:-1], -1) @ layer["o"]
    if config.o_bias:
        out += _along_last(layer["o_bias"], out)
    x = x + out
    normed = rms_norm(x, layer["mlp_norm"], eps)
    gate_up = jnp.einsum("...d,dci->...ci", normed, layer["gate_up"])
    gated = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
    return x + gated @ layer["down"], memory


def _qkv(config: Config, layer: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, ...]:
    """Queries [..., Q, H], keys and values [..., G, H] of normalised states [..., D]."""
    y = x @ layer["qkv"]
    if config.qkv_bias:
        y += _along_last(layer["qkv_bias"], y)
    y = y.reshape(*x.shape[:-1], config.num_kv_heads, -1, config.head_dim)
    q = y[..., :-2, :].reshape(*x.shape[:-1], config.num_heads, config.head_dim)
    return q, y[..., -2, :], y[..., -1, :]


def unembed(config: Config, params: dict[str, Any], x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The logits float32[..., V] of normalised hidden states [..., D]."""
    is_embedding = "head" not in params
    head = params["embed" if is_embedding else "head"]
    flat = x.reshape(-1, x.shape[-1])
    kernels = _kernels(config, mesh)
    if kernels and kernels.can_unembed(head, flat.shape[0], is_embedding=is_embedding):
        logits = kernels.unembed(flat, head, is_embedding=is_embedding)
        return logits.reshape(*x.shape[:-1], -1)
    return jnp.matmul(x, head.T if is_embedding else head, preferred_element_type=jnp.float32)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * _along_last(weight, x)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector with as many axes as `x`, along the last of them."""
    return jnp.expand_dims(vector, range(x.ndim - 1))


def block_positions(start: jax.Array, width: int) -> jax.Array:
    """int32[B, T] positions of blocks that start at `start` int32[B]."""
    return start[:, None] + jnp.arange(width, dtype=jnp.int32)[None]


def rotate_by(config: Config, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cosines and sines float32[..., 1, H / 2] of the rotary embedding (Su et al. 2021)."""
    angles = positions[..., None, None].astype(jnp.float32)
    angles = angles * _along_last(rotary_frequencies(config), angles)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates pairs (i, i + H / 2) of the last axis of [..., heads, H]."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def rotary_frequencies(config: Config) -> np.ndarray:
    """float32[H / 2] radians by which one position turns each pair."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling:
        frequencies = _scale_as_llama3(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)


def _scale_as_llama3(frequencies: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Divides by `factor` where the original context holds few turns, with a smooth transition."""
    turns = rope.original_max_position_embeddings * frequencies / (2 * np.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / rope.factor)


def _write_hidden(old: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
    """`old` [B, N, D] with `new` [B, T, D] at `positions` int32[B, T]."""
    if positions.size == 1:
        # XLA would make an update of one position a slice, and copy the cache for it in every
        # step. Of two positions, of which one is out of bounds and dropped, it does not.
        positions = jnp.concatenate([positions, jnp.full((1, 1), INT32_MAX, jnp.int32)], axis=1)
        new = jnp.concatenate([new, new], axis=1)
    rows = jnp.arange(old.shape[0], dtype=jnp.int32)[:, None]
    return old.at[rows, positions].set(new, mode="drop")
