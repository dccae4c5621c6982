"""Speculative decoding for `google-tunix`: its Qwen2, Qwen3 and Llama 3.

    pip install jax_sa "google-tunix==0.1.7"
    python -m integrations.tunix --model qwen3  # from examples/; random parameters
    python -m integrations.tunix --model qwen3 --checkpoint Qwen3-0.6B  # a folder of safetensors

The model is an NNX module, and goes to jax_sa as `params` just as it is. A layer's cache has one
index for all rows (`end_index`, of which the first is read), so rows are vmapped.
"""

import importlib
import sys

import jax
import jax.numpy as jnp
from flax import nnx

import jax_sa
from integrations.show import folder, loading, parser, show

CLASSES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama3": "Llama3"}
CHECKPOINTS = {"qwen2": "qwen2p5_0p5b", "qwen3": "qwen3_0p6b", "llama3": "llama3p2_1b"}
TINY = {
    "num_layers": 2,
    "vocab_size": 256,
    "embed_dim": 64,
    "hidden_dim": 128,
    "num_heads": 4,
    "head_dim": 16,
    "num_kv_heads": 2,
    "rope_theta": 10_000,
    "norm_eps": 1e-6,
}


def adapt(config):
    """The model for `jax_sa.Decoder`; its `params` are a module of this configuration."""

    def forward(module, tokens, positions, kv):
        kv = {name: layer | {"end_index": positions[:, 0]} for name, layer in kv.items()}
        mask = jnp.arange(kv["layer_0"]["k"].shape[1])[None, None] <= positions[..., None]
        return module(tokens, positions, kv, mask)

    def init_kv(rows, capacity):
        shape = rows, capacity, config.num_kv_heads, config.head_dim
        return {
            f"layer_{i}": {
                "k": jnp.zeros(shape),
                "v": jnp.zeros(shape),
                "end_index": jnp.zeros(rows, jnp.int32),
            }
            for i in range(config.num_layers)
        }

    return jax_sa.from_forward(forward, init_kv, index="batch")


def main():
    """Random parameters of a tiny model, or a checkpoint."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--model", choices=CLASSES, default="qwen3", help="default: qwen3")
    options.add_argument(
        "--checkpoint", type=folder, help="a folder of safetensors of the smallest such model"
    )
    args = options.parse_args()
    library = importlib.import_module(f"tunix.models.{args.model}.model")
    if args.checkpoint:
        params = importlib.import_module(f"tunix.models.{args.model}.params")
        config = getattr(library.ModelConfig, CHECKPOINTS[args.model])()
        with loading(args.checkpoint):
            module = params.create_model_from_safe_tensors(args.checkpoint, config)
    else:
        config = library.ModelConfig(**TINY)
        module = getattr(library, CLASSES[args.model])(config, rngs=nnx.Rngs(jax.random.key(0)))
    model = adapt(config)
    name = f"tunix {args.model}"
    return show(name, args, model, module, model.init_cache, vocabulary=config.vocab_size)


if __name__ == "__main__":
    sys.exit(main())
