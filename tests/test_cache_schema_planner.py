"""Budgets, plans, and the inverse questions at their boundaries."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sa.cache_schema import (
    AttentionType,
    BlockBudget,
    CacheLayout,
    DSV4Config,
    Entry,
    compute_block_budget,
    dsv4_flash,
    dsv4_pro,
    layer_schedule,
    max_context,
    max_requests,
    plan,
    request_state_bytes,
)
from jax_sa.state import get_state_size

SWA, CSA, HCA = AttentionType
TINY = DSV4Config((SWA, CSA, HCA), (SWA,), max_position_embeddings=5000)
HBM = 10**12

quick = settings(max_examples=50, deadline=None)
contexts = st.integers(1, TINY.max_position_embeddings)
requests = st.integers(1, 300)
headrooms = st.fractions(0, 3, max_denominator=100)


def blocks_of(context_tokens, num_requests, headroom=0, config=TINY, block_multiple=1):
    budget = compute_block_budget(
        config,
        layer_schedule(config),
        context_tokens,
        num_requests,
        headroom,
        block_multiple=block_multiple,
    )
    assert budget[CSA].blocks == budget[HCA].blocks
    return budget[CSA].blocks


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(1, 1), (127, 1), (128, 1), (129, 2), (1_000_000, 7813)]
)
def test_requests_take_whole_blocks(tokens, blocks):
    assert blocks_of(tokens, 1) == blocks
    assert blocks_of(tokens, 4) == 4 * blocks
    assert blocks_of(tokens, 1, block_multiple=2) == math.ceil(blocks / 2)


def test_budget_of_each_layer_type():
    budget = compute_block_budget(dsv4_flash(), layer_schedule(dsv4_flash()), 129, 4, 0.1)
    assert budget == {
        SWA: BlockBudget(layers=2, blocks=0, slots=5),
        CSA: BlockBudget(layers=21, blocks=9, slots=5),
        HCA: BlockBudget(layers=20, blocks=9, slots=5),
    }
    assert SWA not in compute_block_budget(dsv4_pro(), layer_schedule(dsv4_pro()), 1, 1)
    with_mtp = compute_block_budget(dsv4_pro(), layer_schedule(dsv4_pro(), mtp=True), 1, 1)
    assert with_mtp[SWA] == BlockBudget(layers=1, blocks=0, slots=1)


@pytest.mark.parametrize("headroom", [1e-9, 0.1, Fraction(1, 10), 1])
@pytest.mark.parametrize("num_requests", [1, 9, 10])
def test_headroom_never_rounds_to_nothing(headroom, num_requests):
    extra = blocks_of(1, num_requests, headroom) - blocks_of(1, num_requests)
    assert extra == math.ceil(Fraction(str(headroom)) * num_requests) >= 1


def test_headroom_is_read_as_its_decimal_digits():
    assert blocks_of(1, 10, 0.1) == 11  # the binary 0.1 is more than 1/10, and would give 12
    assert blocks_of(1, 100, 0.07) == 107


@pytest.mark.parametrize(
    "headroom", [math.nan, math.inf, -0.1, -1, Fraction(-1, 3), 2**31, 1e300, 10**400]
)
def test_invalid_headroom(headroom):
    with pytest.raises(ValueError, match="headroom"):
        blocks_of(1, 1, headroom)


@pytest.mark.parametrize("headroom", ["0.1", None, True])
def test_headroom_of_a_wrong_type(headroom):
    with pytest.raises(TypeError, match="headroom"):
        blocks_of(1, 1, headroom)


@pytest.mark.parametrize("name", ["max_context_tokens", "max_concurrent_requests"])
@pytest.mark.parametrize("value", [0, -1])
def test_invalid_budget_arguments(name, value):
    args = {"max_context_tokens": 1, "max_concurrent_requests": 1, name: value}
    with pytest.raises(ValueError, match=name):
        compute_block_budget(TINY, layer_schedule(TINY), **args)


def test_plan_of_pro_written_out():
    made = plan(dsv4_pro(), HBM, 10**9, context_tokens=129, requests=4)
    assert (made.blocks_per_request, made.num_pages, made.num_slots) == (2, 9, 5)
    (stage,) = made.stages
    assert {part.name: part.bytes for part in stage.parts} == {
        "csa_kv": 30 * 9 * 32 * 1024,
        "csa_indexer": 30 * 9 * 32 * 256,
        "hca_kv": 31 * 9 * 1024,
        "swa_ring": 61 * 5 * 128 * 1024,
        "csa_state": 30 * 5 * 2 * 16 * 1024 * 4,
        "csa_indexer_state": 30 * 5 * 2 * 16 * 256 * 4,
        "hca_state": 31 * 5 * 2 * 256 * 512 * 4,
        "block_table": 4 * (5 * 2 + 5 + 9 + 1),
    }
    assert stage.automaton_bytes == 5 * get_state_size(129)
    assert made.device_bytes == 10**9 + stage.cache_bytes + stage.automaton_bytes
    assert made.free_bytes == HBM - made.device_bytes
    state = sum(part.bytes for part in stage.parts if part.name.endswith(("state", "ring")))
    assert state == 5 * request_state_bytes(dsv4_pro(), speculative=True)


def test_plan_without_speculation_has_no_drafter():
    with_drafts = plan(TINY, HBM, context_tokens=129, requests=4)
    without = plan(TINY, HBM, context_tokens=129, requests=4, speculative=False)
    assert without.stages[0].automaton_bytes == 0
    parts = {part.name: part.bytes for part in without.stages[0].parts}
    for part in with_drafts.stages[0].parts:
        assert part.bytes == parts[part.name] * (2 if part.name.endswith("state") else 1)


def test_tensor_parallel_splits_weights_and_replicates_kv():
    alone, shared = (
        plan(TINY, HBM, 1001, context_tokens=129, requests=4, tensor_parallel=n).stages[0]
        for n in (1, 2)
    )
    assert shared.parts == alone.parts
    assert (alone.weights_bytes, shared.weights_bytes) == (1001, 501)


def test_data_parallel_replicas_share_the_requests():
    whole = plan(TINY, HBM, 1000, context_tokens=129, requests=9, data_parallel=4)
    replica = plan(TINY, HBM, 1000, context_tokens=129, requests=3)
    assert whole.stages == replica.stages


@pytest.mark.parametrize("num_stages", [1, 2, 5, 43])
def test_pipeline_stages_hold_the_model_between_them(num_stages):
    config = dsv4_flash()
    options = {"context_tokens": 1000, "requests": 3, "mtp": True}
    whole = plan(config, HBM, **options).stages[0]
    made = plan(config, HBM, 43_000, **options, pipeline_stages=num_stages)
    assert sum((stage.schedule for stage in made.stages), ()) == whole.schedule
    sizes = [sum(not spec.mtp for spec in stage.schedule) for stage in made.stages]
    assert max(sizes) - min(sizes) <= 1
    for i, part in enumerate(whole.parts):
        if part.name != "block_table":  # each stage has a copy
            assert sum(stage.parts[i].bytes for stage in made.stages) == part.bytes
    assert [stage.automaton_bytes for stage in made.stages[:-1]] == [0] * (num_stages - 1)
    assert made.stages[-1].automaton_bytes == whole.automaton_bytes
    assert made.stages[0].weights_bytes == math.ceil(43_000 / num_stages)
    assert made.device_bytes == max(stage.total_bytes for stage in made.stages)


def test_waste_of_alignment_is_reported():
    options = {"context_tokens": 1000, "requests": 3}
    layout = CacheLayout("fp8", "fp8", page_alignment=576)
    padded = plan(dsv4_pro(), HBM, **options, layout=layout).stages[0]
    plain = plan(dsv4_pro(), HBM, **options, layout=CacheLayout("fp8", "fp8")).stages[0]
    waste = sum(part.waste_bytes for part in padded.parts)
    assert padded.cache_bytes - plain.cache_bytes == waste > 0


def test_numpy_integers_are_the_integers():
    """Their products overflow, which would make anything fit."""
    options = {"context_tokens": 1_000_000, "requests": 1_000_000}
    parallel = {"tensor_parallel": 2, "pipeline_stages": 2, "data_parallel": 3}
    for kind in (np.int32, np.int64, np.uint32):
        sizes = {name: kind(value) for name, value in (options | parallel).items()}
        made = plan(dsv4_pro(), np.int64(HBM), np.int64(10**12), **sizes, headroom=kind(1))
        expected = plan(dsv4_pro(), HBM, 10**12, **options, **parallel, headroom=1)
        assert made == expected and not made.fits
        assert {type(value) for value in vars(made).values()} == {
            type(value) for value in vars(expected).values()
        }


def test_a_numpy_alignment_fits_no_more():
    options = {"context_tokens": 1_048_576, "requests": 64}
    for alignment in (576, 2**20):
        plain, numpy = (
            plan(dsv4_pro(), HBM, **options, layout=CacheLayout(page_alignment=kind(alignment)))
            for kind in (int, np.int32)
        )
        assert plain == numpy
        assert plain.fits == numpy.fits and plain.free_bytes == numpy.free_bytes


class Device:
    """A device that reports its memory, or does not."""

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_a_device_tells_its_memory():
    options = {"context_tokens": 1, "requests": 1}
    assert plan(TINY, Device({"bytes_limit": 12345}), **options).hbm_bytes == 12345
    for stats in (None, {}):
        with pytest.raises(ValueError, match="hbm"):
            plan(TINY, Device(stats), **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hbm", 0),
        ("weights_bytes", -1),
        ("context_tokens", 0),
        ("context_tokens", TINY.max_position_embeddings + 1),
        ("requests", 0),
        ("tensor_parallel", 0),
        ("pipeline_stages", 0),
        ("pipeline_stages", 4),
        ("data_parallel", 0),
        ("headroom", math.nan),
    ],
)
def test_plan_names_the_invalid_argument(name, value):
    args = {"hbm": HBM, "weights_bytes": 0, "context_tokens": 1, "requests": 1, name: value}
    with pytest.raises(ValueError, match=name):
        plan(TINY, **args)


def device_bytes(**changes):
    args = {"hbm": HBM, "weights_bytes": 0, "context_tokens": 1000, "requests": 8} | changes
    return plan(TINY, **args).device_bytes


@quick
@given(contexts, contexts, requests, headrooms)
def test_monotone_in_context(a, b, num_requests, headroom):
    small, large = (
        device_bytes(context_tokens=n, requests=num_requests, headroom=headroom)
        for n in sorted((a, b))
    )
    assert small <= large


@quick
@given(requests, requests, contexts, headrooms)
def test_monotone_in_requests(a, b, context, headroom):
    small, large = (
        device_bytes(requests=n, context_tokens=context, headroom=headroom) for n in sorted((a, b))
    )
    assert small < large or a == b


@quick
@given(headrooms, headrooms, requests, contexts)
def test_monotone_in_headroom(a, b, num_requests, context):
    small, large = (
        device_bytes(headroom=h, requests=num_requests, context_tokens=context)
        for h in sorted((a, b))
    )
    assert small <= large


@quick
@given(st.integers(0, 10**13), st.integers(0, 10**13), st.integers(1, 8), st.integers(1, 3))
def test_monotone_in_weights(a, b, tensor_parallel, stages):
    small, large = (
        device_bytes(weights_bytes=n, tensor_parallel=tensor_parallel, pipeline_stages=stages)
        for n in sorted((a, b))
    )
    assert small <= large


@quick
@given(st.integers(1, 64), st.integers(1, 64), requests)
def test_monotone_in_parallelism(a, b, num_requests):
    for name in ("tensor_parallel", "data_parallel"):
        more, fewer = (
            device_bytes(weights_bytes=10**9, requests=num_requests, **{name: n})
            for n in sorted((a, b))
        )
        assert more >= fewer


@quick
@given(requests, contexts)
def test_monotone_in_what_is_included(num_requests, context):
    load = {"requests": num_requests, "context_tokens": context}
    assert device_bytes(**load, speculative=False) < device_bytes(**load)
    assert device_bytes(**load) < device_bytes(**load, mtp=True)
    wide, narrow = CacheLayout("bf16", "bf16"), CacheLayout("fp8", "fp4")
    assert device_bytes(**load, layout=narrow) < device_bytes(**load, layout=wide)


options = st.fixed_dictionaries(
    {
        "layout": st.builds(
            CacheLayout,
            st.sampled_from(["bf16", "fp8", "token_fp8", Entry("float8_e5m2", 99)]),
            st.sampled_from(["bf16", "fp8", "fp4"]),
            st.integers(1, 4),
            st.sampled_from([1, 512, 576]),
        ),
        "headroom": headrooms,
        "speculative": st.booleans(),
        "mtp": st.booleans(),
        "tensor_parallel": st.integers(1, 4),
        "pipeline_stages": st.integers(1, 3),
        "data_parallel": st.integers(1, 4),
    }
)
memory = st.integers(1, 10**9)


@quick
@given(memory, st.integers(0, 10**7), contexts, options)
def test_most_requests_are_where_the_plan_stops_fitting(hbm, weights, context, options):
    most = max_requests(TINY, hbm, weights, context_tokens=context, **options)
    if most:
        assert plan(TINY, hbm, weights, context_tokens=context, requests=most, **options).fits
    assert not plan(TINY, hbm, weights, context_tokens=context, requests=most + 1, **options).fits


@quick
@given(memory, st.integers(0, 10**7), requests, options)
def test_longest_context_is_where_the_plan_stops_fitting(hbm, weights, num_requests, options):
    longest = max_context(TINY, hbm, weights, requests=num_requests, **options)
    load = {"requests": num_requests, **options}
    if longest:
        assert plan(TINY, hbm, weights, context_tokens=longest, **load).fits
    if longest < TINY.max_position_embeddings:
        assert not plan(TINY, hbm, weights, context_tokens=longest + 1, **load).fits


def test_boundary_of_memory_is_one_byte():
    load = {"context_tokens": 129, "requests": 4}
    needed = plan(TINY, HBM, **load).device_bytes
    for hbm, fits in ((needed, True), (needed - 1, False)):
        made = plan(TINY, hbm, **load)
        assert (made.fits, made.free_bytes) == (fits, hbm - needed)
    assert max_requests(TINY, needed, context_tokens=129) == 4
    assert max_requests(TINY, needed - 1, context_tokens=129) == 3
    assert max_requests(TINY, 1, context_tokens=129) == 0
    assert max_context(TINY, needed, requests=4) == 129
    assert max_context(TINY, needed - 1, requests=4) == 128
    assert max_context(TINY, 1, requests=4) == 0
    assert max_context(TINY, 10**15, requests=4) == TINY.max_position_embeddings
