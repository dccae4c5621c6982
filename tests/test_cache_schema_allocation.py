"""Allocated arrays against the plan: bytes, shapes, dtypes and first values."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sa.cache_schema import (
    AttentionType,
    CacheLayout,
    DSV4Config,
    Entry,
    allocate,
    dsv4_flash,
    dsv4_pro,
    locate_tokens,
    plan,
)
from jax_sa.state import get_state_size, init

SWA, CSA, HCA = AttentionType
TINY = DSV4Config(
    (SWA, CSA, HCA, CSA),
    (SWA,),
    head_dim=24,
    qk_rope_head_dim=8,
    index_head_dim=16,
    sliding_window=6,
    csa_ratio=2,
    hca_ratio=8,
)


def plan_tiny(**changes):
    load = {"context_tokens": 20, "requests": 3} | changes
    return plan(TINY, 10**9, **load)


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("alignment", [1, 7, 576])
@pytest.mark.parametrize("indexer", ["bf16", "fp8", "fp4"])
@pytest.mark.parametrize("kv", ["bf16", "token_fp8", "uniform_fp8", Entry("float8_e5m2", 7)])
def test_allocated_bytes_are_the_planned_bytes(kv, indexer, alignment):
    layout = CacheLayout(kv, indexer, block_multiple=2, page_alignment=alignment)
    made = plan_tiny(layout=layout, mtp=True, pipeline_stages=3, headroom=0.1)
    for i, stage in enumerate(made.stages):
        cache = allocate(made, stage=i)
        assert num_bytes(cache) == stage.cache_bytes
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == stage.cache_bytes
        for part in stage.parts:
            assert num_bytes(getattr(cache, part.name)) == part.bytes


def test_shapes_and_dtypes():
    cache = allocate(plan_tiny(layout=CacheLayout("bf16", "fp4", page_alignment=10)))
    layers, csa, hca, pages, slots = 4, 2, 1, 3 * 3 + 1, 3 + 1
    expected = {
        "csa_kv": ((csa, pages, 200), jnp.uint8),  # 4 entries of 48 bytes, padded
        "csa_indexer": ((csa, pages, 40), jnp.uint8),  # 4 entries of 9 bytes, padded
        "hca_kv": ((hca, pages, 50), jnp.uint8),
        "swa_ring": ((layers, slots, 290), jnp.uint8),
    }
    for name, (shape, dtype) in expected.items():
        assert (getattr(cache, name).shape, getattr(cache, name).dtype) == (shape, dtype)
    cache = allocate(plan_tiny())
    assert (cache.csa_kv.shape, cache.csa_kv.dtype) == ((csa, pages, 4, 24), jnp.bfloat16)
    assert cache.csa_indexer.shape == (csa, pages, 4, 16)
    assert cache.hca_kv.shape == (hca, pages, 1, 24)
    assert cache.swa_ring.shape == (layers, slots, 6, 24)
    assert cache.csa_state.kv.shape == (csa, slots, 2 * (2 + 2), 2 * 24)
    assert cache.csa_indexer_state.kv.shape == (csa, slots, 2 * (2 + 2), 2 * 16)
    assert cache.hca_state.kv.shape == (hca, slots, 2 * 8, 24)
    assert cache.block_table.pages.shape == (slots, 3)


def test_scores_start_at_minus_infinity_and_the_rest_at_zero():
    cache = allocate(plan_tiny(layout=CacheLayout("uniform_fp8", "fp8")))
    for state in (cache.csa_state, cache.csa_indexer_state, cache.hca_state):
        assert state.score.dtype == state.kv.dtype == jnp.float32
        assert np.all(np.asarray(state.score) == -np.inf)
        assert not np.any(np.asarray(state.kv))
    for pool in (cache.csa_kv, cache.csa_indexer, cache.hca_kv, cache.swa_ring):
        assert not np.any(np.asarray(pool.view(jnp.uint8)))
    assert not np.any(np.asarray(cache.block_table.pages))


@pytest.mark.parametrize("config", [dsv4_pro(), dsv4_flash()], ids=["pro", "flash"])
@pytest.mark.parametrize("context_tokens", [1, 127, 128, 129, 1_000_000])
def test_abstract_plans_of_real_models_allocate_nothing(config, context_tokens):
    made = plan(config, 10**12, context_tokens=context_tokens, requests=64)
    cache = allocate(made, abstract=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(cache))
    assert num_bytes(cache) == made.stages[0].cache_bytes


def test_abstract_has_the_shapes_of_the_arrays():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("replica",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    made = plan_tiny()
    arrays, shapes = allocate(made, sharding=sharding), allocate(made, abstract=True)
    assert jax.tree.structure(arrays) == jax.tree.structure(shapes)
    for array, shape in zip(jax.tree.leaves(arrays), jax.tree.leaves(shapes), strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.sharding == sharding
    for shape in jax.tree.leaves(allocate(made, abstract=True, sharding=sharding)):
        assert shape.sharding == sharding


def test_a_plan_that_does_not_add_up_is_refused():
    made = plan_tiny()
    (stage,) = made.stages
    for i, part in enumerate(stage.parts):
        wrong = dataclasses.replace(part, bytes=part.bytes + 1)
        parts = (*stage.parts[:i], wrong, *stage.parts[i + 1 :])
        changed = dataclasses.replace(stage, parts=parts)
        with pytest.raises(ValueError, match=f"{part.bytes + 1} bytes of {part.name}"):
            allocate(dataclasses.replace(made, stages=(changed,)))
    with pytest.raises(ValueError, match="csa_kv"):
        allocate(dataclasses.replace(made, num_pages=made.num_pages + 1))


@pytest.mark.parametrize("stage", [-1, 2])
def test_invalid_stage(stage):
    with pytest.raises(ValueError, match="stage"):
        allocate(plan_tiny(pipeline_stages=2), stage=stage)


def test_automaton_takes_its_planned_bytes():
    made = plan_tiny()
    state = jax.eval_shape(lambda: init(made.num_slots, made.context_tokens))
    planned = made.stages[-1].automaton_bytes
    assert num_bytes(state) == made.num_slots * get_state_size(made.context_tokens) == planned


def test_a_cache_goes_through_jit_in_place():
    @partial(jax.jit, donate_argnames="cache")
    def write(cache, slots, positions):
        page, offset = locate_tokens(cache.block_table, slots, positions, ratio=TINY.csa_ratio)
        kv = cache.csa_kv.at[0, page, offset].set(jnp.ones((), jnp.bfloat16))
        return dataclasses.replace(cache, csa_kv=kv)

    first = allocate(plan_tiny())
    cache = write(first, jnp.array([1], jnp.int32), jnp.array([3], jnp.int32))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert np.all(np.asarray(cache.csa_kv[0, 0, 0]) == 1)  # no block claimed: the padding page
    assert not np.any(np.asarray(cache.csa_kv[:, 1:]))
