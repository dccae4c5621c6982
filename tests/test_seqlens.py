"""expand_seqlens against an obvious loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_sa

INT32_MAX = 2**31 - 1
OPTIONS = ("total", "fill", "return_offsets", "return_row_ids")

expand = jax.jit(jax_sa.expand_seqlens, static_argnames=OPTIONS)
expand_uniform = jax.jit(jax_sa.expand_seqlens, static_argnames=("q_lens", *OPTIONS))


def reference(kv_lens, q_lens, total, fill):
    """values, required, offsets, row ids; row by row, without the limits of int32."""
    values, row_ids, offsets = [], [], [0]
    for row, (kv, q) in enumerate(zip(kv_lens, q_lens, strict=True)):
        q = max(q, 0)
        room = range(min(q, total - len(values)))
        values += [max(kv - q + 1 + i, 0) for i in room]
        row_ids += [row for _ in room]
        offsets.append(offsets[-1] + q)
    tail = total - len(values)
    offsets = [min(offset, INT32_MAX) for offset in offsets]
    return values + [fill] * tail, offsets[-1], offsets, row_ids + [len(kv_lens)] * tail


def assert_expands(kv_lens, q_lens, total, fill=0, call=expand):
    got = call(
        jnp.asarray(kv_lens, jnp.int32),
        q_lens if isinstance(q_lens, int) else jnp.asarray(q_lens, jnp.int32),
        total=total,
        fill=fill,
        return_offsets=True,
        return_row_ids=True,
    )
    per_row = [q_lens] * len(kv_lens) if isinstance(q_lens, int) else q_lens
    expected = reference(list(map(int, kv_lens)), list(map(int, per_row)), total, fill)
    for array, values in zip(jax.tree.leaves(got), expected, strict=True):
        np.testing.assert_array_equal(array, np.array(values, np.int32), strict=True)


def test_reference_vector():
    got = expand(jnp.array([10, 7, 12, 0]), jnp.array([3, 1, 4, 0]), total=8)
    assert got.values.tolist() == [8, 9, 10, 7, 9, 10, 11, 12]
    assert got.required == 8
    assert got.offsets is None and got.row_ids is None
    assert_expands([10, 7, 12, 0], [3, 1, 4, 0], 8)


ROWS = st.lists(st.tuples(st.integers(-5, 90), st.integers(-3, 70)), max_size=40)


@settings(deadline=None, max_examples=80)
@given(rows=ROWS, total=st.integers(0, 400), fill=st.integers(-(2**31), INT32_MAX))
def test_random_rows(rows, total, fill):
    assert_expands([kv for kv, _ in rows], [q for _, q in rows], total, fill)


@settings(deadline=None, max_examples=80)
@given(
    kv_lens=st.lists(st.integers(-5, 90), max_size=20),
    q_len=st.integers(0, 40),
    total=st.integers(0, 200),
    fill=st.integers(-(2**31), INT32_MAX),
)
def test_one_length_for_all_rows(kv_lens, q_len, total, fill):
    assert_expands(kv_lens, q_len, total, fill, expand_uniform)
    assert_expands(kv_lens, [q_len] * len(kv_lens), total, fill)


@pytest.mark.parametrize(
    "rows", [31, 32, 33, 256, 257, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 20_000]
)
@pytest.mark.parametrize("slack", [-300, 0, 300])
def test_many_rows(rows, slack):
    rng = np.random.default_rng(rows)
    q_lens = rng.integers(0, 9, rows) * rng.integers(0, 2, rows)
    kv_lens = rng.integers(0, 100_000, rows)
    assert_expands(kv_lens, q_lens, max(int(q_lens.sum()) + slack, 0), fill=-1)


@pytest.mark.parametrize(
    "q_lens",
    [
        [65_536],
        [0] * 500 + [65_536] + [0] * 1_000,
        [1, 65_536, 0, 3, 65_535, 31, 33],
        [3_000] * 100,
        [0] * 3_000 + [1],
    ],
)
def test_long_rows(q_lens):
    kv_lens = [70_000 + i for i in range(len(q_lens))]
    for total in (sum(q_lens), sum(q_lens) + 1, sum(q_lens) - 1, 4_096):
        assert_expands(kv_lens, q_lens, total, fill=7)


def test_no_rows_and_no_room():
    assert_expands([], [], 0)
    assert_expands([], [], 5, fill=3)
    assert_expands([4, 5], [2, 3], 0)
    assert_expands([], 3, 4, fill=3, call=expand_uniform)
    assert_expands([4, 5], 3, 0, call=expand_uniform)


def test_the_ends_of_int32():
    """Sums stop at 2**31 - 1, and no value wraps around."""
    assert_expands([INT32_MAX] * 3, [INT32_MAX] * 3, 40)
    assert_expands([-(2**31), INT32_MAX, 5], [INT32_MAX, 1, -(2**31)], 40)
    assert_expands([9, INT32_MAX, -(2**31)], [2, 3, 4], 40)
    assert_expands([5] * 2_000, [2_000_000] * 2_000, 100)
    assert_expands([INT32_MAX] * 3, INT32_MAX, 40, call=expand_uniform)
    assert_expands([-(2**31), INT32_MAX, 5], 1_500_000_000, 40, call=expand_uniform)


@pytest.mark.parametrize("kv_len", [-(2**31), -1, 0, 2, 9, INT32_MAX])
@pytest.mark.parametrize("q_len", [-(2**31), -1, 0, 1, 9, 40, INT32_MAX])
def test_one_row(kv_len, q_len):
    for total in (0, 1, 9, 41):
        assert_expands([kv_len], [q_len], total, fill=-5)


def test_too_small_a_total_is_reported():
    got = expand(jnp.array([10, 7, 12]), jnp.array([3, 1, 4]), total=5)
    assert got.values.tolist() == [8, 9, 10, 7, 9]
    assert got.required == 8


def test_lengths_from_the_loop_that_uses_them():
    def body(i, carry):
        kv_lens, seen = carry
        expanded = jax_sa.expand_seqlens(kv_lens, i + jnp.arange(3), total=20)
        return kv_lens + 1, seen + expanded.values

    start = jnp.array([5, 9, 2]), jnp.zeros(20, jnp.int32)
    _, seen = jax.jit(lambda start: jax.lax.fori_loop(0, 4, body, start))(start)
    expected = [reference([5 + i, 9 + i, 2 + i], [i, i + 1, i + 2], 20, 0)[0] for i in range(4)]
    assert seen.tolist() == np.sum(expected, axis=0).tolist()


def test_one_call():
    function = functools.partial(
        jax_sa.expand_seqlens, total=64, return_offsets=True, return_row_ids=True
    )
    lens = jax.ShapeDtypeStruct((16,), jnp.int32)
    text = jax.jit(function).lower(lens, lens).compile().as_text()
    (entry,) = re.findall(r"\nENTRY .*?\n}", text, re.DOTALL)
    kinds = re.findall(r" (\w[\w-]*)\(", entry.split("\n", 2)[2])
    assert set(kinds) <= {"parameter", "custom-call", "get-tuple-element", "tuple"}
    assert kinds.count("custom-call") == 1


def test_shard_map_over_the_rows():
    devices = jax.devices() if jax.device_count() >= 2 else jax.devices("cpu")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("row",))
    spec = jax.sharding.PartitionSpec("row")

    def values(kv_lens, q_lens):
        return jax_sa.expand_seqlens(kv_lens, q_lens, total=4).values

    got = jax.jit(jax.shard_map(values, mesh=mesh, in_specs=spec, out_specs=spec))(
        np.array([10, 7, 12, 5], np.int32), np.array([3, 1, 4, 0], np.int32)
    )
    assert got.tolist() == [8, 9, 10, 7, 9, 10, 11, 12]


def test_numpy_integers_near_the_ends_of_int32():
    kv_lens = jnp.array([INT32_MAX, 5], jnp.int32)
    for kind in (np.int32, np.int64):
        q_len, fill = kind(INT32_MAX), kind(-(2**31))
        got = jax_sa.expand_seqlens(kv_lens, q_len, total=kind(4), fill=fill, return_offsets=True)
        assert got.values.tolist() == [1, 2, 3, 4]
        assert got.offsets.tolist() == [0, INT32_MAX, INT32_MAX]


LENS = jnp.zeros(4, jnp.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kv_lens": LENS[None]}, ValueError, r"kv_lens: expected int32\[N,\], got int32\[1, 4\]"),
        ({"kv_lens": LENS.astype("float32")}, TypeError, "kv_lens: expected int32.*got float32"),
        ({"kv_lens": [1, 2]}, TypeError, "kv_lens: expected int32.*got list"),
        ({"q_lens": LENS[:3]}, ValueError, r"q_lens: expected int32\[4,\], got int32\[3\]"),
        ({"q_lens": LENS.astype("int8")}, TypeError, "q_lens: expected int32.*got int8"),
        ({"q_lens": -1}, ValueError, r"q_lens: expected an int in \[0, .*got -1"),
        ({"q_lens": 1.5}, TypeError, "q_lens: expected an int.*got 1.5"),
        ({"total": -1}, ValueError, r"total: expected an int in \[0, .*got -1"),
        ({"total": 2**31}, ValueError, "total: expected an int.*got 2147483648"),
        ({"total": None}, TypeError, "total: expected an int.*got None"),
        ({"fill": 2**31}, ValueError, "fill: expected an int.*got 2147483648"),
        ({"return_offsets": 1}, TypeError, "return_offsets: expected a bool, got 1"),
        ({"return_row_ids": "no"}, TypeError, "return_row_ids: expected a bool, got 'no'"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.expand_seqlens(**{"kv_lens": LENS, "q_lens": LENS, "total": 4} | arguments)
