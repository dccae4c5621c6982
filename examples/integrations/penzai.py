"""Speculative decoding for `penzai`: its Gemma, Llama and Mistral, with named axes.

    pip install jax_sa "penzai==0.2.5"
    python -m integrations.penzai  # from examples/; random parameters
    python -m integrations.penzai --checkpoint llama  # a folder; needs transformers and torch

Penzai's own sampling layer counts tokens itself, has one count for all rows, and takes token 0 for
padding. So its body is called without that layer. The body has no axis of rows: they are vmapped.
"""

import sys

import jax
import jax.numpy as jnp
from penzai import pz
from penzai.models.transformer import sampling_mode
from penzai.models.transformer.variants import llama, llamalike_common

import jax_sa
from integrations.show import loading, parser, show

TINY = llamalike_common.LlamalikeTransformerConfig(
    num_kv_heads=2,
    query_head_multiplier=2,
    embedding_dim=64,
    projection_dim=16,
    mlp_hidden_dim=128,
    num_decoder_blocks=2,
    vocab_size=256,
    mlp_variant="swiglu",
    tie_embedder_and_logits=False,
)


def adapt(transformer):
    """The model for `jax_sa.Decoder`, and its parameters."""

    def caching_body(capacity):
        sampler = sampling_mode.KVCachingTransformerLM.from_uncached(
            transformer, cache_len=capacity, batch_axes={}
        )
        body, kv = pz.unbind_variables(
            sampler.body, lambda variable: isinstance(variable, pz.StateVariable), freeze=True
        )
        body, params = pz.unbind_variables(body, freeze=True)
        return body, params, kv

    body, params, _ = caching_body(capacity=1)

    def forward(params, tokens, positions, kv):
        capacity = kv[0].value[0].named_shape["seq"]
        logits, variables = body.stateless_call(
            (*params, *kv),
            pz.nx.wrap(tokens[0]).tag("seq"),
            token_positions=pz.nx.wrap(positions[0]).tag("seq"),
            kv_token_positions=pz.nx.wrap(jnp.arange(capacity)).tag("seq"),
            cache_end_index=positions[0, 0],
        )
        return logits.unwrap("seq", "vocabulary")[None], variables[len(params) :]

    def init_kv(rows, capacity):
        return caching_body(capacity)[2]

    return jax_sa.from_forward(forward, init_kv, index="batch"), params


def main():
    """Random parameters of a tiny Llama, or a checkpoint."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--checkpoint", help="a Llama that transformers can load")
    args = options.parse_args()
    if args.checkpoint:
        with loading(args.checkpoint):
            from transformers import LlamaForCausalLM

            loaded = LlamaForCausalLM.from_pretrained(args.checkpoint)
            transformer = llama.llama_from_huggingface_model(loaded)
        vocabulary = loaded.config.vocab_size
    else:
        key = jax.random.key(0)
        transformer = llamalike_common.build_llamalike_transformer(TINY, init_base_rng=key)
        vocabulary = TINY.vocab_size
    model, params = adapt(transformer)
    return show("penzai", args, model, params, model.init_cache, vocabulary=vocabulary)


if __name__ == "__main__":
    sys.exit(main())
