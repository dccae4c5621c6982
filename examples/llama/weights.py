"""Every weight of a model: its name in a checkpoint, its shape, and how devices share it.

The parameters of a model are a pytree of arrays; `describe` gives the same pytree with a `Weight`
in place of each array, from which reading, writing, initialising and sharding all follow. A matrix
is [out, in], as in the checkpoint.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama.config import Config

AXIS = "tp"
"""The mesh axis over which a model is split."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One array of the parameters."""

    name: str
    shape: tuple[int, ...]
    split: int | None = None
    """The axis that tensor parallelism splits; None: every device has all of it."""

    def sharding(self, mesh: Mesh) -> NamedSharding:
        """Where the array lives. An axis that the mesh does not divide is not split."""
        spec = [None] * len(self.shape)
        if self.split is not None and self.shape[self.split] % mesh.size == 0:
            spec[self.split] = AXIS
        return NamedSharding(mesh, PartitionSpec(*spec))


def describe(config: Config) -> dict[str, Any]:
    """The parameters of a model, with a `Weight` for each array.

    `embed` [V, D], `norm` [D], `head` [V, D] unless tied, `layers`, a list, and `mtp`, if the
    config has one: the MTP module, with a `layer` of its own.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    weights = {
        "embed": Weight("model.embed_tokens.weight", vocabulary, 0),
        "norm": Weight("model.norm.weight", (config.hidden_size,)),
        "layers": [_layer(config, i) for i in range(config.num_layers)],
    }
    if not config.tied:
        weights["head"] = Weight("lm_head.weight", vocabulary, 0)
    if config.num_mtp:
        weights["mtp"] = _mtp(config)
    return weights


def _layer(config: Config, index: int) -> dict[str, Weight]:
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    outputs = {"q": heads, "k": kv_heads, "v": kv_heads}
    layer = {
        "attention_norm": Weight(prefix + "input_layernorm.weight", (hidden,)),
        "o": Weight(prefix + "self_attn.o_proj.weight", (hidden, heads), 1),
        "mlp_norm": Weight(prefix + "post_attention_layernorm.weight", (hidden,)),
        "gate": Weight(prefix + "mlp.gate_proj.weight", (inner, hidden), 0),
        "up": Weight(prefix + "mlp.up_proj.weight", (inner, hidden), 0),
        "down": Weight(prefix + "mlp.down_proj.weight", (hidden, inner), 1),
    }
    for name, size in outputs.items():
        layer[name] = Weight(f"{prefix}self_attn.{name}_proj.weight", (size, hidden), 0)
        if config.qkv_bias:
            layer[name + "_bias"] = Weight(f"{prefix}self_attn.{name}_proj.bias", (size,), 0)
    if config.o_bias:
        layer["o_bias"] = Weight(prefix + "self_attn.o_proj.bias", (hidden,))
    if config.qk_norm:
        layer["q_norm"] = Weight(prefix + "self_attn.q_norm.weight", (config.head_dim,))
        layer["k_norm"] = Weight(prefix + "self_attn.k_norm.weight", (config.head_dim,))
    return layer


def _mtp(config: Config) -> dict[str, Any]:
    """The module's names are DeepSeek-V3's: it counts as one more layer."""
    prefix = f"model.layers.{config.num_layers}."
    hidden = config.hidden_size
    return {
        "token_norm": Weight(prefix + "enorm.weight", (hidden,)),
        "hidden_norm": Weight(prefix + "hnorm.weight", (hidden,)),
        "join": Weight(prefix + "eh_proj.weight", (hidden, 2 * hidden)),
        "layer": _layer(config, config.num_layers),
        "norm": Weight(prefix + "shared_head.norm.weight", (hidden,)),
    }


def check_mesh_size(config: Config, devices: int) -> None:
    """Raises ValueError unless attention and MLP split evenly over that many devices."""
    for name, size in (
        ("attention heads", config.num_heads),
        ("key/value heads", config.num_kv_heads),
        ("MLP channels", config.intermediate_size),
    ):
        if size % devices:
            raise ValueError(
                f"tp_size: expected a divisor of the model's {size} {name}, got {devices}"
            )


def count(weights: Any) -> int:
    """The parameters that `weights`, or a part of them, hold."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(weights))
