"""Exact bytes of a whole model's caches: sums of what `LayerCacheSchema` says of each layer."""

from fractions import Fraction

from jax_sa.cache_schema.config import DSV4Config, layer_schedule
from jax_sa.cache_schema.layout import CacheLayout
from jax_sa.cache_schema.schema import build_schema


def bytes_per_token(
    config: DSV4Config, kv: str = "bf16", indexer: str = "bf16", *, mtp: bool = False
) -> Fraction:
    """Bytes that each further token of a context takes in all layers, exactly, without padding."""
    layout = CacheLayout(kv, indexer)
    schemas = (build_schema(config, spec, layout) for spec in layer_schedule(config, mtp=mtp))
    return sum((schema.bytes_per_token for schema in schemas), Fraction())


def bytes_per_block(
    config: DSV4Config,
    kv: str = "bf16",
    indexer: str = "bf16",
    *,
    block_size: int,
    page_alignment: int = 1,
    mtp: bool = False,
) -> int:
    """Bytes that a block of `block_size` tokens takes in all layers, page padding included.

    Raises ValueError where a ratio does not divide `block_size`.
    """
    layout = CacheLayout(kv, indexer, config.block_multiple(block_size), page_alignment)
    schemas = (build_schema(config, spec, layout) for spec in layer_schedule(config, mtp=mtp))
    return sum(schema.bytes_per_block for schema in schemas)


def request_state_bytes(
    config: DSV4Config,
    kv: str = "bf16",
    *,
    speculative: bool = False,
    page_alignment: int = 1,
    mtp: bool = False,
) -> int:
    """Bytes that a request takes in all layers whatever its length: SWA rings, compressor state.

    `speculative` doubles the compressor state, as in `build_schema`.
    """
    layout = CacheLayout(kv, page_alignment=page_alignment)
    schemas = (
        build_schema(config, spec, layout, speculative=speculative)
        for spec in layer_schedule(config, mtp=mtp)
    )
    return sum(schema.request_state_bytes for schema in schemas)
