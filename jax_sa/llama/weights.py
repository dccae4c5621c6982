"""Every weight of a model: its name and shape in a checkpoint, and how the model holds it.

`describe` gives the parameters as a checkpoint has them: a pytree with a `Weight` in place of each
array, from which reading, writing and initialising follow; a matrix is [out, in]. `fuse` makes of
such arrays the parameters that the model computes with. Every matrix there is [in, out], which on
a CPU halves the time of a block of two tokens, and what reads the same input is one matrix.

Letters: L layers, D hidden size, Q query heads, G key/value heads, R = Q / G, H head size, I inner
size of the MLP, V vocabulary.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_sa.llama.config import Config

AXIS = "tp"
"""The mesh axis over which a model is split."""
SPLIT = {"embed": -2, "head": -1, "qkv": -1, "qkv_bias": -1, "o": -2, "gate_up": -1, "down": -2}
"""The axis that tensor parallelism splits; of arrays not named here, every device has all."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One array of a checkpoint."""

    name: str
    shape: tuple[int, ...]


def describe(config: Config) -> dict[str, Any]:
    """The parameters as a checkpoint has them, with a `Weight` for each array.

    `embed` [V, D], `norm` [D], `head` [V, D] unless tied, `layers`, a list, and `mtp`, if the
    config has one: the MTP module, with a `layer` of its own.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    weights = {
        "embed": Weight("model.embed_tokens.weight", vocabulary),
        "norm": Weight("model.norm.weight", (config.hidden_size,)),
        "layers": [_layer(config, i) for i in range(config.num_layers)],
    }
    if not config.tied:
        weights["head"] = Weight("lm_head.weight", vocabulary)
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
        "o": Weight(prefix + "self_attn.o_proj.weight", (hidden, heads)),
        "mlp_norm": Weight(prefix + "post_attention_layernorm.weight", (hidden,)),
        "gate": Weight(prefix + "mlp.gate_proj.weight", (inner, hidden)),
        "up": Weight(prefix + "mlp.up_proj.weight", (inner, hidden)),
        "down": Weight(prefix + "mlp.down_proj.weight", (hidden, inner)),
    }
    for name, size in outputs.items():
        layer[name] = Weight(f"{prefix}self_attn.{name}_proj.weight", (size, hidden))
        if config.qkv_bias:
            layer[name + "_bias"] = Weight(f"{prefix}self_attn.{name}_proj.bias", (size,))
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


def in_one_array() -> bool:
    """Whether the arrays of all layers are one, and a loop over layers is one in the program too.

    Such a program compiles in half the time or less, but XLA copies the layer's matrices out of the
    array before it multiplies by them. On a CPU, a step of one row and one token then takes 1.4
    times as long: there, every layer has arrays of its own. On a GPU, `jax_sa.llama.layer_kernels`
    read small blocks' weights where they are, and for large blocks the copies matter little. The
    same goes for the caches of the layers.
    """
    return jax.default_backend() != "cpu"


def fuse(config: Config, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that the model computes with, from those that `describe` lays out.

    `embed` [V, D], `norm` [D], `head` [D, V], absent where a tied model needs no other layout of
    its embedding; `layers` as `_fuse_layer` says, a list, or, if they are `in_one_array`, a dict
    of arrays [L, ...]; `mtp` as described, with `join` [2D, D] and a fused `layer`.

    Args:
      config: of the model.
      params: arrays, all of NumPy or all of JAX.

    """
    xp = params["embed"].__array_namespace__()
    fused = {name: params[name] for name in ("embed", "norm")}
    layers = [_fuse_layer(config, xp, layer) for layer in params["layers"]]
    stacked = in_one_array()
    fused["layers"] = jax.tree.map(lambda *x: xp.stack(x), *layers) if stacked else layers
    if not (config.tied and stacked):
        fused["head"] = params["embed" if config.tied else "head"].T
    if config.num_mtp:
        mtp = params["mtp"]
        layer = _fuse_layer(config, xp, mtp["layer"])
        fused["mtp"] = mtp | {"join": mtp["join"].T, "layer": layer}
    return fused


def _fuse_layer(config: Config, xp: Any, layer: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one layer.

    `qkv` [D, G * (R + 2) * H]: of each group its query heads, its key head, its value head, so
    that devices may share the groups; `qkv_bias` likewise; `o` [Q * H, D]; `gate_up` [D, 2, I];
    `down` [I, D]; norms and `o_bias` as they are.
    """
    fused = {name: x for name, x in layer.items() if name.endswith("_norm") or name == "o_bias"}

    def join(suffix: str) -> Any:
        parts = [
            layer[name + suffix].reshape(
                config.num_kv_heads, -1, config.head_dim, *layer[name + suffix].shape[1:]
            )
            for name in "qkv"
        ]
        joined = xp.concatenate(parts, axis=1)
        return joined.reshape(-1, *joined.shape[3:]).T

    fused["qkv"] = join("")
    if config.qkv_bias:
        fused["qkv_bias"] = join("_bias")
    fused["o"], fused["down"] = layer["o"].T, layer["down"].T
    fused["gate_up"] = xp.stack([layer["gate"].T, layer["up"].T], axis=1)
    return fused


def place(params: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """Fused parameters on the default device, or shared by the devices of a mesh."""

    def put(path: tuple, array: Any) -> jax.Array:
        return jax.device_put(array, mesh and _sharding(path[-1].key, array.shape, mesh))

    return jax.tree_util.tree_map_with_path(put, params)


def _sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array lives. An axis that the mesh does not divide is not split."""
    spec: list[str | None] = [None] * len(shape)
    axis = SPLIT.get(name)
    if axis is not None and shape[axis] % mesh.size == 0:
        spec[axis] = AXIS
    return NamedSharding(mesh, PartitionSpec(*spec))


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
