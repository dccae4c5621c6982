"""The ops of jax_sa in a loop of one's own: the step of Gemma's sampler, with drafts.

    pip install jax_sa "gemma==4.0.1" "sentencepiece<0.2.2"
    python -m integrations.gemma_sampler  # from examples/; random parameters

`gm.text.Sampler` decodes rows that stand at one common index, a token a step. Drafts are accepted
to different lengths, so this loop is for one row; `integrations.gemma` decodes many.
"""

import functools
import sys

import jax
import jax.numpy as jnp
from gemma import gm

import jax_sa
from integrations.gemma import TINY
from integrations.show import parser, repetitive_prompts

GEMMA = gm.nn.Transformer(config=TINY, dtype=jnp.float32)


def read(params, block, used, cache):
    """The logits of a block at index `used`, and the cache with it."""
    cache = {name: layer | {"end_index": used[None]} for name, layer in cache.items()}
    positions = used + jnp.arange(block.shape[1], dtype=jnp.int32)[None]
    capacity = cache["layer_0"]["k"].shape[1]
    mask = jnp.arange(capacity)[None, None] <= positions[..., None]
    out = GEMMA.apply(
        {"params": params}, block, positions=positions, attention_mask=mask, cache=cache
    )
    return out.logits, out.cache


@functools.partial(jax.jit, static_argnames="max_draft", donate_argnames=("cache", "state"))
def sample_step(params, last, used, cache, state, max_draft):
    """One call of the model; without drafts (0), the step of the sampler that comes with it."""
    if max_draft:
        draft = jax_sa.lookup(state, max_draft=max_draft)
    else:
        draft = jax_sa.Draft(jnp.zeros((1, 0), jnp.int32), jnp.zeros(1, jnp.int32))
    block = jnp.concatenate([last[:, None], draft.tokens], axis=1)
    logits, cache = read(params, block, used, cache)
    accepted = jax_sa.accept_greedy(draft, logits)
    state = jax_sa.extend(state, accepted.tokens, accepted.length)
    last = accepted.tokens[:, accepted.length[0] - 1]
    return accepted, last, used + accepted.length[0], cache, state


def sample(params, prompt, max_new_tokens, max_draft):
    """The new tokens of one prompt int32[1, P], and the calls of the model."""
    width = prompt.shape[1]
    room = width + max_new_tokens + max_draft  # a last block may go beyond the text
    cache = GEMMA.config.init_cache(1, jnp.float32, cache_length=room)
    state = jax_sa.init(1, room)
    state = jax_sa.extend(state, prompt, jnp.full(1, width, jnp.int32))
    _, cache = jax.jit(read)(params, prompt[:, :-1], jnp.zeros((), jnp.int32), cache)
    last, used = prompt[:, -1], jnp.asarray(width - 1, jnp.int32)
    tokens, calls = [], 0
    while len(tokens) < max_new_tokens:
        accepted, last, used, cache, state = sample_step(
            params, last, used, cache, state, max_draft
        )
        emitted = jax.device_get(accepted)
        tokens += emitted.tokens[0, : emitted.length[0]].tolist()
        calls += 1
    return tokens[:max_new_tokens], calls


def main():
    """One prompt, with and without drafts."""
    args = parser(__doc__.partition("\n")[0]).parse_args()
    init = jax.jit(functools.partial(GEMMA.init, tokens=jnp.zeros((1, 2), jnp.int32)))
    params = init(jax.random.key(0))["params"]
    prompts, lengths = repetitive_prompts(1, TINY.num_embed)
    prompt = prompts[:, : int(lengths[0])]
    plain, calls = sample(params, prompt, args.max_new_tokens, 0)
    drafted, fewer = sample(params, prompt, args.max_new_tokens, args.max_draft)
    same = "the same" if plain == drafted else "NOT THE SAME"
    print(f"gemma's sampler: {calls} calls of the model, {fewer} with drafts; texts {same}")
    return 0 if plain == drafted else 1


if __name__ == "__main__":
    sys.exit(main())
