"""A model whose next token is a fixed function of the whole prefix, read through its cache.

The next token is `table[last two tokens]`, which makes texts repeat; where the prefix's checksum is
a multiple of 5, it is the checksum's, which makes any mistake in the cache show. All in integers,
so that no logit depends on the width of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jax_sa

VOCABULARY = 11
TABLE = np.random.default_rng(0).integers(0, VOCABULARY, (VOCABULARY, VOCABULARY)).astype(np.int32)
MODULUS, SURPRISE = 10_007, 5
GARBAGE = 7  # what the model writes beyond the length must not be read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    length: jax.Array
    tokens: jax.Array
    """int32[B, C] what the model has read."""
    heard: jax.Array
    """int32[B, C] what the drafter was told."""
    heard_length: jax.Array

    def move(self, start, path):
        moved = jax_sa.move_entries(self.tokens, start, path, axes=(0, 1))
        return dataclasses.replace(self, tokens=moved)


def init_cache(rows, capacity):
    return Cache(
        length=jnp.zeros(rows, jnp.int32),
        tokens=jnp.full((rows, capacity), GARBAGE, jnp.int32),
        heard=jnp.full((rows, capacity), GARBAGE, jnp.int32),
        heard_length=jnp.zeros(rows, jnp.int32),
    )


def append(buffer, lengths, tokens):
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    columns = lengths[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return buffer.at[rows, columns].set(tokens, mode="drop")


def model(params, tokens, cache):
    """`params`: int32[V, V], the table."""
    width = tokens.shape[1]
    text = append(cache.tokens, cache.length, tokens)
    place = jnp.arange(1, text.shape[1] + 1, dtype=jnp.int32)[None]
    sums = jnp.cumsum((text + 1) * (place * place % 97), axis=1) % MODULUS
    position = cache.length[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    checksum = jnp.take_along_axis(sums, position, axis=1, mode="clip")
    before = jnp.take_along_axis(text, jnp.maximum(position - 1, 0), axis=1, mode="clip")
    before = jnp.where(position > 0, before, 0)
    ruled = params[before, tokens]
    chosen = jnp.where(checksum % SURPRISE == 0, checksum % VOCABULARY, ruled)
    return jax.nn.one_hot(chosen, VOCABULARY), dataclasses.replace(cache, tokens=text)


def read_paths(text, tree):
    """Of each token of a block [B, T] the token before it on its path, and what it attends to.

    That is bool[B, T, C], by entry of the cache, and the position in the token's text of each
    entry, int32[B, T, C].
    """
    entry = jnp.arange(text.shape[1], dtype=jnp.int32)[None, None]
    node = entry - tree.start[..., None]
    last = tree.nodes.shape[-1] - 1
    seen = jnp.take_along_axis(tree.nodes, jnp.clip(node, 0, last), axis=-1) & (node <= last)
    seen |= node < 0
    position = jnp.cumsum(seen.astype(jnp.int32), axis=-1) - 1
    is_before = seen & (position == tree.positions[..., None] - 1)
    return jnp.sum(jnp.where(is_before, text[:, None], 0), axis=-1), seen, position


def tree_model(params, tokens, cache, tree=None):
    """As `model`, and for trees: each token reads its path as a text of its own."""
    if tree is None:
        return model(params, tokens, cache)
    text = append(cache.tokens, cache.length, tokens)
    before, seen, position = read_paths(text, tree)
    place = 1 + position
    terms = jnp.where(seen, (text[:, None] + 1) * (place * place % 97), 0)
    checksum = jnp.sum(terms, axis=-1) % MODULUS
    ruled = params[before, tokens]
    chosen = jnp.where(checksum % SURPRISE == 0, checksum % VOCABULARY, ruled)
    return jax.nn.one_hot(chosen, VOCABULARY), dataclasses.replace(cache, tokens=text)


def greedy(prompt, count, stop_tokens=()):
    """The new tokens of plain greedy decoding, without JAX and without a cache."""
    text = list(map(int, prompt))
    for _ in range(count):
        checksum = sum((t + 1) * (i * i % 97) for i, t in enumerate(text, 1)) % MODULUS
        ruled = TABLE[text[-2] if len(text) > 1 else 0, text[-1]]
        text.append(checksum % VOCABULARY if checksum % SURPRISE == 0 else int(ruled))
        if text[-1] in stop_tokens:
            break
    return text[len(prompt) :]


def drafter(max_draft):
    """Follows the table from the text that it was told; right until the next surprise."""

    def draft(params, cache, last_two):
        before, last = last_two
        tokens = []
        for _ in range(max_draft):
            before, last = last, params[before, last]
            tokens.append(last)
        return jnp.stack(tokens, axis=1), cache

    def told(cache):
        """The last two tokens that the drafter was told."""
        rows = jnp.arange(cache.heard.shape[0], dtype=jnp.int32)
        before, last = (
            jnp.where(n >= 0, cache.heard[rows, jnp.maximum(n, 0)], 0)
            for n in (cache.heard_length - 2, cache.heard_length - 1)
        )
        return before, last

    def after_prompt(params, prompts, lengths, last, cache):
        heard = append(cache.heard, cache.heard_length, prompts)
        heard = append(heard, cache.heard_length + lengths, last[:, None])
        cache = dataclasses.replace(
            cache, heard=heard, heard_length=cache.heard_length + lengths + 1
        )
        return draft(params, cache, told(cache))

    def after_step(params, accepted, cache):
        cache = dataclasses.replace(
            cache,
            heard=append(cache.heard, cache.heard_length, accepted.tokens),
            heard_length=cache.heard_length + accepted.length,
        )
        return draft(params, cache, told(cache))

    memory = "heard", "heard_length"
    return jax_sa.NeuralDrafter(after_prompt, after_step, max_draft, memory)
