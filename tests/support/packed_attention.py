"""`attention_model` with the packed contract, and models that break one clause of it each."""

import dataclasses
import functools

import attention_model
import jax
import jax.numpy as jnp
from attention_model import RING, WIDTH

import jax_sa


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """float32[B, C, D] keys, which are the values, too."""

    keys: jax.Array

    def move(self, start, path):
        return Cache(jax_sa.move_entries(self.keys, start, path, axes=(0, 1)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StayingCache(Cache):
    """One that moves nothing."""

    def move(self, start, path):
        return self


init_params = attention_model.init_params


def init_cache(rows, capacity):
    return Cache(jnp.full((rows, capacity, WIDTH), 0.5))


def init_ring(rows, capacity):
    return init_cache(rows, RING)


def init_staying(rows, capacity):
    return StayingCache(init_cache(rows, capacity).keys)


@functools.cache
def make(fault=None, *, lazy=False):
    """A model that keeps the contract, but for the clause named; `lazy`, its logits a function."""

    def model(params, tokens, rows, positions, cache, tree=None):
        total, (count, capacity, _) = tokens.size, cache.keys.shape
        entry = jnp.arange(capacity, dtype=jnp.int32)[None]
        is_block = total > count
        if fault == "padding":
            rows = jnp.minimum(rows, count - 1)
        if fault == "layout":
            rows = jnp.arange(total, dtype=jnp.int32) * count // total
        if fault == "rows" and not is_block:
            positions = jnp.full_like(positions, jnp.max(positions))
        at = positions if tree is None else tree.positions
        x = params["embedding"][tokens] + params["positions"][at]
        written = positions % capacity if fault == "late" else positions
        keys = cache.keys.at[rows, written].set(x, mode="drop")

        seen = entry <= positions[:, None]
        if tree is not None and fault != "tree":
            node = entry - tree.start[:, None]
            last = tree.nodes.shape[1] - 1
            on_path = jnp.take_along_axis(tree.nodes, jnp.clip(node, 0, last), axis=1)
            seen = (node < 0) | ((node <= last) & on_path)
        if fault == "memory":
            seen = entry == positions[:, None]
        if fault == "offset" and is_block:
            first = jax.ops.segment_min(positions, rows, count)
            seen &= entry >= first.at[rows].get(mode="clip")[:, None]
        if fault == "order" and is_block:
            last = jax.ops.segment_max(positions, rows, count)
            seen = entry <= last.at[rows].get(mode="clip")[:, None]
        if fault == "special" and is_block:
            held = jnp.zeros((count, capacity), bool)
            held = held.at[rows, positions].set(tokens == 0, mode="drop")
            own = entry == positions[:, None]
            seen &= ~held.at[rows].get(mode="fill", fill_value=False) | own
        if fault == "late" and tree is None:
            seen = (positions[:, None] - entry) % capacity <= positions[:, None]

        own_keys = keys.at[rows].get(mode="fill", fill_value=0.0)
        scores = jnp.einsum("td,de,tce->tc", x, params["query"], own_keys) / 16
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30))
        attended = jnp.einsum("tc,tcd->td", weights, own_keys)
        if fault == "width" and is_block:
            attended = 1.5 * attended
        if fault == "alone":
            beside = jnp.roll(x, total // count, axis=0)  # in a block of rows of one width
            attended = attended + beside
        logits = jnp.tanh(x + attended) @ params["head"]
        if fault == "shapes":
            logits = logits[-1]
        if lazy:
            return lambda places: logits[jnp.sort(places) if fault == "places" else places], (
                dataclasses.replace(cache, keys=keys)
            )
        return logits, dataclasses.replace(cache, keys=keys)

    return model
