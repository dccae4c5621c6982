"""A small attention model with a cache, and models that break one clause of the contract each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

WIDTH, VOCABULARY, RING = 16, 23, 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    length: jax.Array
    keys: jax.Array
    """float32[B, C, D]; these are the values, too."""
    count: jax.Array
    """int32[B] all tokens that were read, refused ones included."""
    high: jax.Array
    """int32[B] entries that were ever written."""


def init_params():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (VOCABULARY, WIDTH), (128, WIDTH), (WIDTH, WIDTH), (WIDTH, VOCABULARY)
    names = "embedding", "positions", "query", "head"
    return {
        name: jax.random.normal(key, shape)
        for name, key, shape in zip(names, keys, shapes, strict=True)
    }


def init_cache(rows, capacity):
    none = jnp.zeros(rows, jnp.int32)
    return Cache(none, jnp.full((rows, capacity, WIDTH), 0.5), jnp.copy(none), jnp.copy(none))


def init_ring(rows, capacity):
    return init_cache(rows, RING)


@functools.cache
def make(fault=None):
    """A model that keeps the contract, but for the clause named."""

    def model(params, tokens, cache):
        width, capacity = tokens.shape[1], cache.keys.shape[1]
        place = jnp.arange(width, dtype=jnp.int32)[None]
        entry = jnp.arange(capacity, dtype=jnp.int32)[None, None]
        is_block = width > 1
        length = cache.length
        if fault == "rows":
            length = jnp.broadcast_to(jnp.max(length), length.shape)
        if fault == "refused: count":
            length = cache.count
        positions = length[:, None] + place
        written = positions
        if fault == "room" and is_block:
            written = jnp.minimum(length, capacity - width - 1)[:, None] + place
        if fault == "beyond":
            written = jnp.minimum(length, capacity - width)[:, None] + place
        if fault == "late":
            written = positions % capacity

        x = params["embedding"][tokens] + params["positions"][positions]
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        keys = cache.keys.at[rows, written].set(x, mode="drop")

        seen = entry <= positions[..., None]
        if fault == "memory":
            seen = jnp.broadcast_to(entry <= place[..., None], seen.shape)
        if fault == "offset" and is_block:
            seen &= entry >= length[:, None, None]
        if fault == "order" and is_block:
            last = jnp.where(length > 0, length + width - 1, 0)[:, None]
            seen = entry <= jnp.maximum(positions, last)[..., None]
        if fault == "special" and is_block:
            held = jnp.zeros((tokens.shape[0], capacity), bool)
            held = held.at[rows, written].set(tokens == 0, mode="drop")
            seen &= ~held[:, None] | (entry == positions[..., None])
        if fault == "refused: stale":
            seen |= entry < cache.high[:, None, None]
        if fault == "late":
            age = (positions[..., None] - entry) % capacity
            seen = age <= positions[..., None]

        scores = jnp.einsum("btd,de,bce->btc", x, params["query"], keys) / 16
        attended = jnp.einsum("btc,bcd->btd", jax.nn.softmax(jnp.where(seen, scores, -1e30)), keys)
        if fault == "width" and is_block:
            attended = 1.5 * attended
        if fault == "alone":
            attended = attended + jnp.mean(x, axis=0, keepdims=True).repeat(x.shape[0], 0)
        logits = jnp.tanh(x + attended) @ params["head"]
        return logits[:, -1] if fault == "shapes" else logits, dataclasses.replace(
            cache,
            length=cache.length + width if fault == "length" else cache.length,
            keys=keys,
            count=cache.count + width,
            high=jnp.maximum(cache.high, length + width),
        )

    return model


def forward(params, tokens, positions, keys):
    """The same as a stack's own forward function, over a cache that is an array."""
    cache = dataclasses.replace(init_cache(*keys.shape[:2]), keys=keys, length=positions[:, 0])
    logits, cache = make()(params, tokens, cache)
    return logits, cache.keys


def init_keys(rows, capacity):
    return init_cache(rows, capacity).keys
