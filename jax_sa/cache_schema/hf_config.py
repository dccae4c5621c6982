"""A `DSV4Config` from a Hugging Face `config.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_sa._checks import check_int, check_positive_float
from jax_sa._json import read_json_object
from jax_sa.cache_schema.config import AttentionType, DSV4Config


def from_hf(source: Mapping[str, Any] | str | os.PathLike[str]) -> DSV4Config:
    """The part of a Hugging Face config that decides the caches.

    The layers are in `compress_ratios` (0, 4 or 128 each), in `layer_types`, or in both. The
    first `num_hidden_layers` entries are the model's. Entries for its `num_nextn_predict_layers`
    MTP layers may follow (1 if the key is absent, as in the published class). Where they do not
    follow, the MTP layers are sliding-window layers, as in the published models.

    Args:
      source: the contents of a `config.json` as a dict, its path, or its folder's path.

    Raises:
      ValueError: a field is missing or invalid, or the two lists disagree; names the field.
      OSError: the file cannot be read.

    """
    hf = source if isinstance(source, Mapping) else _read(Path(source))
    try:
        return _from_dict(hf)
    except TypeError as error:  # contents of a file are data: a wrong type is a wrong value
        raise ValueError(str(error)) from None


def _read(path: Path) -> Mapping[str, Any]:
    return read_json_object(path / "config.json" if path.is_dir() else path)


def _from_dict(hf: Mapping[str, Any]) -> DSV4Config:
    csa_ratio = _ratio(hf, "compress_rate_csa", AttentionType.CSA, 4)
    hca_ratio = _ratio(hf, "compress_rate_hca", AttentionType.HCA, 128)
    num_layers = check_int("num_hidden_layers", _required(hf, "num_hidden_layers"), 1)
    layers, mtp_layers = _layer_types(hf, num_layers, csa_ratio, hca_ratio)
    return DSV4Config(
        layer_types=layers,
        mtp_layer_types=mtp_layers,
        head_dim=_required(hf, "head_dim"),
        qk_rope_head_dim=_rope_head_dim(hf),
        index_head_dim=_required(hf, "index_head_dim"),
        sliding_window=_required(hf, "sliding_window"),
        csa_ratio=csa_ratio,
        hca_ratio=hca_ratio,
        max_position_embeddings=_required(hf, "max_position_embeddings"),
    )


def _required(hf: Mapping[str, Any], name: str) -> Any:
    if hf.get(name) is None:
        raise ValueError(f"{name}: expected a value, got none")
    return hf[name]


def _ratio(hf: Mapping[str, Any], old_name: str, kind: AttentionType, default: int) -> int:
    """The ratio of a layer type: from a key of its own, or else by type from `compress_rates`."""
    rates = hf.get("compress_rates") or {}
    if not isinstance(rates, Mapping):
        raise ValueError(f"compress_rates: expected a ratio by layer type, got {rates!r}")
    value = hf.get(old_name, rates.get(kind, default))
    return check_int(f"compress_rates[{kind.value}]", value, 1)


def _rope_head_dim(hf: Mapping[str, Any]) -> int:
    if "qk_rope_head_dim" in hf:
        return hf["qk_rope_head_dim"]
    factor = check_positive_float("partial_rotary_factor", _required(hf, "partial_rotary_factor"))
    if factor > 1:
        raise ValueError(f"partial_rotary_factor: expected at most 1, got {factor}")
    return int(factor * check_int("head_dim", _required(hf, "head_dim"), 1))


def _layer_types(
    hf: Mapping[str, Any], num_layers: int, csa_ratio: int, hca_ratio: int
) -> tuple[tuple[AttentionType, ...], tuple[AttentionType, ...]]:
    """The types of the layers and of the MTP layers."""
    swa, csa, hca = AttentionType
    num_mtp = check_int("num_nextn_predict_layers", hf.get("num_nextn_predict_layers", 1), 0)
    lengths = (num_layers, num_layers + num_mtp)
    by_name = {kind.value: kind for kind in AttentionType}
    by_ratio = {0: swa, csa_ratio: csa, hca_ratio: hca}
    found = [
        _read_list(hf, name, lengths, meaning)
        for name, meaning in (("compress_ratios", by_ratio), ("layer_types", by_name))
        if hf.get(name) is not None
    ]
    if not found:
        raise ValueError("compress_ratios: expected it or layer_types, got neither")
    types = max(found, key=len)
    if any(other != types[: len(other)] for other in found):
        raise ValueError("layer_types: expected the layers of compress_ratios, got others")
    return types[:num_layers], types[num_layers:] or (swa,) * num_mtp


def _read_list(
    hf: Mapping[str, Any], name: str, lengths: tuple[int, int], meaning: Mapping[Any, AttentionType]
) -> tuple[AttentionType, ...]:
    values = hf[name]
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}: expected a list, got {values!r}")
    if len(values) not in lengths:
        expected = f"{lengths[0]} entries, or {lengths[1]} with the MTP layers"
        raise ValueError(f"{name}: expected {expected}, got {len(values)}")
    for i, value in enumerate(values):
        if isinstance(value, bool) or value not in list(meaning):
            choices = ", ".join(map(repr, meaning))
            raise ValueError(f"{name}[{i}]: expected one of {choices}, got {value!r}")
    return tuple(meaning[value] for value in values)
