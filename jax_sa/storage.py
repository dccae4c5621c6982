"""A state in a file."""

import dataclasses
import os
import zipfile
import zlib
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jax_sa.scan_state import ScanState
from jax_sa.state import AnyState, State, check_state

FORMAT_VERSION = 1
"""Raised whenever a release lays the arrays of a state out differently, or hashes differently."""

_VERSION = "format_version"


def _fields(kind: type[AnyState]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def save(path: str | os.PathLike[str], state: AnyState) -> None:
    """Writes a state of either index to a file, an uncompressed .npz of arrays and a version.

    The seeds are among the arrays. The file is not encrypted: it holds the texts.

    Args:
      path: of the file, which is replaced if it exists; no ending is added.
      state: of any device or sharding; all of it is gathered on the host.

    Raises:
      ValueError, TypeError: the arrays do not belong together.
      OSError: the file cannot be written.
    """
    check_state(state)
    arrays = {name: np.asarray(getattr(state, name)) for name in _fields(type(state))}
    with open(path, "wb") as file:
        np.savez(file, **{_VERSION: np.int32(FORMAT_VERSION)}, **arrays)


def load(path: str | os.PathLike[str]) -> AnyState:
    """Reads a state that `save` wrote, on this platform or another.

    Shapes and dtypes are checked, contents are not. A file whose source is not trusted must go
    through `validate` before anything else is done with the state: other contents make the ops
    crash or read and write memory that is not theirs.

    Args:
      path: of the file.

    Returns:
      The state, on the default device.

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
    if (version := arrays.pop(_VERSION, None)) != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format version {FORMAT_VERSION}, got {version}")
    kinds = [kind for kind in (State, ScanState) if arrays.keys() == set(_fields(kind))]
    if not kinds:
        raise ValueError(
            f"{path}: expected the arrays of a State or ScanState, got {', '.join(arrays)}"
        )
    (kind,) = kinds
    try:
        check_state(kind(**arrays))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return kind(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _read(file: BinaryIO) -> dict[str, Any]:
    """The file's arrays by name, the version a plain value."""
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("a single array")
    arrays = dict(archive)
    if _VERSION in arrays:
        arrays[_VERSION] = arrays[_VERSION].tolist()
    return arrays
