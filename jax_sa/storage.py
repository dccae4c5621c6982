"""A state, a pool or followers in a file."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.followers import Followers, check_followers
from jax_sa.pool import Pool, check_pool
from jax_sa.scan_state import ScanState
from jax_sa.state import NUMBERS, AnyState, State, check_state, index_shapes, pack

FORMAT_VERSION = 3
"""Raised whenever a release lays the arrays of a `State` out differently, or hashes differently."""

SCAN_FORMAT_VERSION = 1
"""The same of a `ScanState`."""

POOL_FORMAT_VERSION = 1
"""The same of a `Pool`."""

FOLLOWERS_FORMAT_VERSION = 1
"""The same of `Followers`."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a file may hold."""

    name: str
    type: type[State] | type[ScanState] | type[Pool] | type[Followers]
    check: Callable[[Any], None]
    fields: Sequence[str]
    """The names of the arrays in a file."""
    version: int
    version_field: str
    """Its version's name in a file, which tells the kinds apart."""


def _kind(type: Any, check: Any, version: int, version_field: str) -> _Kind:
    if type is State:  # a file has each array of its own, however a state holds them
        fields = [*NUMBERS, "tokens", *index_shapes(1)]
    else:
        fields = [field.name for field in dataclasses.fields(type)]
    return _Kind(type.__name__, type, check, fields, version, version_field)


_KINDS = (
    _kind(State, check_state, FORMAT_VERSION, "format_version"),
    _kind(ScanState, check_state, SCAN_FORMAT_VERSION, "scan_format_version"),
    _kind(Pool, check_pool, POOL_FORMAT_VERSION, "pool_format_version"),
    _kind(Followers, check_followers, FOLLOWERS_FORMAT_VERSION, "followers_format_version"),
)


def save(path: str | os.PathLike[str], state: AnyState | Pool | Followers) -> None:
    """Writes a state, a pool or followers to a file, an uncompressed .npz of arrays and a version.

    The seeds of a state are among the arrays. The file is not encrypted: it holds the texts.

    Args:
      path: of the file, which is replaced if it exists; no ending is added.
      state: of any device or sharding; all of it is gathered on the host.

    Raises:
      ValueError, TypeError: the arrays do not belong together.
      OSError: the file cannot be written.
    """
    kind = next((kind for kind in _KINDS if isinstance(state, kind.type)), _KINDS[0])
    kind.check(state)
    host = jax.tree.map(np.asarray, state)
    arrays = {name: getattr(host, name) for name in kind.fields}
    with open(path, "wb") as file:
        np.savez(file, **{kind.version_field: np.int32(kind.version)}, **arrays)


def load(path: str | os.PathLike[str]) -> AnyState | Pool | Followers:
    """Reads what `save` wrote, on this platform or another.

    Shapes and dtypes are checked, contents are not. A file whose source is not trusted must go
    through `validate` before anything else is done with a state of it: other contents make the ops
    crash or read and write memory that is not theirs. A pool and followers need no such check:
    whatever they hold, the ops touch no other memory. What they can do is draft tokens of their
    author's choice.

    Args:
      path: of the file.

    Returns:
      What was saved, on the default device.

    Raises:
      ValueError: the file is broken, of another format version, or its arrays do not belong
        together.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            arrays = _read(file)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(f"{path}: expected a file that save wrote, got {error}") from None
    kind = next((kind for kind in _KINDS if kind.version_field in arrays), _KINDS[0])
    if (version := arrays.pop(kind.version_field, None)) != kind.version:
        raise ValueError(f"{path}: expected format version {kind.version}, got {version}")
    if arrays.keys() != set(kind.fields):
        raise ValueError(f"{path}: expected the arrays of a {kind.name}, got {', '.join(arrays)}")
    try:
        loaded = pack(arrays) if kind.type is State else kind.type(**arrays)
        kind.check(loaded)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return jax.tree.map(jnp.asarray, loaded)


def _read(file: BinaryIO) -> dict[str, Any]:
    """The file's arrays by name, versions as plain values."""
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("a single array")
    arrays = dict(archive)
    for kind in _KINDS:
        if kind.version_field in arrays:
            arrays[kind.version_field] = arrays[kind.version_field].tolist()
    return arrays
