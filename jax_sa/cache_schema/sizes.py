"""Exact bytes of a whole model's caches: sums over its layers of `LayerCacheSchema`."""

from fractions import Fraction

from jax_sa.cache_schema.config import DSV4Config, layer_schedule
from jax_sa.cache_schema.layout import DEFAULT_LAYOUT, CacheLayout
from jax_sa.cache_schema.schema import LayerCacheSchema, build_schema


def bytes_per_token(
    config: DSV4Config, layout: CacheLayout = DEFAULT_LAYOUT, *, mtp: bool = False
) -> Fraction:
    """Bytes that each further token of a context takes in all layers, exactly, without padding."""
    schemas = _schemas(config, layout, mtp=mtp)
    return sum((schema.bytes_per_token for schema in schemas), Fraction())


def bytes_per_block(
    config: DSV4Config, layout: CacheLayout = DEFAULT_LAYOUT, *, mtp: bool = False
) -> int:
    """Bytes of a block in all layers, page padding included.

    A block has `config.block_size(layout.block_multiple)` tokens.
    """
    return sum(schema.bytes_per_block for schema in _schemas(config, layout, mtp=mtp))


def request_state_bytes(
    config: DSV4Config,
    layout: CacheLayout = DEFAULT_LAYOUT,
    *,
    speculative: bool = False,
    mtp: bool = False,
) -> int:
    """Bytes of a request in all layers, whatever its length: SWA rings and compressor state.

    Page padding is included. `speculative` doubles the compressor state, as in `build_schema`.
    """
    schemas = _schemas(config, layout, mtp=mtp, speculative=speculative)
    return sum(schema.request_state_bytes for schema in schemas)


def _schemas(
    config: DSV4Config, layout: CacheLayout, *, mtp: bool, speculative: bool = False
) -> list[LayerCacheSchema]:
    return [
        build_schema(config, spec, layout, speculative=speculative)
        for spec in layer_schedule(config, mtp=mtp)
    ]
