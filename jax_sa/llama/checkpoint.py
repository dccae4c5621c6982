"""A Hugging Face checkpoint directory: `config.json`, `*.safetensors`, `tokenizer.json`.

Every error is a ValueError of one line that names the file.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from jax_sa.llama import config as llama_config
from jax_sa.llama import weights as llama_weights
from jax_sa.llama.config import Config
from jax_sa.llama.weights import Weight

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def load(
    directory: pathlib.Path, dtype: Any, mesh: Mesh | None = None
) -> tuple[Config, dict[str, Any]]:
    """The config and the parameters of a checkpoint, as `weights.fuse` lays them out.

    Args:
      directory: of the checkpoint.
      dtype: what the weights are converted to.
      mesh: the devices that share the model, along `weights.AXIS`. None: the default device.

    Returns:
      The config and the parameters. With more devices than key/value heads, each head is there
      several times, so that every device has one: in the config, and in the parameters.

    Raises:
      ValueError: a file or a weight is missing, incomplete, or not of the family.
    """
    if not directory.is_dir() or directory.suffix == ".gguf":
        raise ValueError(f"{directory}: {_why_no_directory(directory)}")
    config = llama_config.read(directory)
    copies = 1
    if mesh is not None:
        if mesh.size % config.num_kv_heads == 0:
            copies = mesh.size // config.num_kv_heads
        llama_weights.check_mesh_size(_with_kv_heads(config, copies), mesh.size)
    stored = _open_weights(directory)

    def read(weight: Weight) -> np.ndarray:
        if weight.name not in stored:
            raise ValueError(f"{directory}: has no weight {weight.name}")
        array = stored[weight.name]
        if array.shape != weight.shape:
            raise ValueError(
                f"{directory}: {weight.name}: expected shape {list(weight.shape)} by config.json, "
                f"got {list(array.shape)}"
            )
        if copies > 1 and re.search(r"\.[kv]_proj\.", weight.name):
            array = _repeat_heads(array, config.num_kv_heads, copies)
        return array.astype(dtype)

    params = jax.tree.map(read, llama_weights.describe(config))
    config = _with_kv_heads(config, copies)
    return config, llama_weights.place(llama_weights.fuse(config, params), mesh)


def _with_kv_heads(config: Config, copies: int) -> Config:
    return dataclasses.replace(config, num_kv_heads=config.num_kv_heads * copies)


def _repeat_heads(rows: np.ndarray, heads: int, copies: int) -> np.ndarray:
    """Each head of a projection's rows [heads * H, ...], `copies` times in a row.

    The query heads that share a head are neighbours, so a share of them shares each copy.
    """
    by_head = rows.reshape(heads, -1, *rows.shape[1:])
    return np.repeat(by_head, copies, axis=0).reshape(-1, *rows.shape[1:])


def _why_no_directory(path: pathlib.Path) -> str:
    """The reason why a path is no checkpoint directory, and what to do where that is clear."""
    if path.suffix == ".gguf":
        return f"a GGUF file: `python examples/import_gguf.py {path} --out DIR`, then name DIR"
    if path.exists():
        return "not a directory"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return (
            "no such directory; if it is a model of the Hugging Face Hub, "
            f"`hf download {path} --local-dir DIR`, then name DIR"
        )
    return "no such directory"


def save(directory: pathlib.Path, config: Config, params: dict[str, Any]) -> None:
    """Writes `config.json`, and the parameters as bfloat16 in one safetensors file.

    The parameters are as `weights.describe` lays them out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(llama_config.to_hf(config), indent=2)
    (directory / llama_config.FILE).write_text(text + "\n", encoding="utf-8")
    names = jax.tree.map(lambda weight: weight.name, llama_weights.describe(config))
    arrays = jax.tree.map(lambda array: np.asarray(array).astype(ml_dtypes.bfloat16), params)
    write_safetensors(
        directory / WEIGHTS_FILE,
        dict(zip(jax.tree.leaves(names), jax.tree.leaves(arrays), strict=True)),
    )


def _open_weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the checkpoint, by name, not yet read."""
    if (directory / WEIGHTS_FILE).exists():
        return read_safetensors(directory / WEIGHTS_FILE)
    if not (directory / INDEX_FILE).exists():
        raise ValueError(f"{directory}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    shards = llama_config.read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{directory / INDEX_FILE}: has no weight_map")
    arrays = {}
    for shard in sorted(set(shards.values())):
        arrays |= read_safetensors(directory / shard)
    return arrays


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped from disk.

    The format (https://huggingface.co/docs/safetensors): 8 bytes, the length of a JSON header that
    gives each array's dtype, shape and place; then the arrays.
    """
    try:
        content = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    try:
        header = json.loads(content[8:start].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ValueError(f"{path}: not a safetensors file, or an incomplete one") from None
    if len(content) < end:
        raise ValueError(f"{path}: incomplete: has {len(content)} of {end} bytes")
    arrays = {}
    for name, entry in entries.items():
        if entry["dtype"] not in DTYPES:
            expected = ", ".join(DTYPES)
            raise ValueError(f"{path}: {name}: expected one of {expected}, got {entry['dtype']}")
        first, last = entry["data_offsets"]
        stored = content[start + first : start + last]
        arrays[name] = stored.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as a safetensors file, the inverse of `read_safetensors`."""
    codes = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in arrays.values():
            file.write(array.tobytes())
