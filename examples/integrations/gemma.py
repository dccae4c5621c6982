"""Speculative decoding for `gemma`, Google DeepMind's own library of the Gemma models.

    pip install jax_sa "gemma==4.0.1" "sentencepiece<0.2.2"
    python -m integrations.gemma  # from examples/; random parameters
    python -m integrations.gemma --checkpoint gemma3-270m-it  # an Orbax checkpoint

A layer's cache has one index for all rows, so rows are vmapped. (It is `end_index`, of which the
first is read.) Everything else the model takes as arguments: positions and the mask.
"""

import functools
import sys

import jax
import jax.numpy as jnp
from gemma import gm

import jax_sa
from integrations.show import folder, loading, parser, show

TINY = gm.nn.config.TransformerConfig(
    num_embed=256,
    embed_dim=64,
    hidden_dim=128,
    num_heads=4,
    head_dim=16,
    num_kv_heads=1,
    final_logit_softcap=None,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    use_qk_norm=True,
    attention_types=(gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL),
    sliding_window_size=24,
)


def adapt(gemma, dtype):
    """The model for `jax_sa.Decoder`, of a `gm.nn.Transformer`."""

    def forward(params, tokens, positions, kv):
        kv = {name: layer | {"end_index": positions[:, 0]} for name, layer in kv.items()}
        capacity = kv["layer_0"]["k"].shape[1]
        out = gemma.apply(
            {"params": params},
            tokens,
            positions=positions,
            attention_mask=jnp.arange(capacity)[None, None] <= positions[..., None],
            cache=kv,
        )
        return out.logits, out.cache

    def init_kv(rows, capacity):
        return gemma.config.init_cache(rows, dtype, cache_length=capacity)

    return jax_sa.from_forward(forward, init_kv, index="batch")


def main():
    """Random parameters of a tiny Gemma, or a checkpoint of Gemma 3 270M."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument(
        "--checkpoint", type=folder, help="of gm.nn.Gemma3_270M, to load with gm.ckpts"
    )
    args = options.parse_args()
    if args.checkpoint:
        gemma, dtype = gm.nn.Gemma3_270M(), jnp.bfloat16
        with loading(args.checkpoint):
            params = gm.ckpts.load_params(args.checkpoint)
    else:
        gemma, dtype = gm.nn.Transformer(config=TINY, dtype=jnp.float32), jnp.float32
        init = jax.jit(functools.partial(gemma.init, tokens=jnp.zeros((1, 2), jnp.int32)))
        params = init(jax.random.key(0))["params"]
    model = adapt(gemma, dtype)
    vocabulary = gemma.config.num_embed
    return show("gemma", args, model, params, model.init_cache, vocabulary=vocabulary)


if __name__ == "__main__":
    sys.exit(main())
