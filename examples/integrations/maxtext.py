"""Speculative decoding for `maxtext`: its Llama, Qwen, Gemma, DeepSeek and others.

    pip install jax_sa -r integrations/maxtext.txt  # Python 3.12
    python -m integrations.maxtext  # from examples/; random parameters
    python -m integrations.maxtext --checkpoint llama/0/items --model_name llama3.2-1b

Its cache takes one token at a time, and a chunk of a prompt only where shapes say at which
position, so every step runs the forward pass of training over the whole text. That takes as few
calls as a cache would, but each costs as much as a prompt of that length. The model is an NNX
module that sets attributes of its own as it runs, so it is split from its parameters.
"""

import sys

import jax.numpy as jnp
from flax import nnx
from maxtext.configs import pyconfig
from maxtext.utils import model_creation_utils

import jax_sa
from integrations.show import folder, loading, parser, show

TINY = {
    "decoder_block": "llama2",
    "base_emb_dim": 64,
    "base_mlp_dim": 128,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_num_decoder_layers": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "dtype": "float32",
}
PLAIN = {
    "attention": "dot_product",  # the default takes texts of certain lengths only
    "skip_jax_distributed_system": True,
}


def adapt(module):
    """The model for `jax_sa.Decoder`, and its parameters."""
    graphdef, params = nnx.split(module)

    def forward(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        return nnx.merge(graphdef, params)(tokens, positions, enable_dropout=False)

    return jax_sa.from_whole_pass(forward), params


def main():
    """Random parameters of a tiny Llama, or a checkpoint."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument(
        "--checkpoint", type=folder, help="of parameters alone, as MaxText writes them"
    )
    options.add_argument("--model_name", help="of the checkpoint (default: the tiny one)")
    args = options.parse_args()
    sizes = {"model_name": args.model_name} if args.model_name else TINY
    if args.checkpoint:
        with loading(args.checkpoint):
            config = pyconfig.initialize(**sizes, **PLAIN, load_parameters_path=args.checkpoint)
            module, _ = model_creation_utils.from_pretrained(config)
    else:
        config = pyconfig.initialize(**sizes, **PLAIN)
        module = model_creation_utils.from_config(config, rngs=nnx.Rngs(0))
    model, params = adapt(module)
    return show("maxtext", args, model, params, model.init_cache, vocabulary=config.vocab_size)


if __name__ == "__main__":
    sys.exit(main())
