"""Schemas and sizes against the published figures, and against sums written out by hand."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_sa.cache_schema import (
    AttentionType,
    CacheLayout,
    DSV4Config,
    Entry,
    LayerSpec,
    Page,
    build_schema,
    bytes_per_block,
    bytes_per_token,
    dsv4_flash,
    dsv4_pro,
    request_state_bytes,
)

SWA, CSA, HCA = AttentionType
MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("config", "layout", "per_token", "gib_at_1m"),
    [
        (dsv4_pro(), "bf16", Fraction(9848), "9.617"),
        (dsv4_pro(), "fp8", Fraction("5511.4375"), "5.382"),
        (dsv4_flash(), "bf16", Fraction(6880), "6.719"),
        (dsv4_flash(), "fp8", Fraction("3850.25"), "3.760"),
    ],
)
def test_reference_bytes_per_token(config, layout, per_token, gib_at_1m):
    assert bytes_per_token(config, CacheLayout(layout, layout)) == per_token
    assert f"{float(per_token * MIB / GIB):.3f}" == gib_at_1m


def test_reference_state_per_request():
    pro = dsv4_pro()
    csa, hca = (build_schema(pro, LayerSpec(0, kind)) for kind in (CSA, HCA))
    assert 61 * csa.swa_ring.bytes == 7.625 * MIB
    assert 30 * csa.state_bytes == 1.875 * MIB
    assert 30 * csa.indexer_state_bytes == 0.46875 * MIB
    assert 31 * hca.state_bytes == 15.5 * MIB
    assert request_state_bytes(pro) == 25.46875 * MIB
    assert request_state_bytes(pro, speculative=True) == (7.625 + 2 * 17.84375) * MIB
    assert request_state_bytes(pro, CacheLayout("fp8")) == (61 * 128 * 584) + 17.84375 * MIB
    assert request_state_bytes(pro, mtp=True) == 25.46875 * MIB + 128 * 1024


def test_schema_of_each_layer_type():
    config = dsv4_flash()
    swa, csa, hca = (build_schema(config, LayerSpec(0, kind)) for kind in AttentionType)
    assert [s.entries_per_block for s in (swa, csa, hca)] == [0, 32, 1]
    assert [s.indexer_entries_per_block for s in (swa, csa, hca)] == [0, 32, 0]
    assert [(s.tail_a, s.tail_b) for s in (swa, csa, hca)] == [(0, 0), (4, 4), (128, 0)]
    assert [s.state_rows for s in (swa, csa, hca)] == [0, 8, 128]
    assert [s.state_width for s in (swa, csa, hca)] == [0, 1024, 512]
    assert [s.indexer_state_width for s in (swa, csa, hca)] == [0, 256, 0]
    assert [s.sliding_window for s in (swa, csa, hca)] == [128] * 3
    assert (csa.entry_head_dim, csa.rope_head_dim, csa.indexer_head_dim) == (512, 64, 128)
    rows = [build_schema(config, LayerSpec(0, k), speculative=True).state_rows for k in (CSA, HCA)]
    assert rows == [16, 256]
    wide = build_schema(config, LayerSpec(0, CSA), CacheLayout(block_multiple=2))
    assert (wide.block_size, wide.entries_per_block) == (256, 64)


@pytest.mark.parametrize(
    ("layout", "kv", "indexer"),
    [
        (CacheLayout("bf16", "bf16"), Entry("bfloat16", 512), Entry("bfloat16", 128)),
        (CacheLayout("fp8", "fp8"), Entry("uint8", 584), Entry("uint8", 132)),
        (CacheLayout("uniform_fp8", "fp4"), Entry("float8_e4m3fn", 512), Entry("uint8", 68)),
        (CacheLayout("token_fp8", "fp4"), Entry("uint8", 516), Entry("uint8", 68)),
        (
            CacheLayout(Entry("float8_e5m2", 576), Entry("int8", 129)),
            Entry("float8_e5m2", 576),
            Entry("int8", 129),
        ),
    ],
)
def test_entries_as_stored(layout, kv, indexer):
    schema = build_schema(dsv4_pro(), LayerSpec(0, CSA), layout)
    assert (schema.kv_entry, schema.indexer_entry) == (kv, indexer)


def test_alignment_pads_pages_and_tells_the_waste():
    layout = CacheLayout("fp8", "fp8", page_alignment=576)
    csa, hca = (build_schema(dsv4_pro(), LayerSpec(0, kind), layout) for kind in (CSA, HCA))
    assert (hca.kv_page.bytes, hca.kv_page.waste_bytes) == (1152, 568)
    assert (csa.kv_page.bytes, csa.kv_page.waste_bytes) == (19_008, 320)
    assert (csa.swa_ring.bytes, csa.swa_ring.waste_bytes) == (74_880, 128)
    assert (hca.indexer_page.bytes, hca.indexer_page.waste_bytes) == (0, 0)
    assert hca.kv_page.shape == (1152,)
    assert Page(32, Entry("bfloat16", 512), 576 * 64).shape == (36_864,)
    assert Page(9, Entry("bfloat16", 512), 576).shape == (9, 512)


@given(st.integers(0, 300), st.integers(1, 700), st.integers(1, 5000))
def test_page_is_the_least_multiple_that_holds_its_entries(entries, width, alignment):
    page = Page(entries, Entry("uint8", width), alignment)
    assert page.bytes % alignment == 0
    assert 0 <= page.bytes - entries * width == page.waste_bytes < alignment


@pytest.mark.parametrize("indexer", ["bf16", "fp8", "fp4"])
@pytest.mark.parametrize("kv", ["bf16", "fp8", "token_fp8", "uniform_fp8"])
@pytest.mark.parametrize("config", [dsv4_pro(), dsv4_flash()], ids=["pro", "flash"])
def test_block_bytes_are_the_sum_over_layers(config, kv, indexer):
    kv_bytes = {"bf16": 1024, "fp8": 584, "token_fp8": 516, "uniform_fp8": 512}[kv]
    indexer_bytes = {"bf16": 256, "fp8": 132, "fp4": 68}[indexer]
    num_csa, num_hca = (config.layer_types.count(kind) for kind in (CSA, HCA))
    for block_size in (128, 256, 1280):
        csa_bytes = num_csa * block_size // 4 * (kv_bytes + indexer_bytes)
        hca_bytes = num_hca * block_size // 128 * kv_bytes
        total = bytes_per_block(config, CacheLayout(kv, indexer, block_size // 128))
        assert total == csa_bytes + hca_bytes
        layout = CacheLayout(kv, indexer, block_size // 128, 576)
        csa, hca = (build_schema(config, LayerSpec(0, kind), layout) for kind in (CSA, HCA))
        assert num_csa * csa.bytes_per_token * block_size == csa_bytes  # padding not included
        assert num_hca * hca.bytes_per_token * block_size == hca_bytes
        assert bytes_per_token(config, layout) == Fraction(total, block_size)
        assert bytes_per_block(config, layout) == (
            num_csa * csa.bytes_per_block + num_hca * hca.bytes_per_block
        )


def test_compressed_mtp_layers_cost_tokens_too():
    config = DSV4Config((SWA,), (CSA,))
    assert bytes_per_token(config) == 0
    assert bytes_per_token(config, mtp=True) == 320


@pytest.mark.parametrize(
    ("dtype", "name", "num_bytes"),
    [
        ("float8_e5m2", "float8_e5m2", 7),
        ("float8_e8m0fnu", "float8_e8m0fnu", 7),
        (jnp.float8_e4m3b11fnuz, "float8_e4m3b11fnuz", 7),
        (np.dtype(np.float16), "float16", 14),
        (np.float32, "float32", 28),
        ("bool", "bool", 7),
    ],
)
def test_entries_of_any_dtype(dtype, name, num_bytes):
    entry = Entry(dtype, np.int32(7))
    assert entry == Entry(name, 7)
    assert (entry.dtype, entry.bytes, type(entry.width)) == (name, num_bytes, int)
    layout = CacheLayout(kv=entry, indexer=entry)
    csa = build_schema(dsv4_pro(), LayerSpec(0, CSA), layout)
    assert csa.kv_page.bytes == csa.indexer_page.bytes == 32 * num_bytes
    assert bytes_per_token(DSV4Config((SWA, CSA)), layout) == Fraction(2 * num_bytes, 4)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        ("float9", ValueError),
        ("int4", ValueError),
        ("float4_e2m1fn", ValueError),
        ("U4", ValueError),
        ("object", ValueError),
        ("datetime64[s]", ValueError),
        (None, TypeError),
        (8, TypeError),
        (jax.dtypes.prng_key, TypeError),
    ],
)
def test_entries_of_no_dtype(dtype, error):
    with pytest.raises(error, match="^dtype: expected a dtype of numbers or bool"):
        Entry(dtype, 7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Entry("uint8", -1), "width: .*got -1"),
        (lambda: Page(-1, Entry("uint8", 1)), "entries: .*got -1"),
        (lambda: Page(1, Entry("uint8", 1), 0), "alignment: .*got 0"),
    ],
)
def test_entries_and_pages_name_the_invalid_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_layout_of_a_wrong_type():
    for field in ("kv", "indexer"):
        with pytest.raises(TypeError, match=f"{field}: expected an Entry or one of 'bf16'.*got 8"):
            CacheLayout(**{field: 8})


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint8])
def test_numpy_integers_do_not_overflow(kind):
    """An int8 that holds each figure does not hold their products."""
    page = Page(kind(100), Entry("uint8", kind(100)), kind(99))
    assert (page.bytes, page.waste_bytes) == (10_098, 98)
    layout = CacheLayout(block_multiple=kind(100), page_alignment=kind(99))
    assert layout == CacheLayout(block_multiple=100, page_alignment=99)
    config = DSV4Config((CSA,), head_dim=kind(100), qk_rope_head_dim=kind(8), csa_ratio=kind(4))
    plain = DSV4Config((CSA,), head_dim=100, qk_rope_head_dim=8, csa_ratio=4)
    assert bytes_per_block(config, layout) == bytes_per_block(plain, layout)
    assert request_state_bytes(config, layout) == request_state_bytes(plain, layout)
    schema = build_schema(plain, LayerSpec(kind(0), CSA))
    changed = dataclasses.replace(schema, entries_per_block=kind(64), sliding_window=kind(127))
    assert changed.kv_page.bytes == 64 * 200
    assert changed.swa_ring.bytes == 127 * 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("kv", "int4"), ("indexer", "uniform_fp8"), ("block_multiple", 0), ("page_alignment", 0)],
)
def test_layout_names_the_invalid_field(field, value):
    with pytest.raises(ValueError, match=field):
        CacheLayout(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 0),
        ("entries_per_block", 3),
        ("indexer_entries_per_block", 256),
        ("entry_head_dim", 0),
        ("rope_head_dim", -1),
        ("sliding_window", 0),
        ("tail_a", -4),
        ("tail_b", -4),
        ("state_rows", -1),
        ("state_width", -1),
        ("indexer_state_width", -1),
        ("page_alignment", 0),
    ],
)
def test_schema_names_the_invalid_field(field, value):
    schema = build_schema(dsv4_pro(), LayerSpec(0, CSA))
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(schema, **{field: value})
