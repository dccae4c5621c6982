"""The metadata of a compiled decode step, copied into the buffers that the step reads."""

import dataclasses
from typing import Any

import jax

from jax_sa.buffers import Copied, fused_copy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayMetadata:
    """Inputs of a decode step for B rows, besides weights and cache.

    A compiled step reads them from buffers as large as its largest batch; each batch is copied
    into the beginnings of these. Where a row has Q query tokens, `input_ids`, `out_loc` and
    `positions` have an axis for them. A field that a step does not read can be None, in the
    buffers and in the batch.
    """

    input_ids: Any
    """int32[B] or [B, Q] the tokens to process."""
    out_loc: Any
    """int32[B] or [B, Q] the places in the cache where their keys and values go."""
    cu_seqlens_k: Any
    """int32[B + 1] cumulative sequence lengths, from 0 on."""
    positions: Any
    """int32[B] or [B, Q] the positions of the tokens in their texts."""
    seq_lens: Any
    """int32[B] sequence lengths."""
    page_table: Any
    """int32[B, P] the pages of each row's cache."""


def copy_replay_metadata(
    buffers: ReplayMetadata,
    batch: ReplayMetadata,
    *,
    rows: jax.Array | int | None = None,
    pages: jax.Array | int | None = None,
    fill: Any = None,
) -> Copied:
    """Copies a batch's metadata into the buffers that a compiled decode step reads.

    Args:
      buffers: as large as the largest batch; `page_table` may have more columns than the batch's.
      batch: as large as what is copied, or larger where `rows` and `pages` say how much.
      rows: B, as in `fused_copy`; B + 1 entries of `cu_seqlens_k` are copied.
      pages: columns of `page_table` to copy, as in `fused_copy`.
      fill: as in `fused_copy`.

    Raises:
      ValueError, TypeError: as `fused_copy`.
    """
    none = ReplayMetadata(*[None] * 6)
    zero = ReplayMetadata(*[0] * 6)
    return fused_copy(
        buffers,
        batch,
        rows=rows,
        columns=dataclasses.replace(none, page_table=pages),
        extra_rows=dataclasses.replace(zero, cu_seqlens_k=1),
        fill=fill,
    )
