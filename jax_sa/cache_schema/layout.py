"""The layout of one cache entry and of a page of entries, and the choice of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_int
from jax_sa._dtypes import has_whole_bytes
from jax_sa.cache_schema._fields import set_fields


def ceil_div(a: int, b: int) -> int:
    """The least integer that is at least a / b."""
    return -(-a // b)


@dataclass(frozen=True)
class Entry:
    """One cache entry as stored.

    An entry that mixes dtypes, or packs elements of less than a byte, is bytes: `uint8`.

    Raises:
      ValueError, TypeError: naming the field.

    """

    dtype: str
    """Its items: a number of whole bytes that JAX knows, such as "float8_e5m2", or bool. Anything
    that `jnp.dtype` takes is accepted and becomes its name."""
    width: int
    """Number of items."""

    def __post_init__(self) -> None:
        set_fields(self, dtype=_dtype_name(self.dtype), width=check_int("width", self.width, 0))

    @property
    def bytes(self) -> int:
        """Bytes of the entry."""
        return self.width * jnp.dtype(self.dtype).itemsize


def _dtype_name(value: Any) -> str:
    expected = f"dtype: expected a dtype of numbers or bool, in whole bytes, got {value!r}"
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise ValueError(expected) if isinstance(value, str) else TypeError(expected) from None
    if value is None or not isinstance(dtype, np.dtype):
        raise TypeError(expected)
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_) or not has_whole_bytes(dtype):
        raise ValueError(expected)
    return dtype.name


def _mixed_fp8(head_dim: int, rope_head_dim: int) -> Entry:
    """FP8 with a one-byte scale per 64 elements, the rotary part bf16, scales padded to 8 bytes."""
    nope = head_dim - rope_head_dim
    scales = 8 * ceil_div(ceil_div(nope, 64), 8)
    return Entry("uint8", nope + 2 * rope_head_dim + scales)


# Main KV: head_dim, rope_head_dim -> Entry. "fp8" is FlashMLA's (584 bytes at 512 and 64);
# "token_fp8" has one float32 scale per entry (516 bytes at 512); "uniform_fp8" has one scale per
# tensor, kept outside the cache, as in TensorRT-LLM.
KV_ENTRIES: dict[str, Callable[[int, int], Entry]] = {
    "bf16": lambda head_dim, rope_head_dim: Entry("bfloat16", head_dim),
    "fp8": _mixed_fp8,
    "token_fp8": lambda head_dim, rope_head_dim: Entry("uint8", head_dim + 4),
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
    """Number of entries."""
    entry: Entry
    """Each of them."""
    alignment: int = 1
    """The size of the page is a multiple of this many bytes."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            entries=check_int("entries", self.entries, 0),
            alignment=check_int("alignment", self.alignment, 1),
        )

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
        """(entries, width), or (bytes,) of a padded page, whose kernel places the padding."""
        return (self.bytes,) if self.waste_bytes else (self.entries, self.entry.width)

    @property
    def dtype(self) -> str:
        """The entry's dtype; uint8 for a padded page."""
        return "uint8" if self.waste_bytes else self.entry.dtype


@dataclass(frozen=True)
class CacheLayout:
    """The choices that an engine makes about a cache.

    Raises:
      ValueError, TypeError: naming the field.

    """

    kv: str | Entry = "bf16"
    """Layout of main KV entries: "bf16", "fp8" (584 bytes, a scale per 64 elements), "token_fp8"
    (516 bytes, a scale per entry), "uniform_fp8" (512 bytes, a scale per tensor, kept elsewhere),
    or an `Entry` of your own."""
    indexer: str | Entry = "bf16"
    """Layout of indexer entries: "bf16", "fp8" (132 bytes), "fp4" (68 bytes), or an `Entry`."""
    block_multiple: int = 1
    """k: a block has k times the least common multiple of the ratios, in tokens."""
    page_alignment: int = 1
    """The size of a page, which an SWA ring is as well, is rounded up to a multiple of this many
    bytes."""

    def __post_init__(self) -> None:
        _check_entry("kv", self.kv, KV_ENTRIES)
        _check_entry("indexer", self.indexer, INDEXER_ENTRIES)
        set_fields(
            self,
            block_multiple=check_int("block_multiple", self.block_multiple, 1),
            page_alignment=check_int("page_alignment", self.page_alignment, 1),
        )

    def kv_entry(self, head_dim: int, rope_head_dim: int) -> Entry:
        """The main KV entry of a model with these dimensions; your own is taken as it is."""
        if isinstance(self.kv, Entry):
            return self.kv
        return KV_ENTRIES[self.kv](head_dim, rope_head_dim)

    def indexer_entry(self, head_dim: int) -> Entry:
        """The indexer entry of a model with this dimension; your own is taken as it is."""
        if isinstance(self.indexer, Entry):
            return self.indexer
        return INDEXER_ENTRIES[self.indexer](head_dim)


def _check_entry(name: str, value: Any, choices: Mapping[str, Any]) -> None:
    expected = f"{name}: expected an Entry or one of {', '.join(map(repr, choices))}, got {value!r}"
    if not isinstance(value, Entry | str):
        raise TypeError(expected)
    if isinstance(value, str) and value not in choices:
        raise ValueError(expected)


DEFAULT_LAYOUT = CacheLayout()
