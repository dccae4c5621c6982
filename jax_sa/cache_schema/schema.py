"""The caches of one layer: entries per block, rings and compressor state, with exact bytes."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jax_sa._checks import check_bool, check_int
from jax_sa.cache_schema._fields import set_fields
from jax_sa.cache_schema.config import AttentionType, DSV4Config, LayerSpec
from jax_sa.cache_schema.layout import (
    DEFAULT_LAYOUT,
    CacheLayout,
    Entry,
    Page,
)

STATE_DTYPE = "float32"  # of the compressor state, in every layout
STATE_ITEM_BYTES = np.dtype(STATE_DTYPE).itemsize


@dataclass(frozen=True)
class LayerCacheSchema:
    """The caches of one layer, per block of tokens and per request whatever its length.

    A compressor makes an entry from the a projections of `tail_a` tokens. In CSA it also takes the
    b projections of the `tail_b` tokens before them. These are two projections of a token: in CSA
    a row of state holds both. Each row is a KV row and a score row, in float32. The indexer of CSA
    has compressor state of its own, with as many rows.

    A field is 0 where the layer type lacks its subject.
    """

    attention_type: AttentionType
    """The type of the layer."""
    block_size: int
    """Tokens in a block."""
    entries_per_block: int
    """Main KV entries of a block."""
    entry_head_dim: int
    """Elements of a main KV entry, the rotary ones included."""
    rope_head_dim: int
    """Rotary elements among the `entry_head_dim`."""
    indexer_entries_per_block: int
    """Indexer entries of a block."""
    indexer_head_dim: int
    """Elements of an indexer entry."""
    sliding_window: int
    """Main KV entries in the SWA ring, one per token."""
    tail_a: int
    """Tokens whose a projection is kept: those of the entry that is being made."""
    tail_b: int
    """Tokens whose b projection is kept: those of the entry before it."""
    state_rows: int
    """Rows of compressor state: tail_a + tail_b, twice that under speculation."""
    state_width: int
    """float32 elements in a row of compressor state."""
    indexer_state_width: int
    """float32 elements in a row of the indexer's compressor state."""
    kv_entry: Entry
    """A main KV entry as stored."""
    indexer_entry: Entry
    """An indexer entry as stored."""
    page_alignment: int
    """The size of a page is rounded up to a multiple of this many bytes."""

    def __post_init__(self) -> None:
        positive = {"block_size", "entry_head_dim", "sliding_window", "page_alignment"}
        for field in dataclasses.fields(self):
            if field.type is int:
                value = getattr(self, field.name)
                value = check_int(field.name, value, int(field.name in positive))
                set_fields(self, **{field.name: value})
        for name in ("entries_per_block", "indexer_entries_per_block"):
            entries = getattr(self, name)
            if entries and self.block_size % entries:
                raise ValueError(f"{name}: expected a divisor of {self.block_size}, got {entries}")

    @property
    def kv_page(self) -> Page:
        """The main KV entries of one block."""
        return Page(self.entries_per_block, self.kv_entry, self.page_alignment)

    @property
    def indexer_page(self) -> Page:
        """The indexer entries of one block."""
        return Page(self.indexer_entries_per_block, self.indexer_entry, self.page_alignment)

    @property
    def swa_ring(self) -> Page:
        """The main KV entries of a request's last `sliding_window` tokens."""
        return Page(self.sliding_window, self.kv_entry, self.page_alignment)

    @property
    def state_bytes(self) -> int:
        """Bytes of a request's compressor state: KV rows and score rows."""
        return 2 * self.state_rows * self.state_width * STATE_ITEM_BYTES

    @property
    def indexer_state_bytes(self) -> int:
        """Bytes of a request's indexer compressor state: KV rows and score rows."""
        return 2 * self.state_rows * self.indexer_state_width * STATE_ITEM_BYTES

    @property
    def bytes_per_block(self) -> int:
        """Bytes that a block of tokens takes in this layer, padding included."""
        return self.kv_page.bytes + self.indexer_page.bytes

    @property
    def bytes_per_token(self) -> Fraction:
        """Bytes that each further token of a context takes in this layer, without padding."""
        pages = (self.kv_page, self.indexer_page)
        return Fraction(sum(page.bytes - page.waste_bytes for page in pages), self.block_size)

    @property
    def request_state_bytes(self) -> int:
        """Bytes that a request takes in this layer, whatever its length, padding included."""
        return self.swa_ring.bytes + self.state_bytes + self.indexer_state_bytes


def build_schema(
    config: DSV4Config,
    spec: LayerSpec,
    layout: CacheLayout = DEFAULT_LAYOUT,
    *,
    speculative: bool = False,
) -> LayerCacheSchema:
    """The schema of layer `spec` of `config`.

    `speculative` doubles the rows of compressor state: a step then writes rows of tokens that
    may be rejected, and the rows that they overwrite must still be there then.
    """
    speculative = check_bool("speculative", speculative)
    ratio = {
        AttentionType.SWA: 0,
        AttentionType.CSA: config.csa_ratio,
        AttentionType.HCA: config.hca_ratio,
    }[spec.attention_type]
    is_csa = spec.attention_type == AttentionType.CSA
    tail_a, tail_b = ratio, ratio if is_csa else 0
    projections = (tail_a > 0) + (tail_b > 0)  # that a row of state has
    block_size = config.block_size(layout.block_multiple)
    entries_per_block = block_size // ratio if ratio else 0
    indexer_head_dim = config.index_head_dim if is_csa else 0
    return LayerCacheSchema(
        attention_type=spec.attention_type,
        block_size=block_size,
        entries_per_block=entries_per_block,
        entry_head_dim=config.head_dim,
        rope_head_dim=config.qk_rope_head_dim,
        indexer_entries_per_block=entries_per_block if is_csa else 0,
        indexer_head_dim=indexer_head_dim,
        sliding_window=config.sliding_window,
        tail_a=tail_a,
        tail_b=tail_b,
        state_rows=(tail_a + tail_b) * (2 if speculative else 1),
        state_width=projections * config.head_dim,
        indexer_state_width=projections * indexer_head_dim,
        kv_entry=layout.kv_entry(config.head_dim, config.qk_rope_head_dim),
        indexer_entry=layout.indexer_entry(indexer_head_dim),
        page_alignment=layout.page_alignment,
    )
