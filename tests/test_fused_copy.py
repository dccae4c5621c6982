"""fused_copy against numpy."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metadata_programs import (
    METADATA_PROGRAMS,
    assert_copies_in_place,
    compile_metadata_program,
    metadata_types,
)

import jax_sa

DTYPES = ["bool", "int8", "uint16", "int32", "float32", "bfloat16", "float8_e4m3fn", "complex64"]

Tensor = collections.namedtuple("Tensor", "dtype destination source")


def array(rng, shape, dtype):
    """Random items of a dtype, as a numpy array."""
    items = rng.integers(0, 2 if dtype == "bool" else 100, shape)
    return np.asarray(items, np.dtype(dtype)) if dtype == "bool" else items.astype(dtype)


def reference(destination, source, rows, columns, extra, fill):
    """The destination after the copy, and whether a size was clamped."""
    shape = np.minimum(destination.shape, source.shape)
    asked = [None if rows is None else max(rows, 0) + extra, columns][: destination.ndim]
    clamped = any(
        given is not None and (given < 0 or wanted > most)
        for given, wanted, most in zip((rows, columns), asked, shape, strict=False)
    )
    part = tuple(
        slice(most if wanted is None else min(max(wanted, 0), most))
        for wanted, most in zip(asked, shape, strict=True)
    )
    result = destination.copy() if fill is None else np.full_like(destination, fill)
    result[part] = source[part]
    return result, clamped


def assert_copies(tensors, rows=None, columns=None, extra=0, fill=None, dynamic=True, seed=0):
    rng = np.random.default_rng(seed)
    destinations = [array(rng, tensor.destination, tensor.dtype) for tensor in tensors]
    sources = [array(rng, tensor.source, tensor.dtype) for tensor in tensors]
    on_device = jnp.int32 if dynamic else int
    copied = jax_sa.fused_copy(
        [jnp.asarray(destination) for destination in destinations],
        [jnp.asarray(source) for source in sources],
        rows=rows if rows is None else on_device(rows),
        columns=columns if columns is None else on_device(columns),
        extra_rows=extra,
        fill=fill,
    )
    expected = [
        reference(destination, source, rows, columns, extra, fill)
        for destination, source in zip(destinations, sources, strict=True)
    ]
    for got, (values, _) in zip(copied.destinations, expected, strict=True):
        np.testing.assert_array_equal(got, values, strict=True)
    assert copied.clamped.tolist() == [clamped for _, clamped in expected]


SIZES = st.integers(0, 40)


@st.composite
def tensors(draw):
    """A destination and a source that fits into it."""
    axes = draw(st.integers(1, 2))
    destination = [draw(SIZES) for _ in range(axes)]
    source = tuple(draw(st.integers(0, size)) for size in destination)
    return Tensor(draw(st.sampled_from(DTYPES)), tuple(destination), source)


@settings(deadline=None, max_examples=150)
@given(
    tensors=st.lists(tensors(), min_size=1, max_size=4),
    rows=st.none() | st.integers(-2, 42),
    columns=st.none() | st.integers(-2, 42),
    extra=st.integers(0, 2),
    fill=st.sampled_from([None, 0, 1]),
)
def test_random_tensors(tensors, rows, columns, extra, fill):
    assert_copies(tensors, rows, columns, extra, fill)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("destination", "source"),
    [
        ((70_001,), (70_001,)),
        ((400_000,), (399_999,)),
        ((300, 515), (300, 515)),
        ((300, 515), (299, 513)),
        ((3_000, 17), (3_000, 3)),
        ((7, 100_003), (7, 100_001)),
        ((1, 1), (1, 1)),
    ],
)
def test_large_and_ragged(dtype, destination, source):
    tensor = [Tensor(dtype, destination, source)]
    assert_copies(tensor)
    assert_copies(tensor, rows=source[0] // 2 + 1, fill=1)
    assert_copies(tensor, rows=source[0] + 2, columns=2, fill=0)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "complex64"])
@pytest.mark.parametrize("row_bytes", [1016, 1024, 1032, 2040, 2056, 4080, 4096, 4104, 8200])
def test_rows_about_as_long_as_a_tile(dtype, row_bytes):
    columns = row_bytes // np.dtype(dtype).itemsize
    for more in (0, 1, 3):
        tensor = [Tensor(dtype, (37, columns + more), (35, columns))]
        assert_copies(tensor)
        assert_copies(tensor, rows=34, columns=columns - 1, fill=1)


@pytest.mark.parametrize("fill", [None, 1])
@pytest.mark.parametrize(
    "shape", [(5_000_000,), (2_500, 2_100), (2_500, 2_048), (40, 200_000), (1_200_000, 5)]
)
def test_more_than_there_are_blocks_for(shape, fill):
    """As the device says how much to copy, blocks are few, and each copies several pieces."""
    tensor = [Tensor("int8", shape, shape)]
    for rows in (0, 1, shape[0] // 3, shape[0]):
        assert_copies(tensor, rows=rows, fill=fill)
    assert_copies(tensor, rows=shape[0], columns=4, fill=fill)


@pytest.mark.parametrize("fill", [None, 3])
def test_wide_items_beside_narrow_rows(fill):
    """Rows that are aligned to no more than a byte must not split the items of others."""
    narrow, wide = Tensor("int8", (9, 3), (5, 2)), Tensor("complex64", (9, 7), (5, 4))
    assert_copies([narrow, wide], rows=4, columns=2, fill=fill)
    assert_copies([wide, narrow], fill=fill)


def test_static_sizes():
    matrix = [Tensor("int32", (9, 8), (7, 12))]
    for rows, columns in [(7, 8), (0, 8), (3, 0), (4, 5)]:
        assert_copies(matrix, rows, columns, dynamic=False, fill=1)
    assert_copies([Tensor("int32", (9,), (7,))], rows=4, extra=3, dynamic=False)


@pytest.mark.parametrize("count", [24, 25, 60])
def test_many_tensors(count):
    assert_copies([Tensor("int32", (i + 1,), (i + 1,)) for i in range(count)], rows=30)


def test_one_source_for_several_destinations():
    source = jnp.arange(5)
    destinations = {"a": jnp.zeros(5, jnp.int32), "b": jnp.zeros(7, jnp.int32)}
    copied = jax_sa.fused_copy(destinations, {"a": source, "b": source})
    assert copied.destinations["a"].tolist() == [0, 1, 2, 3, 4]
    assert copied.destinations["b"].tolist() == [0, 1, 2, 3, 4, 0, 0]


def test_sizes_and_fills_by_leaf():
    zeros = {"ids": jnp.zeros((4, 3), jnp.int32), "mask": jnp.zeros((4, 6), jnp.float32)}
    ones = jax.tree.map(jnp.ones_like, zeros)
    copied = jax_sa.fused_copy(
        zeros,
        ones,
        rows=jnp.int32(2),
        columns={"ids": None, "mask": jnp.int32(1)},
        extra_rows={"ids": 1, "mask": 0},
        fill={"ids": None, "mask": -np.inf},
    ).destinations
    assert copied["ids"].tolist() == [[1] * 3] * 3 + [[0] * 3]
    assert copied["mask"].tolist() == [[1] + [-np.inf] * 5] * 2 + [[-np.inf] * 6] * 2


def test_none_is_an_empty_place():
    """In the destinations None holds nothing; among sizes and fills it is a value."""
    zeros = {"ids": jnp.zeros(4, jnp.int32), "mask": None, "pages": jnp.zeros((4, 3), jnp.int32)}
    ones = jax.tree.map(jnp.ones_like, zeros)
    whole = jax_sa.fused_copy(zeros, ones, rows=jnp.int32(2), columns=1, extra_rows=1, fill=7)
    assert whole.clamped.tolist() == [False, False]
    assert whole.destinations["mask"] is None
    assert whole.destinations["ids"].tolist() == [1, 1, 1, 7]
    by_leaf = jax_sa.fused_copy(
        zeros,
        ones,
        rows={"ids": 1, "mask": 9, "pages": None},
        columns={"ids": None, "mask": None, "pages": 2},
        fill={"ids": None, "mask": None, "pages": 5},
    ).destinations
    assert by_leaf["ids"].tolist() == [1, 0, 0, 0]
    assert by_leaf["pages"].tolist() == [[1, 1, 5]] * 4
    with pytest.raises(ValueError, match="sources: expected the structure"):
        jax_sa.fused_copy(zeros, ones | {"mask": jnp.ones(4, jnp.int32)})


def test_metadata_without_a_page_table():
    buffers, batch = (
        dataclasses.replace(metadata(rows, 4, start), page_table=None)
        for rows, start in ((8, -9000), (5, 1))
    )
    copied = jax_sa.copy_replay_metadata(buffers, batch, rows=jnp.int32(3), pages=2, fill=0)
    assert copied.destinations.page_table is None
    assert copied.destinations.seq_lens.tolist() == [*batch.seq_lens[:3].tolist()] + [0] * 5


def filled(dtype, fill):
    """An item that was filled, as Python has it."""
    destination, source = jnp.zeros(1, dtype), jnp.zeros(0, dtype)
    return jax_sa.fused_copy(destination, source, fill=fill).destinations[0].item()


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [
        ("int32", np.uint32(2**31 - 1), 2**31 - 1),
        ("int32", np.int64(-(2**31)), -(2**31)),
        ("uint32", 2**32 - 1, 2**32 - 1),
        ("int8", -128.0, -128),
        ("bool", True, True),
        ("bool", 0, False),
        ("float32", 16_777_217, 16_777_216.0),  # rounded
        ("float32", -np.inf, -np.inf),
        ("bfloat16", jnp.bfloat16(1.5), 1.5),
        ("bfloat16", jnp.float32(0.25), 0.25),
        ("float8_e4m3fn", 448, 448.0),
        ("float8_e4m3fn", -0.5, -0.5),
        ("float8_e5m2", np.inf, np.inf),
        ("complex64", complex(1, -np.inf), complex(1, -np.inf)),
    ],
)
def test_fills_that_the_dtype_holds(dtype, fill, expected):
    assert filled(dtype, fill) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "complex64"])
def test_a_fill_of_nan(dtype):
    assert np.isnan(filled(dtype, np.nan))


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("int32", np.uint32(2**32 - 1)),
        ("int32", np.int64(2**31)),
        ("int32", 2**70),
        ("int32", np.nan),
        ("int32", -np.inf),
        ("int8", np.uint8(255)),
        ("uint8", np.int8(-1)),
        ("uint32", -1),
        ("uint32", np.int32(-1)),
        ("bool", 2),
        ("bool", -1),
        ("bool", np.nan),
        ("float32", 1e39),
        ("float32", 10**400),
        ("bfloat16", -1e39),
        ("float8_e4m3fn", np.inf),
        ("float8_e4m3fn", -np.inf),
        ("float8_e4m3fn", 1e6),
        ("float8_e4m3b11fnuz", np.inf),
        ("float8_e5m2", 1e6),
        ("complex64", complex(0, 1e39)),
    ],
)
def test_fills_that_the_dtype_does_not_hold(dtype, fill):
    message = rf"fill: expected a number that {dtype} of destinations\['a'\] holds"
    array = {"a": jnp.zeros(3, dtype)}
    with pytest.raises(ValueError, match=message):
        jax_sa.fused_copy(array, jax.tree.map(jnp.copy, array), fill=fill)


def test_a_traced_fill_is_refused():
    @jax.jit
    def copy(destination, source, fill):
        return jax_sa.fused_copy({"a": destination}, {"a": source}, fill=fill)

    with pytest.raises(TypeError, match=r"fill: .*int32 of destinations\['a'\].* must be known"):
        copy(jnp.zeros(3, jnp.int32), jnp.ones(2, jnp.int32), 1)


def test_no_leaves():
    copied = jax_sa.fused_copy({}, {})
    assert copied.destinations == {} and copied.clamped.shape == (0,)


def test_sixteen_byte_items():
    with jax.enable_x64(True):
        source = jnp.arange(6, dtype=jnp.complex128) + 1j
        destination = jnp.zeros(9, jnp.complex128)
        copied = jax_sa.fused_copy(destination, source, rows=5, fill=2 - 3j).destinations
    np.testing.assert_array_equal(copied, [*(np.arange(5) + 1j), *[2 - 3j] * 4])


def test_one_program_for_all_sizes():
    copy = jax.jit(jax_sa.fused_copy, donate_argnums=0)
    for rows in range(-1, 8):
        copied = copy(jnp.zeros(6, jnp.int32), jnp.arange(1, 7), rows=jnp.int32(rows))
        kept = min(max(rows, 0), 6)
        assert copied.destinations.tolist() == [*range(1, kept + 1)] + [0] * (6 - kept)
        assert copied.clamped.tolist() == [not 0 <= rows <= 6]
    assert copy._cache_size() == 1


def metadata(rows, pages, start):
    types, structure = jax.tree.flatten(metadata_types(rows, pages))
    return jax.tree.unflatten(
        structure,
        [
            start + 1000 * i + jnp.arange(np.prod(type.shape)).reshape(type.shape)
            for i, type in enumerate(types)
        ],
    )


def test_replay_metadata():
    buffers, batch = metadata(8, 32, start=-9000), metadata(5, 20, start=1)
    before = jax.tree.map(np.array, buffers)
    copied = jax_sa.copy_replay_metadata(buffers, batch, rows=jnp.int32(3), pages=jnp.int32(18))
    assert not copied.clamped.any()
    for field in dataclasses.fields(jax_sa.ReplayMetadata):
        expected, new = getattr(before, field.name), getattr(batch, field.name)
        if field.name == "page_table":
            expected[:3, :18] = new[:3, :18]
        else:
            rows = 4 if field.name == "cu_seqlens_k" else 3
            expected[:rows] = new[:rows]
        np.testing.assert_array_equal(getattr(copied.destinations, field.name), expected)
    whole = jax_sa.copy_replay_metadata(buffers, batch).destinations
    np.testing.assert_array_equal(whole.page_table[:5, :20], batch.page_table)
    np.testing.assert_array_equal(whole.cu_seqlens_k[:6], batch.cu_seqlens_k)


@pytest.mark.parametrize("program", METADATA_PROGRAMS, ids=lambda program: program.__name__)
def test_in_place(program):
    assert_copies_in_place(compile_metadata_program(program))


def test_donated_buffers_do_not_move():
    copy = jax.jit(jax_sa.fused_copy, donate_argnums=0)
    destination = jnp.zeros(1000, jnp.int32)
    where = destination.unsafe_buffer_pointer()
    for i in range(3):
        destination = copy(destination, jnp.full(10, i, jnp.int32)).destinations
    assert destination.unsafe_buffer_pointer() == where
    assert destination[:11].tolist() == [2] * 10 + [0]


def test_destinations_that_are_not_donated_are_left_as_they_were():
    destination = jnp.zeros(3, jnp.int32)
    assert jax_sa.fused_copy(destination, jnp.arange(3)).destinations.tolist() == [0, 1, 2]
    assert destination.tolist() == [0, 0, 0]


def test_a_call_without_aliasing_is_refused():
    destination = jnp.zeros(3, jnp.int32)
    call = jax.ffi.ffi_call(
        "jax_sa_fused_copy", [jax.typeof(destination), jax.ShapeDtypeStruct((1,), jnp.bool_)]
    )
    numbers = {
        "max_rows": 3,
        "max_columns": 1,
        "rows_scalar": -1,
        "columns_scalar": -1,
        "extra_rows": 0,
        "fills": 0,
    }
    attributes = {name: np.array([number]) for name, number in numbers.items()}
    with pytest.raises(jax.errors.JaxRuntimeError, match="not aliased"):
        jax.block_until_ready(
            call(jnp.arange(3), destination, **attributes, fill_words=np.zeros(2, np.int64))
        )


SHARED = jnp.zeros(5, jnp.int32)


def numbers(shape, dtype="int32"):
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("destinations", "sources", "options", "error", "message"),
    [
        ({"a": numbers(3)}, {"b": numbers(3)}, {}, ValueError, r"structure.*\['a'\].*\['b'\]"),
        ({"a": numbers(3)}, [numbers(3)], {}, ValueError, "sources: expected the structure"),
        (numbers(3), np.zeros(3, np.int64), {}, TypeError, r"sources: expected int32\[R,\]"),
        (
            {"a": numbers((3, 2))},
            {"a": numbers(3)},
            {},
            ValueError,
            r"sources\['a'\]: expected int32\[R, C\], got int32\[3\]",
        ),
        ([numbers(3)], [numbers(4)], {}, ValueError, r"sources\[0\]: expected at most.*3 rows"),
        (
            [numbers((3, 2))],
            [numbers((3, 4))],
            {},
            ValueError,
            r"sources\[0\]: expected at most the destination's 2 columns, got 4",
        ),
        ([numbers(())], [numbers(())], {}, ValueError, r"destinations\[0\]: expected one or two"),
        ([numbers((1, 1, 1))], [numbers(3)], {}, ValueError, "one or two axes, got int32"),
        ([np.zeros(3)], [numbers(3)], {}, TypeError, r"destinations\[0\]: expected a jax.Array"),
        ([numbers(3, "int4")], [numbers(3)], {}, TypeError, "dtype of whole bytes, got int4"),
        ([numbers(3)], [[1, 2, 3]], {}, ValueError, "sources: expected the structure"),
        ([numbers(3)], ["abc"], {}, TypeError, r"sources\[0\]: expected int32.*got str"),
        (
            {"a": SHARED, "b": SHARED},
            {"a": numbers(5), "b": numbers(5)},
            {},
            ValueError,
            r"destinations\['b'\]: overlapping buffers: .*destinations\['a'\]",
        ),
        ({"a": SHARED}, {"a": SHARED}, {}, ValueError, r"sources\['a'\]: overlapping buffers"),
        ([numbers(3)], [numbers(3)], {"rows": 4}, ValueError, r"rows: .*sources\[0\].*3, got 4"),
        ([numbers(3)], [numbers(3)], {"rows": -1}, ValueError, "rows: expected an int.*got -1"),
        ([numbers(3)], [numbers(3)], {"rows": 1.0}, TypeError, "rows: expected an int.*got 1.0"),
        ([numbers(3)], [numbers(3)], {"rows": SHARED}, ValueError, r"rows: expected int32\[\]"),
        ([numbers(3)], [numbers(3)], {"rows": {"a": 1}}, ValueError, "rows: .*prefix"),
        ([numbers(3)], [numbers(3)], {"rows": 3, "extra_rows": 1}, ValueError, "rows.*got 4"),
        ([numbers(3)], [numbers(3)], {"extra_rows": -1}, ValueError, "extra_rows of .*got -1"),
        ([numbers((3, 3))], [numbers((3, 3))], {"columns": 9}, ValueError, "columns: .*got 9"),
        ([numbers(3)], [numbers(3)], {"fill": 0.5}, ValueError, r"fill: .*int32 of .*got 0.5"),
        ([numbers(3, "int8")], [numbers(3, "int8")], {"fill": 128}, ValueError, "fill: .*int8"),
        ([numbers(3)], [numbers(3)], {"fill": "x"}, TypeError, "fill: expected a number"),
        ([numbers(3)], [numbers(3)], {"fill": 1j}, TypeError, "fill: expected a number"),
        (
            [numbers(3, "bfloat16")],
            [numbers(3, "bfloat16")],
            {"fill": 1e39},
            ValueError,
            "fill: expected a number that bfloat16",
        ),
    ],
)
def test_errors_name_the_leaf(destinations, sources, options, error, message):
    with pytest.raises(error, match=message):
        jax_sa.fused_copy(destinations, sources, **options)


def test_overlap_inside_jit():
    with pytest.raises(ValueError, match="overlapping buffers"):
        jax.jit(lambda x: jax_sa.fused_copy(x, x))(numbers(3))
