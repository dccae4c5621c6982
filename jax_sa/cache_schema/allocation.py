"""A plan's cache as JAX arrays."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jax_sa._checks import check_bool, check_int
from jax_sa.cache_schema.block_table import BlockTable, init_block_table
from jax_sa.cache_schema.config import AttentionType, LayerSpec
from jax_sa.cache_schema.layout import Page
from jax_sa.cache_schema.planner import CachePlan
from jax_sa.cache_schema.schema import STATE_DTYPE, build_schema


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CompressorState:
    """The state that the compressors of one layer type still need; letters as in `Cache`."""

    kv: jax.Array
    """float32[L, S, rows, width] projections of the last tokens."""
    score: jax.Array
    """float32[L, S, rows, width] scores of these before the softmax, -inf where there is no
    token."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The caches of the layers of one pipeline stage.

    Letters: L layers of the type, in model order (0 where the stage has none), P pages and S
    slots, the padding ones included. `page` stands for (entries, width), or for (bytes,) where
    pages are padded (`Page.shape`).
    """

    csa_kv: jax.Array
    """[L, P, *page] main KV entries of CSA layers."""
    csa_indexer: jax.Array
    """[L, P, *page] indexer entries of CSA layers."""
    hca_kv: jax.Array
    """[L, P, *page] main KV entries of HCA layers."""
    swa_ring: jax.Array
    """[L, S, *page] main KV entries of the last tokens, in all layers; token t is entry
    t % window."""
    csa_state: CompressorState
    """State of the compressors of CSA layers."""
    csa_indexer_state: CompressorState
    """State of the compressors of their indexers."""
    hca_state: CompressorState
    """State of the compressors of HCA layers."""
    block_table: BlockTable
    """The page of each block of a slot, the same in every pool."""


def allocate(
    plan: CachePlan,
    *,
    stage: int = 0,
    abstract: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> Cache:
    """The cache of one pipeline stage of `plan`: zeros, with scores at -inf and no block claimed.

    Args:
      plan: the plan. The suffix automaton is not part of it: `init(plan.num_slots, ...)`.
      stage: the index of the pipeline stage.
      abstract: whether to return `jax.ShapeDtypeStruct`s and allocate nothing.
      sharding: of each array. The plan counts the bytes on one device, so replicate over the
        devices of a stage.

    Raises:
      ValueError: the bytes of a part differ from the plan's; nothing is allocated then.

    """
    stage = check_int("stage", stage, 0, len(plan.stages) - 1)
    abstract = check_bool("abstract", abstract)
    build = partial(_build, plan, stage)
    shapes = jax.eval_shape(build)
    for part in plan.stages[stage].parts:
        leaves = jax.tree.leaves(getattr(shapes, part.name))
        num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        if num_bytes != part.bytes:
            raise ValueError(f"plan: expected {part.bytes} bytes of {part.name}, got {num_bytes}")
    if not abstract:
        return jax.jit(build, out_shardings=sharding)()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _build(plan: CachePlan, stage: int) -> Cache:
    types = [spec.attention_type for spec in plan.stages[stage].schedule]
    num_csa, num_hca = types.count(AttentionType.CSA), types.count(AttentionType.HCA)
    csa, hca = (
        build_schema(plan.config, LayerSpec(0, kind), plan.layout, speculative=plan.speculative)
        for kind in (AttentionType.CSA, AttentionType.HCA)
    )

    def pool(layers: int, copies: int, page: Page) -> jax.Array:
        return jnp.zeros((layers, copies, *page.shape), page.dtype)

    def state(layers: int, rows: int, width: int) -> CompressorState:
        shape = (layers, plan.num_slots, rows, width)
        return CompressorState(
            kv=jnp.zeros(shape, STATE_DTYPE), score=jnp.full(shape, -jnp.inf, STATE_DTYPE)
        )

    return Cache(
        csa_kv=pool(num_csa, plan.num_pages, csa.kv_page),
        csa_indexer=pool(num_csa, plan.num_pages, csa.indexer_page),
        hca_kv=pool(num_hca, plan.num_pages, hca.kv_page),
        swa_ring=pool(len(types), plan.num_slots, csa.swa_ring),
        csa_state=state(num_csa, csa.state_rows, csa.state_width),
        csa_indexer_state=state(num_csa, csa.state_rows, csa.indexer_state_width),
        hca_state=state(num_hca, hca.state_rows, hca.state_width),
        block_table=init_block_table(
            num_slots=plan.num_slots,
            num_pages=plan.num_pages,
            max_blocks=plan.blocks_per_request,
            block_size=plan.block_size,
        ),
    )
