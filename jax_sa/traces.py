"""Recorded texts, each a prompt and the response of a model, as token ids."""

import dataclasses
import pathlib
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jax_sa._checks import INT32_MAX, INT32_MIN
from jax_sa._files import check_regular_file
from jax_sa._json import parse_json

_LISTS = ("tokens", "offsets", "prompt_lengths")
_NAMES = ("category", "id")


@dataclasses.dataclass(frozen=True)
class Trace:
    """One recorded text."""

    id: str
    """Its name in reports."""
    category: str
    """The group of texts that it is counted with."""
    tokens: np.ndarray
    """int32[n] the prompt, then the response."""
    prompt_length: int
    """Tokens of the prompt, 1..n."""

    @property
    def response_length(self) -> int:
        """Tokens of the response."""
        return len(self.tokens) - self.prompt_length


def load(path: pathlib.Path, encode: Callable[[str], list[int]] | None = None) -> list[Trace]:
    """Reads traces from a `.npz` or a `.jsonl` file.

    Args:
      path: `.npz` with arrays tokens int[n], offsets int[traces + 1], prompt_lengths int[traces],
        and optionally category and id [traces]; other arrays are left unread. Or `.jsonl` with an
        object per line whose `prompt` and `response` are lists of token ids or text, and which
        optionally has a `category` and an `id`, text or numbers.
      encode: turns text into token ids. None for its UTF-8 bytes.

    Raises:
      ValueError: the file cannot be read or is not of this form, naming the line or the field.
    """
    encode = encode or (lambda text: list(text.encode()))
    if path.suffix not in (".npz", ".jsonl"):
        raise ValueError(f"{path}: expected a .npz or .jsonl file")
    try:
        check_regular_file(path)
        traces = _load_npz(path) if path.suffix == ".npz" else _load_jsonl(path, encode)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not traces:
        raise ValueError(f"{path}: holds no traces")
    return traces


def standard_library(length: int = 8192, count: int = 16) -> list[Trace]:
    """The running Python's own source as bytes, cut into texts whose first half is the prompt.

    Raises:
      ValueError: the standard library's source is not there.
    """
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    traces = []
    for path in sorted(folder.glob("*.py"), key=lambda path: -path.stat().st_size):
        if len(traces) == count:
            break
        tokens = np.frombuffer(path.read_bytes()[:length], np.uint8).astype(np.int32)
        if len(tokens) == length:
            traces.append(Trace(path.name, "python", tokens, length // 2))
    if not traces:
        raise ValueError(f"{folder}: holds no Python source of {length} bytes")
    return traces


def _load_npz(path: pathlib.Path) -> list[Trace]:
    fields = _read_npz(path)
    for name in _LISTS:
        if name not in fields:
            raise ValueError(f"{path}: field {name}: missing")
        if fields[name].ndim != 1 or not np.issubdtype(fields[name].dtype, np.integer):
            raise ValueError(
                f"{path}: field {name}: expected a list of integers, got {_kind(fields[name])}"
            )
    tokens, offsets, prompts = (fields[name] for name in _LISTS)
    count = len(offsets) - 1
    if count < 0 or len(prompts) != count:
        raise ValueError(
            f"{path}: field prompt_lengths: expected {max(count, 0)} entries, one less than "
            f"offsets, got {len(prompts)}"
        )
    if len(tokens) and (tokens.min() < INT32_MIN or tokens.max() > INT32_MAX):
        raise ValueError(f"{path}: field tokens: expected int32 values")
    if count and (
        offsets[0] < 0 or offsets[-1] > len(tokens) or np.any(offsets[1:] < offsets[:-1])
    ):
        raise ValueError(f"{path}: field offsets: expected ascending indices into tokens")
    for name in _NAMES:
        if fields.setdefault(name, np.array([""] * count)).shape != (count,):
            raise ValueError(
                f"{path}: field {name}: expected {count} entries, got {_kind(fields[name])}"
            )
    return [
        _trace(
            where=f"{path}: trace {i}",
            id=str(fields["id"][i]) or str(i),
            category=str(fields["category"][i]),
            tokens=tokens[offsets[i] : offsets[i + 1]].astype(np.int32),
            prompt_length=int(prompts[i]),
        )
        for i in range(count)
    ]


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that traces consist of, as far as it has them."""
    try:
        with open(path, "rb") as file:  # np.load itself would leave a broken one open
            members = np.load(file, allow_pickle=False)
            if not isinstance(members, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            fields = {name: members[name] for name in (*_LISTS, *_NAMES) if name in members.files}
    except OSError:
        raise
    except Exception as error:  # a broken member raises anything, from zlib.error to MemoryError
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable .npz file: {reason}") from None
    for name, value in fields.items():
        if not isinstance(value, np.ndarray):  # numpy gives other members as bytes
            raise ValueError(f"{path}: field {name}: expected an array, got other contents")
    return fields


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _load_jsonl(path: pathlib.Path, encode: Callable[[str], list[int]]) -> list[Trace]:
    traces = []
    for where, record in _json_lines(path):
        prompt = _token_ids(where, "prompt", record, encode)
        response = _token_ids(where, "response", record, encode)
        traces.append(
            _trace(
                where=where,
                id=_name(where, "id", record, str(len(traces))),
                category=_name(where, "category", record, ""),
                tokens=np.array(prompt + response, np.int32),
                prompt_length=len(prompt),
            )
        )
    return traces


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, got {type(record).__name__}")
        yield where, record


def _token_ids(
    where: str, field: str, record: dict[str, Any], encode: Callable[[str], list[int]]
) -> list[int]:
    if field not in record:
        raise ValueError(f"{where}: field {field}: missing")
    value = record[field]
    if isinstance(value, str):
        try:
            return encode(value)
        except (ValueError, TypeError) as error:  # a lone surrogate is no text
            raise ValueError(f"{where}: field {field}: cannot be encoded: {error}") from None
    ids = value if isinstance(value, list) else [None]
    if not all(type(id) is int and INT32_MIN <= id <= INT32_MAX for id in ids):
        raise ValueError(f"{where}: field {field}: expected text or a list of int32 token ids")
    return ids


def _name(where: str, field: str, record: dict[str, Any], default: str) -> str:
    value = record.get(field, default)
    if not isinstance(value, str | int | float):
        got = type(value).__name__
        raise ValueError(f"{where}: field {field}: expected text or a number, got {got}")
    return str(value)


def _trace(where: str, id: str, category: str, tokens: np.ndarray, prompt_length: int) -> Trace:
    if not 1 <= prompt_length <= len(tokens):
        raise ValueError(
            f"{where}: field prompt: expected 1 to {len(tokens)} tokens (all of the text), "
            f"got {prompt_length}"
        )
    return Trace(id, category or "all", tokens, prompt_length)
