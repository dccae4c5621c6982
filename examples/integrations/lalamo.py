"""Speculative decoding for `lalamo`, Mirai's models: Llama, Qwen, Gemma, Mistral and others.

    pip install jax_sa "lalamo==0.17.0"
    python -m integrations.lalamo  # from examples/; random parameters
    python -m integrations.lalamo --checkpoint Llama-3.2-1B-Instruct  # a name, or a folder

A row's static state has a length of its own, so rows need no help. It is set to where the block
begins; what the library makes of it afterwards does not matter.
"""

import dataclasses
import sys

import lalamo  # noqa: F401  sets options of JAX, before which it wants to be imported

# isort: split

import equinox as eqx
import jax
import jax.numpy as jnp
from lalamo.initializer import RandomInitializer
from lalamo.model_import.common import import_model
from lalamo.model_import.model_configs.huggingface.llama import HFLlamaConfig
from lalamo.module import Keychain
from lalamo.modules.decoder import DecoderForwardPassConfig
from lalamo.modules.embedding import EmbeddingForwardPassConfig
from lalamo.modules.token_mixers.kv_cache import StaticKVCacheLayer
from lalamo.utils.sharding import ShardingConfig

import jax_sa
from integrations.show import loading, parser, show

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


def is_layer(node):
    """Whether a part of a state is the cache of a layer."""
    return isinstance(node, StaticKVCacheLayer)


def adapt(decoder, dtype):
    """The model for `jax_sa.Decoder`, and its parameters."""
    params, static = eqx.partition(decoder, eqx.is_array)
    keychain = Keychain.init(0, sharding_config=decoder.sharding_config)
    embedding = EmbeddingForwardPassConfig(activation_dtype=dtype)
    precision = DecoderForwardPassConfig(embedding_forward_pass_config=embedding)

    def forward(params, tokens, positions, kv):
        def start(layer):
            length = positions[:, 0] + int(layer.has_sinks)  # a sink takes the first entry
            return dataclasses.replace(layer, current_length=length)

        result = eqx.combine(params, static)(
            tokens,
            positions,
            jax.tree.map(start, kv, is_leaf=is_layer),
            return_updated_state=True,
            forward_pass_config=precision,
            keychain=keychain,
        )
        return result.logits, result.updated_state

    def init_kv(rows, capacity):
        return decoder.init_static_state(rows, capacity, dtype)

    return jax_sa.from_forward(forward, init_kv), params


def tiny():
    """A small Llama with random parameters."""
    rest = {
        field.name: None
        for field in dataclasses.fields(HFLlamaConfig)
        if field.name not in TINY and field.default is dataclasses.MISSING
    }
    config = HFLlamaConfig(**TINY, **rest).to_decoder_config({})
    initializer = RandomInitializer(
        default_dtype=jnp.float32,
        sharding_config=ShardingConfig.replicated(),
        key=jax.random.key(0),
    )
    return config.init(initializer)


def main():
    """Random parameters of a tiny Llama, or a checkpoint."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--checkpoint", help="a model's name in lalamo's registry, or a folder")
    args = options.parse_args()
    if args.checkpoint:
        sharding = ShardingConfig.replicated()
        with loading(args.checkpoint):
            decoder = import_model(args.checkpoint, sharding_config=sharding).model.decoder
        dtype = jnp.bfloat16
    else:
        decoder, dtype = tiny(), jnp.float32
    model, params = adapt(decoder, dtype)
    vocabulary = decoder.vocab_size
    return show("lalamo", args, model, params, model.init_cache, vocabulary=vocabulary)


if __name__ == "__main__":
    sys.exit(main())
