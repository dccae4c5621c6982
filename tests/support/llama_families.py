"""Small random models of each family, and what `transformers` says they answer.

Run as a script, with `transformers` and `torch` installed, it writes the answers anew:

    PYTHONPATH=examples python tests/support/llama_families.py tests/golden/llama_logits.npz
"""

import pathlib
import sys
import zlib

import jax
import numpy as np

from jax_sa.llama import checkpoint, weights
from jax_sa.llama.config import Config, Llama3Rope

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llama_logits.npz"
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ROPE = Llama3Rope(8.0, 1.0, 4.0, 64)
FAMILIES = {
    "llama": Config("LlamaForCausalLM", **SIZES),
    "llama-tied": Config("LlamaForCausalLM", **SIZES, tied=True),
    "llama3": Config("LlamaForCausalLM", **SIZES, rope_theta=5e5, rope_scaling=ROPE),
    "llama-bias": Config("LlamaForCausalLM", **SIZES, qkv_bias=True, o_bias=True),
    "qwen2": Config("Qwen2ForCausalLM", **SIZES, qkv_bias=True, rms_norm_eps=1e-6),
    "qwen2-tied": Config("Qwen2ForCausalLM", **SIZES, qkv_bias=True, tied=True),
    "qwen3": Config("Qwen3ForCausalLM", **SIZES | {"head_dim": 16}, qk_norm=True),
    "qwen3-tied": Config("Qwen3ForCausalLM", **SIZES, qk_norm=True, tied=True, rope_theta=1e6),
}
TOKENS = np.random.RandomState(0).randint(0, SIZES["vocab_size"], (2, 96)).astype(np.int32)


def random_params(config):
    """The same on every machine: large enough that every part of the model matters."""

    def draw(weight):
        random = np.random.RandomState(zlib.crc32(weight.name.encode()))
        values = random.uniform(-1, 1, weight.shape)
        return (1 + 0.5 * values if len(weight.shape) == 1 else 0.4 * values).astype(np.float32)

    return jax.tree.map(draw, weights.describe(config))


def write_checkpoint(directory, config):
    checkpoint.save(directory, config, random_params(config))
    return directory


def transformers_logits(directory):
    """What `transformers` answers to `TOKENS`, float32[B, T, V]."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def main(path):
    import tempfile

    answers = {}
    for family, config in FAMILIES.items():
        with tempfile.TemporaryDirectory() as directory:
            write_checkpoint(pathlib.Path(directory), config)
            # The last positions depend on all: a few of them keep the file small.
            answers[family] = transformers_logits(directory)[:, -4:]
    np.savez_compressed(path, **answers)


if __name__ == "__main__":
    main(sys.argv[1])
