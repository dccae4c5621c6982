"""A Llama-family GGUF file as a Hugging Face checkpoint directory; needs `pip install gguf`.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is the file format of llama.cpp:
one file with metadata, tokenizer and weights, often quantised. Every error is a ValueError of one
line.
"""

import json
import math
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from jax_sa.llama import config as llama_config
from jax_sa.llama.chat import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from jax_sa.llama.checkpoint import WEIGHTS_FILE, write_safetensors
from jax_sa.llama.config import GENERATION_FILE, Config
from jax_sa.llama.tokenizer import FILE as TOKENIZER_FILE
from jax_sa.llama.tokenizer import import_tokenizers

DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of the weights, and Hugging Face's."""

CONTROL, USER_DEFINED = 3, 4
"""The types of tokens (`tokenizer.ggml.token_type`) that are matched as a whole in a text."""


class GGUFFile:
    """The metadata and the weights of one file."""

    def __init__(self, path: pathlib.Path):
        """Opens a file; ValueError if that cannot be done, or it holds no Llama."""
        try:
            import gguf
        except ModuleNotFoundError:
            raise ValueError("the gguf package is missing: pip install jax_sa[smollm2]") from None
        self.path = path
        self._dequantize = gguf.dequantize
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # the package raises nothing narrower
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise ValueError(f"{path}: not a GGUF file: {str(reason).splitlines()[0]}") from None
        self.require("general.architecture", "llama")

    def get(self, name: str, default: Any = None) -> Any:
        """The metadata of that name."""
        field = self._reader.get_field(name)
        return default if field is None else field.contents()

    def expect(self, name: str) -> Any:
        """The metadata of that name; ValueError if the file has none."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"{self.path}: has no {name}")
        return value

    def require(self, name: str, *supported: Any) -> Any:
        """The metadata of that name; ValueError if it is not one of `supported`."""
        value = self.get(name)
        if value not in supported:
            expected = " or ".join(map(repr, supported))
            raise ValueError(f"{self.path}: {name}: expected {expected}, got {value!r}")
        return value

    def config(self) -> Config:
        """The sizes of the model."""
        self.require("llama.rope.scaling.type", None, "none")
        heads = self.expect("llama.attention.head_count")
        hidden = self.expect("llama.embedding_length")
        stops = [self.expect("tokenizer.ggml.eos_token_id")]
        stops.append(self.get("tokenizer.ggml.eot_token_id", stops[0]))
        return Config(
            "LlamaForCausalLM",
            vocab_size=len(self.expect("tokenizer.ggml.tokens")),
            hidden_size=hidden,
            intermediate_size=self.expect("llama.feed_forward_length"),
            num_layers=self.expect("llama.block_count"),
            num_heads=heads,
            num_kv_heads=self.get("llama.attention.head_count_kv", heads),
            head_dim=self.get("llama.attention.key_length", hidden // heads),
            max_position_embeddings=self.expect("llama.context_length"),
            rms_norm_eps=_decimal(self.expect("llama.attention.layer_norm_rms_epsilon")),
            rope_theta=_decimal(self.get("llama.rope.freq_base", 10_000.0)),
            tied="output.weight" not in {tensor.name for tensor in self._reader.tensors},
            eos_tokens=tuple(dict.fromkeys(stops)),
        )

    def weights(self, config: Config, dtype: Any) -> dict[str, np.ndarray]:
        """Every weight by its Hugging Face name, dequantised."""
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        weights = {}
        for tensor in self._reader.tensors:
            layer, short, kind = _split(tensor.name)
            if short not in NAMES:
                raise ValueError(f"{self.path}: {tensor.name}: not a weight of a plain Llama")
            try:
                array = self._dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                raise ValueError(
                    f"{self.path}: {tensor.name}: the gguf package cannot dequantise "
                    f"{tensor.tensor_type.name}"
                ) from None
            if short in heads:
                array = pair_halves(array, heads[short])
            name = f"{NAMES[short]}.{kind}"
            weights[name if layer is None else f"model.layers.{layer}.{name}"] = array.astype(dtype)
        return weights

    def tokenizer(self) -> Any:
        """The byte-level BPE (Radford et al. 2019) as an object of the package tokenizers."""
        tokenizers = import_tokenizers()
        from tokenizers import decoders, models, pre_tokenizers

        self.require("tokenizer.ggml.model", "gpt2")
        self.require("tokenizer.ggml.add_bos_token", None, False)
        splits = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if self.require("tokenizer.ggml.pre", "smollm", "gpt-2") == "smollm":
            splits.insert(0, pre_tokenizers.Digits(individual_digits=True))
        tokens = self.expect("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.expect("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self.get("tokenizer.ggml.token_type", [])
        for kind, add in ((CONTROL, "add_special_tokens"), (USER_DEFINED, "add_tokens")):
            whole = [token for token, its in zip(tokens, kinds, strict=False) if its == kind]
            added = [
                tokenizers.AddedToken(t, special=kind == CONTROL, normalized=False) for t in whole
            ]
            getattr(tokenizer, add)(added)
        return tokenizer

    def special_ids(self) -> dict[str, int]:
        """The ids of the special tokens that have a part in a config, by the config's names."""
        parts = {"bos": "bos", "eos": "eos", "pad": "padding"}
        ids = {part: self.get(f"tokenizer.ggml.{name}_token_id") for part, name in parts.items()}
        return {f"{part}_token_id": index for part, index in ids.items() if index is not None}


def convert(path: pathlib.Path, directory: pathlib.Path, dtype: str) -> Config:
    """Writes a GGUF file as a Hugging Face checkpoint directory; `dtype` is of the weights.

    Raises:
      ValueError: the file cannot be read, or is not of a plain Llama with byte-level BPE.
    """
    file = GGUFFile(path)
    config = file.config()
    tokenizer = file.tokenizer()
    ids = file.special_ids()
    stops = list(config.eos_tokens)
    texts = {name.removesuffix("_id"): tokenizer.id_to_token(i) for name, i in ids.items()}
    settings = llama_config.to_hf(config) | ids | {"dtype": dtype, "torch_dtype": dtype}
    weights = file.weights(config, DTYPES[dtype])

    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / llama_config.FILE, settings)
    _write_json(directory / GENERATION_FILE, ids | {"eos_token_id": stops})
    _write_json(
        directory / TOKENIZER_CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            **texts,
            "chat_template": file.get("tokenizer.chat_template"),
        },
    )
    tokenizer.save(str(directory / TOKENIZER_FILE))
    write_safetensors(directory / WEIGHTS_FILE, weights)
    return config


def pair_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of the rows of a query or key projection, [heads * H, ...].

    llama.cpp rotates pairs of neighbours (2 i, 2 i + 1) of a head, Hugging Face pairs
    (i, i + H / 2). So llama.cpp's row 2 i + j of a head is Hugging Face's row i + j H / 2.
    """
    half = rows.shape[0] // heads // 2
    neighbours = rows.reshape(heads, half, 2, *rows.shape[1:])
    return neighbours.swapaxes(1, 2).reshape(rows.shape)


def _split(name: str) -> tuple[int | None, str, str]:
    """`blk.3.attn_q.weight` as (3, "attn_q", "weight"); no layer is None."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return None, name, ""
    layer, short, kind = match.groups()
    return None if layer is None else int(layer), short, kind


def _decimal(value: float) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if math.isfinite(value) else value


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
