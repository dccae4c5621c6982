"""The MTP module as a drafter of a speculative decoding loop.

Its keys and values are the last of the cache. As the model's, they are garbage at and beyond
`cache.length`.

Letters: B slots, T tokens of a block, M drafted tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

import jax_sa
from jax_sa.llama import model, mtp
from jax_sa.llama.attention import cached_attention
from jax_sa.llama.config import Config
from jax_sa.llama.model import Cache


def mtp_drafter(config: Config, max_draft: int) -> jax_sa.NeuralDrafter:
    """A drafter of `max_draft` tokens, M.

    Beyond the first, the module reads its own hidden state and its own token, in place of the
    model's.
    """
    return jax_sa.NeuralDrafter(
        prefill=functools.partial(_prefill, config, max_draft),
        draft=functools.partial(_draft, config, max_draft),
        max_draft=max_draft,
        memory=("hidden",),
    )


def _prefill(
    config: Config,
    max_draft: int,
    params: dict[str, Any],
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    first_tokens: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Reads prompts int32[B, P] and the token after each, and drafts what follows."""
    column = jnp.arange(prompts.shape[1], dtype=jnp.int32)[None]
    last = column == prompt_lengths[:, None] - 1
    next_tokens = jnp.where(last, first_tokens[:, None], jnp.roll(prompts, -1, axis=1))
    return _read_and_draft(config, max_draft, params, next_tokens, prompt_lengths, cache)


def _draft(
    config: Config, max_draft: int, params: dict[str, Any], accepted: Any, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Reads what a step emitted, and drafts what follows."""
    return _read_and_draft(config, max_draft, params, accepted.tokens, accepted.length, cache)


def _read_and_draft(
    config: Config,
    max_draft: int,
    params: dict[str, Any],
    next_tokens: jax.Array,
    count: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Reads the last `count` positions of the cache, each with the token after it, and drafts."""
    start = cache.length - count
    positions = model.block_positions(start, next_tokens.shape[1])
    rows = jnp.arange(start.shape[0], dtype=jnp.int32)
    hidden = cache.hidden.at[rows[:, None], positions].get(mode="clip")
    last = jnp.maximum(count - 1, 0)
    drafted = []
    for i in range(max_draft):
        memory = (cache.keys, cache.values)
        block = model.dense_block(config, positions, memory)
        attend = cached_attention(block, cache.mesh)
        embedded = params["embed"][next_tokens]
        x, memory = mtp.decode(config, params, hidden, embedded, positions, attend, memory)
        cache = dataclasses.replace(cache, keys=memory[0], values=memory[1])
        hidden = x[rows, last][:, None]
        logits = model.unembed(config, params, hidden, cache.mesh)
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drafted.append(tokens)
        # The next round is one token wide, and goes on from here.
        next_tokens, last = tokens, jnp.zeros_like(last)
        positions = (start + jnp.maximum(count, 1) + i)[:, None]
    return jnp.concatenate(drafted, axis=1), cache
