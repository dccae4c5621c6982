"""Lets `jax.export` write programs that take or return the pytrees of this package to a file."""

import functools
import json
from typing import Any

import jax.export

from jax_sa.adapters import KVCache
from jax_sa.budget import Record
from jax_sa.buffers import Copied
from jax_sa.cache_schema import BlockTable
from jax_sa.decoder import Generation
from jax_sa.draft import Draft
from jax_sa.draft_tree import DraftTree
from jax_sa.followers import Followers
from jax_sa.packed_queue import Completions
from jax_sa.packed_rows import Rows, Step
from jax_sa.packing import Packed
from jax_sa.pool import Pool
from jax_sa.replay_metadata import ReplayMetadata
from jax_sa.sampling import Sampling
from jax_sa.scan_state import ScanState
from jax_sa.seqlens import ExpandedSeqlens
from jax_sa.state import State
from jax_sa.tree_block import TreeBlock
from jax_sa.verify import Accepted

PYTREES = (
    *(State, ScanState, Pool, Followers, Draft, DraftTree, TreeBlock, Accepted, Packed),
    ExpandedSeqlens,
    *(Copied, ReplayMetadata, Sampling, Record, Generation, Rows, Step, Completions),
    *(KVCache, BlockTable),
)
"""What ops and decoders take and return, and what these hold."""


@functools.cache  # jax.export is told but once, also where this package is reloaded
def register() -> None:
    """Tells `jax.export` of them, each by its name."""
    for type_ in PYTREES:
        jax.export.register_pytree_node_serialization(
            type_,
            serialized_name=f"jax_sa.{type_.__name__}",
            serialize_auxdata=_write,
            deserialize_auxdata=_read,
        )


def _write(static: tuple[Any, ...]) -> bytes:
    """The static fields of a pytree: numbers, or None."""
    return json.dumps(static).encode()


def _read(data: bytearray) -> tuple[Any, ...]:
    return tuple(json.loads(data.decode()))
