"""The Llama family as a function of a block of tokens and a cache.

Letters: B slots, T tokens of a block, N positions of the cache, L layers, D hidden size, Q query
heads, G key/value heads, H head size, V vocabulary.

`apply` is the `model(params, tokens, cache)` of a speculative decoding loop: it reads token t of
slot b at position `cache.length[b] + t`, and leaves `cache.length` to its caller. Whatever lies at
or beyond `cache.length` is overwritten before anything attends to it, so a rejected token needs no
cleanup.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama.config import Config, Llama3Rope
from llama.weights import AXIS

INT32_MAX = 2**31 - 1

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""`attend(q, k, v, memory) -> out, memory` of one layer: q and out [B, T, Q, H], k and v
[B, T, G, H], and whatever the layer remembers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What the model remembers of the text in each slot, in static shapes."""

    length: jax.Array
    """int32[B] tokens whose keys and values are valid."""
    keys: tuple[jax.Array, ...]
    """L times [B, G, N, H]; one more for an MTP module."""
    values: tuple[jax.Array, ...]
    """Likewise."""
    hidden: jax.Array | None
    """[B, N, D] the hidden states that an MTP module reads; None without one."""


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
    shape = (num_slots, config.num_kv_heads, size, config.head_dim)
    split = mesh and NamedSharding(mesh, PartitionSpec(None, AXIS))
    whole = mesh and NamedSharding(mesh, PartitionSpec())
    memories = config.num_layers + mtp

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype, device=split) for _ in range(memories))

    hidden_shape = (num_slots, size, config.hidden_size)
    return Cache(
        length=jnp.zeros((num_slots,), jnp.int32, device=whole),
        keys=zeros(),
        values=zeros(),
        hidden=jnp.zeros(hidden_shape, dtype, device=whole) if mtp else None,
    )


