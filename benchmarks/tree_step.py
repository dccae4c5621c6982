"""Times a step that drafts a tree against one that drafts a chain.

    python benchmarks/tree_step.py --json out.json

Each step appends a token to every slot and drafts, in a jitted loop that is one CUDA graph. Slots
hold 32K tokens of source code, the pool a million.
"""

from loops import iteration_us, parse_args  # first: it sets XLA's flags

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from report import report
from source_tokens import slot_texts, source_tokens

import jax_sa

CONTEXT, POOL, K = 32_768, 1_048_576, 16
SLOTS = (1, 64, 256)


def chain(state, tokens, lengths, pool):
    state, draft = jax_sa.extend_lookup(state, tokens, lengths, max_draft=K, pool=pool)
    return state, draft.tokens[:, 0] + draft.length


def tree(state, tokens, lengths, pool):
    state, tree = jax_sa.extend_lookup_tree(state, tokens, lengths, max_nodes=K, pool=pool)
    return state, tree.tokens[:, 0] + tree.length


def alone(state, tokens, lengths, pool):
    return jax_sa.extend(state, tokens, lengths), lengths


DRAFTS = {"none": alone, f"chain of {K}": chain, f"tree of {K}": tree}


def make_pool():
    tokens = source_tokens(POOL // 2)
    texts = np.resize(np.roll(tokens, POOL // 4), (POOL // 2048, 2047))
    pool = jax_sa.init_pool(POOL)
    insert = jax.jit(jax_sa.insert, donate_argnums=0)
    return insert(pool, jnp.asarray(texts), jnp.full(len(texts), 2047, jnp.int32))


def main():
    args = parse_args(__doc__.splitlines()[0])
    total = args.steps * (1 + args.repeats)
    rows = []
    for slots in SLOTS:
        texts = jnp.asarray(slot_texts(slots, CONTEXT + total))
        lengths = jnp.ones(slots, jnp.int32)
        for name, draft in DRAFTS.items():
            for pool in (None, make_pool()) if name != "none" else (None,):

                def body(carry, fixed, draft=draft):
                    state, place, used = carry
                    texts, lengths, pool = fixed
                    tokens = jax.lax.dynamic_slice_in_dim(texts, place, 1, axis=1)
                    state, result = draft(state, tokens, lengths, pool)
                    return state, place + 1, used ^ result

                state = jax_sa.init(slots, CONTEXT + total)
                extend = jax.jit(jax_sa.extend, donate_argnums=0)
                state = extend(state, texts[:, :CONTEXT], lengths * CONTEXT)
                carry = state, jnp.asarray(CONTEXT, jnp.int32), jnp.zeros_like(lengths)
                us = iteration_us(body, carry, (texts, lengths, pool), args.steps, args.repeats)
                seen = "none" if pool is None else f"{POOL:,}"
                rows.append({"slots": slots, "drafts": name, "pool": seen, "us": round(us, 2)})
                print(rows[-1], flush=True)
    report(rows, args.json, device=jax.devices()[0].device_kind, context=CONTEXT)


if __name__ == "__main__":
    main()
