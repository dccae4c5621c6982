"""The part of a DeepSeek-V4-style model that decides its caches: layers and dimensions."""

import dataclasses
import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax_sa._checks import check_bool, check_int
from jax_sa.cache_schema._fields import set_fields


class AttentionType(enum.StrEnum):
    """The kinds of layer; a value is its name in the `layer_types` of a Hugging Face config."""

    SWA = "sliding_attention"
    """The sliding window alone."""
    CSA = "compressed_sparse_attention"
    """And an entry for each `csa_ratio` tokens, of which an indexer picks some."""
    HCA = "heavily_compressed_attention"
    """And an entry for each `hca_ratio` tokens, all of them attended to."""


@dataclass(frozen=True)
class DSV4Config:
    """The part of a DeepSeek-V4 config that decides cache sizes, under its published names.

    Raises:
      ValueError: a field is out of range; the message names it.
      TypeError: a field is of the wrong type.

    """

    layer_types: tuple[AttentionType, ...]
    """The type of each layer, first to last; names are accepted and become the enum."""
    mtp_layer_types: tuple[AttentionType, ...] = ()
    """The type of each multi-token-prediction (MTP) layer."""
    head_dim: int = 512
    """Elements of a main KV entry, the rotary ones included; there is one KV head."""
    qk_rope_head_dim: int = 64
    """Rotary elements among the `head_dim`."""
    index_head_dim: int = 128
    """Elements of an indexer entry (CSA)."""
    sliding_window: int = 128
    """Tokens that every layer keeps uncompressed."""
    csa_ratio: int = 4
    """Tokens per compressed entry of CSA."""
    hca_ratio: int = 128
    """Tokens per compressed entry of HCA."""
    max_position_embeddings: int = 1_048_576
    """The longest context that the model was made for."""

    def __post_init__(self) -> None:
        for name in ("layer_types", "mtp_layer_types"):
            set_fields(self, **{name: _check_types(name, getattr(self, name))})
        if not self.layer_types:
            raise ValueError("layer_types: expected at least one layer, got none")
        for field in dataclasses.fields(self):
            if field.type is int:
                low = 0 if field.name == "qk_rope_head_dim" else 1
                set_fields(
                    self, **{field.name: check_int(field.name, getattr(self, field.name), low)}
                )
        check_int("qk_rope_head_dim", self.qk_rope_head_dim, 0, self.head_dim)
        check_int("hca_ratio", self.hca_ratio, self.csa_ratio + 1)

    def block_size(self, multiple: int = 1) -> int:
        """Tokens in a block: `multiple` times the least common multiple of the two ratios."""
        return check_int("multiple", multiple, 1) * math.lcm(self.csa_ratio, self.hca_ratio)

    def block_multiple(self, block_size: int) -> int:
        """The multiple with which a block has `block_size` tokens; ValueError if there is none."""
        unit = self.block_size()
        block_size = check_int("block_size", block_size, 1)
        if block_size % unit:
            raise ValueError(f"block_size: expected a multiple of {unit}, got {block_size}")
        return block_size // unit


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a model."""

    index: int
    """Its place, from 0. MTP layers come after the others."""
    attention_type: AttentionType
    """Its type; a name is accepted and becomes the enum."""
    mtp: bool = False
    """Whether it is an MTP layer."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            index=check_int("index", self.index, 0),
            attention_type=_check_type("attention_type", self.attention_type),
            mtp=check_bool("mtp", self.mtp),
        )


def layer_schedule(config: DSV4Config, *, mtp: bool = False) -> tuple[LayerSpec, ...]:
    """The layers of a model in order, with its MTP layers at the end if `mtp`."""
    layers = [(attention_type, False) for attention_type in config.layer_types]
    if check_bool("mtp", mtp):
        layers += [(attention_type, True) for attention_type in config.mtp_layer_types]
    return tuple(LayerSpec(index, *layer) for index, layer in enumerate(layers))


def dsv4_pro() -> DSV4Config:
    """DeepSeek-V4-Pro: 61 layers, 31 HCA and 30 CSA, and one SWA layer for MTP."""
    swa, csa, hca = AttentionType
    return DSV4Config((hca, hca, csa) + (hca, csa) * 29, (swa,))


def dsv4_flash() -> DSV4Config:
    """DeepSeek-V4-Flash: 43 layers, 2 SWA, 21 CSA and 20 HCA, and one SWA layer for MTP."""
    swa, csa, hca = AttentionType
    return DSV4Config((swa, swa, csa) + (hca, csa) * 20, (swa,))


def _check_types(name: str, values: Any) -> tuple[AttentionType, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name}: expected a sequence of layer types, got {values!r}")
    return tuple(_check_type(f"{name}[{i}]", value) for i, value in enumerate(values))


def _check_type(name: str, value: Any) -> AttentionType:
    try:
        return AttentionType(value)
    except ValueError:
        names = ", ".join(repr(kind.value) for kind in AttentionType)
        raise ValueError(f"{name}: expected one of {names}, got {value!r}") from None
