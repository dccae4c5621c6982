"""How entries lie in memory: the layout of one entry, of a page of them, and the choice of both."""

from collections.abc import Callable
from dataclasses import dataclass

from jax_sa._checks import check_choice, check_int

ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, "uint8": 1}


def ceil_div(a: int, b: int) -> int:
    """The least integer that is at least a / b."""
    return -(-a // b)


@dataclass(frozen=True)
class Entry:
    """One cache entry: `width` items of `dtype`. Entries that mix dtypes are bytes (uint8)."""

    dtype: str
    width: int

    @property
    def bytes(self) -> int:
        """Bytes of the entry."""
        return self.width * ITEM_BYTES[self.dtype]


def _mixed_fp8(head_dim: int, rope_head_dim: int) -> Entry:
    """fp8 with a one-byte scale per 64 elements, the rotary part bf16, scales padded to 8 bytes."""
    nope = head_dim - rope_head_dim
    scales = 8 * ceil_div(ceil_div(nope, 64), 8)
    return Entry("uint8", nope + 2 * rope_head_dim + scales)


# Main KV: head_dim, rope_head_dim -> Entry. "fp8" is FlashMLA's (584 bytes at 512 and 64);
# "uniform_fp8" has one scale per tensor, kept outside the cache, as in TensorRT-LLM.
KV_ENTRIES: dict[str, Callable[[int, int], Entry]] = {
    "bf16": lambda head_dim, rope_head_dim: Entry("bfloat16", head_dim),
    "fp8": _mixed_fp8,
    "uniform_fp8": lambda head_dim, rope_head_dim: Entry("float8_e4m3fn", head_dim),
}

# Indexer: index_head_dim -> Entry. fp8 has a float32 scale per 128 elements (132 bytes at 128);
# fp4 has two elements per byte and a one-byte scale per 32 (68 bytes at 128).
INDEXER_ENTRIES: dict[str, Callable[[int], Entry]] = {
    "bf16": lambda head_dim: Entry("bfloat16", head_dim),
    "fp8": lambda head_dim: Entry("uint8", head_dim + 4 * ceil_div(head_dim, 128)),
    "fp4": lambda head_dim: Entry("uint8", ceil_div(head_dim, 2) + ceil_div(head_dim, 32)),
}


@dataclass(frozen=True)
class Page:
    """`entries` entries in a row, padded with unused bytes to a multiple of `alignment`."""

    entries: int
    entry: Entry
    alignment: int = 1

    @property
    def waste_bytes(self) -> int:
        """Bytes of padding."""
        return -(self.entries * self.entry.bytes) % self.alignment

    @property
    def bytes(self) -> int:
        """Bytes of the page, padding included."""
        return self.entries * self.entry.bytes + self.waste_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """(entries, width); a padded page is (bytes,): where its padding goes is the kernel's."""
        return (self.bytes,) if self.waste_bytes else (self.entries, self.entry.width)

    @property
    def dtype(self) -> str:
        """The entry's dtype; uint8 for a padded page."""
        return "uint8" if self.waste_bytes else self.entry.dtype


@dataclass(frozen=True)
class CacheLayout:
    """The choices that an engine makes about a cache."""

    kv: str = "bf16"
    """Layout of main KV entries: "bf16", "fp8" (584 bytes) or "uniform_fp8"."""
    indexer: str = "bf16"
    """Layout of indexer entries: "bf16", "fp8" (132 bytes) or "fp4" (68 bytes)."""
    block_multiple: int = 1
    """k: a block has k times the least common multiple of the ratios, in tokens."""
    page_alignment: int = 1
    """Bytes that the size of a page is rounded up to a multiple of. The SWA ring is one page."""

    def __post_init__(self):
        check_choice("kv", self.kv, KV_ENTRIES)
        check_choice("indexer", self.indexer, INDEXER_ENTRIES)
        check_int("block_multiple", self.block_multiple, 1)
        check_int("page_alignment", self.page_alignment, 1)


DEFAULT_LAYOUT = CacheLayout()
