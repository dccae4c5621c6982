"""The sizes and switches of a Llama-family model, read from a Hugging Face `config.json`."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

FILE = "config.json"
GENERATION_FILE = "generation_config.json"
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's scaling of rotary frequencies: long waves are stretched, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Config:
    """One model of the Llama family.

    The families differ in switches only: Qwen2 has `qkv_bias`, Qwen3 has `qk_norm`, and any may
    tie its embeddings.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | None = None
    tied: bool = False
    """The output head is the embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    num_mtp: int = 0
    """Multi-token-prediction modules after the last layer, 0 or 1."""
    eos_tokens: tuple[int, ...] = ()
    """Tokens that end a text."""


def read(directory: pathlib.Path) -> Config:
    """The config of a checkpoint directory.

    The tokens that end a text are those of `config.json` and of `generation_config.json`, if there
    is one: instruct models name the end of an answer in the latter only.

    Raises:
      ValueError: no readable `config.json`, or one of a model outside the family; one line.
    """
    config = from_hf(read_json(directory / FILE))
    path = directory / GENERATION_FILE
    if not path.is_file():
        return config
    stops = dict.fromkeys(config.eos_tokens + _eos_tokens(read_json(path)))
    return dataclasses.replace(config, eos_tokens=tuple(stops))


def read_json(path: pathlib.Path) -> Mapping[str, Any]:
    """The JSON object in a file; ValueError if it cannot be read or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def from_hf(hf: Mapping[str, Any]) -> Config:
    """The config in a parsed `config.json`.

    Raises:
      ValueError: an architecture or a feature that is not supported, or a field that is missing
        or invalid; names it.
    """
    architecture = _architecture(hf)
    _refuse_unsupported(hf)
    hidden_size = _positive(hf, "hidden_size")
    num_heads = _positive(hf, "num_attention_heads")
    num_kv_heads = _positive(hf, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_key_value_heads: expected a divisor of num_attention_heads {num_heads}, "
            f"got {num_kv_heads}"
        )
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    attention_bias = bool(hf.get("attention_bias", False))
    return Config(
        architecture=architecture,
        vocab_size=_positive(hf, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive(hf, "intermediate_size"),
        num_layers=_positive(hf, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_positive(hf, "head_dim", hidden_size // num_heads),
        max_position_embeddings=_positive(hf, "max_position_embeddings"),
        rms_norm_eps=_positive(hf, "rms_norm_eps", kind=float),
        rope_theta=_positive({**hf, **rope}, "rope_theta", 10_000.0, kind=float),
        rope_scaling=_rope_scaling(rope),
        tied=bool(hf.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        o_bias=architecture != "Qwen2ForCausalLM" and attention_bias,
        qk_norm=architecture == "Qwen3ForCausalLM",
        num_mtp=_num_mtp(hf),
        eos_tokens=_eos_tokens(hf),
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` from which `from_hf` reads `config` again."""
    rope = {"rope_type": "default"}
    if config.rope_scaling:
        rope = {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    return {
        "architectures": [config.architecture],
        "model_type": config.architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "tie_word_embeddings": config.tied,
        "attention_bias": config.o_bias,
        "num_nextn_predict_layers": config.num_mtp,
        "bos_token_id": config.eos_tokens[0] if config.eos_tokens else None,
        "eos_token_id": list(config.eos_tokens),
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _architecture(hf: Mapping[str, Any]) -> str:
    named = hf.get("architectures") or [None]
    if named[0] not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise ValueError(f"architectures: expected one of {expected}, got {named[0]}")
    return named[0]


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    for name, supported in (
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("hidden_act", "silu"),
        ("quantization_config", None),
    ):
        if hf.get(name, supported) != supported:
            raise ValueError(f"{name}: expected {supported}, as supported here, got {hf[name]!r}")


def _positive(hf: Mapping[str, Any], name: str, default: Any = None, kind: type = int) -> Any:
    value = hf.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise ValueError(f"{name}: expected a positive {kind.__name__}, got {value!r}")
    return kind(value)


def _rope_scaling(rope: Mapping[str, Any]) -> Llama3Rope | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type: expected default or llama3, got {kind!r}")
    return Llama3Rope(
        factor=_positive(rope, "factor", kind=float),
        low_freq_factor=_positive(rope, "low_freq_factor", kind=float),
        high_freq_factor=_positive(rope, "high_freq_factor", kind=float),
        original_max_position_embeddings=_positive(rope, "original_max_position_embeddings"),
    )


def _num_mtp(hf: Mapping[str, Any]) -> int:
    value = hf.get("num_nextn_predict_layers") or 0
    if value not in (0, 1):
        raise ValueError(f"num_nextn_predict_layers: expected 0 or 1, got {value!r}")
    return int(value)


def _eos_tokens(hf: Mapping[str, Any]) -> tuple[int, ...]:
    value = hf.get("eos_token_id")
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise ValueError(f"eos_token_id: expected token ids, got {value!r}")
    return tuple(tokens)