def apply(
    config: Config, params: dict[str, Any], tokens: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """The logits float32[B, T, V] after each token of a block, and the cache with it written.

    Args:
      config: of the model.
      params: as `weights.describe` lays them out.
      tokens: int32[B, T].
      cache: of B slots.
    """
    positions = block_positions(cache.length, tokens.shape[1])
    attend = cached_attention(positions)
    memories = zip(cache.keys, cache.values, strict=True)
    x, memories = decode(config, params, params["embed"][tokens], positions, attend, list(memories))
    hidden = cache.hidden
    if hidden is not None:
        hidden = _write(hidden, (), positions, x)
    keys, values = zip(*memories, strict=True)
    cache = dataclasses.replace(cache, keys=keys, values=values, hidden=hidden)
    return unembed(params, x), cache


def decode(
    config: Config,
    params: dict[str, Any],
    embedded: jax.Array,
    positions: jax.Array,
    attend: Attend,
    memories: list[Any],
) -> tuple[jax.Array, list[Any]]:
    """The normalised hidden states [B, T, D] after the last layer, and the layers' memories.

    `embedded` [B, T, D] are the embeddings of the tokens at `positions` int32[B, T]. Memories
    beyond the layers, an MTP module's, are handed through.
    """
    rotation = rotate_by(config, positions)
    x, memories = embedded, list(memories)
    for i, layer in enumerate(params["layers"]):
        x, memories[i] = decoder_layer(config, layer, x, rotation, attend, memories[i])
    return rms_norm(x, params["norm"], config.rms_norm_eps), memories


def decoder_layer(
    config: Config,
    layer: dict[str, jax.Array],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
    memory: Any,
) -> tuple[jax.Array, Any]:
    """One layer, [B, T, D] to [B, T, D]: grouped-query attention, then SwiGLU."""
    eps = config.rms_norm_eps
    normed = rms_norm(x, layer["attention_norm"], eps)
    q, k, v = (_heads(config, _linear(normed, layer, name)) for name in "qkv")
    if config.qk_norm:
        q, k = rms_norm(q, layer["q_norm"], eps), rms_norm(k, layer["k_norm"], eps)
    out, memory = attend(rotate(q, rotation), rotate(k, rotation), v, memory)
    x = x + _linear(out.reshape(*x.shape[:2], -1), layer, "o")
    normed = rms_norm(x, layer["mlp_norm"], eps)
    gated = jax.nn.silu(_linear(normed, layer, "gate")) * _linear(normed, layer, "up")
    return x + _linear(gated, layer, "down"), memory


def cached_attention(positions: jax.Array) -> Attend:
    """Attention of a block at `positions` int32[B, T] to all positions up to each token's own.

    The memory is the layer's keys and values, [B, G, N, H] each, into which the block is written.
    """

    def attend(q, k, v, memory):
        keys, values = (
            _write(old, (slice(None),), positions, new)
            for old, new in zip(memory, (k, v), strict=True)
        )
        batch, block, num_heads, head_dim = q.shape
        groups, size = keys.shape[1:3]
        # The query heads of a group are rows of one product with the group's keys.
        shared = num_heads // groups
        q = q.reshape(batch, block, groups, shared, head_dim).transpose(0, 2, 3, 1, 4)
        q = q.reshape(batch, groups, shared * block, head_dim)
        scores = jnp.einsum("bgqh,bgnh->bgqn", q, keys, preferred_element_type=jnp.float32)
        position = jnp.arange(size, dtype=jnp.int32)[None, None, None]
        visible = position <= jnp.tile(positions, (1, shared))[:, None, :, None]
        scores = jnp.where(visible, scores / math.sqrt(head_dim), -jnp.inf)
        share = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = jnp.einsum("bgqn,bgnh->bgqh", share, values)
        out = out.reshape(batch, groups, shared, block, head_dim).transpose(0, 3, 1, 2, 4)
        return out.reshape(batch, block, num_heads, head_dim), (keys, values)

    return attend


def unembed(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """The logits float32[B, T, V] of normalised hidden states [B, T, D]."""
    head = params.get("head", params["embed"])
    return jnp.einsum("btd,vd->btv", x, head, preferred_element_type=jnp.float32)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * jnp.expand_dims(weight, range(x.ndim - 1))


def block_positions(start: jax.Array, width: int) -> jax.Array:
    """int32[B, T] positions of blocks that start at `start` int32[B]."""
    return start[:, None] + jnp.arange(width, dtype=jnp.int32)[None]


def rotate_by(config: Config, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cosines and sines float32[B, T, 1, H / 2] of the rotary embedding (Su et al. 2021)."""
    angles = positions[:, :, None, None].astype(jnp.float32) * rotary_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates pairs (i, i + H / 2) of the last axis of [B, T, heads, H]."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def rotary_frequencies(config: Config) -> np.ndarray:
    """float32[1, 1, 1, H / 2] radians by which one position turns each pair."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling:
        frequencies = _scale_as_llama3(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)[None, None, None]


def _scale_as_llama3(frequencies: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Divides by `factor` where the original context holds few turns, with a smooth transition."""
    turns = rope.original_max_position_embeddings * frequencies / (2 * np.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / rope.factor)


def _linear(x: jax.Array, layer: dict[str, jax.Array], name: str) -> jax.Array:
    y = jnp.einsum("bti,oi->bto", x, layer[name])
    return y + layer[name + "_bias"][None, None] if name + "_bias" in layer else y


def _heads(config: Config, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1, config.head_dim)


def _write(old: jax.Array, between: tuple, positions: jax.Array, new: jax.Array) -> jax.Array:
    """`old` [B, ..., N, ...] with `new` at `positions`; `between` are the axes up to N's."""
    if positions.size == 1:
        # XLA would make an update of one position a slice, and copy the cache for it in every
        # step. Of two positions, of which one is out of bounds and dropped, it does not.
        positions = jnp.concatenate([positions, jnp.full((1, 1), INT32_MAX, jnp.int32)], axis=1)
        new = jnp.concatenate([new, new], axis=1)
    rows = jnp.arange(old.shape[0], dtype=jnp.int32)[:, None]
    return old.at[(rows, *between, positions)].set(new, mode="drop")
