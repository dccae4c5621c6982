"""move_entries against a loop over the entries, and in place."""

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_gpu_program

import jax_sa


def paths(random, rows, width):
    """Ascending places, of each row a part of them moved; the rest stay."""
    path = np.tile(np.arange(width, dtype=np.int32), (rows, 1))
    for row in range(rows):
        count = random.integers(0, width)
        path[row, 1 : 1 + count] = 1 + np.sort(random.choice(width - 1, count, replace=False))
    return path


@pytest.mark.parametrize("axes", [(0, 1), (1, 3), (2, 0)])
def test_dense(axes):
    random = np.random.default_rng(0)
    rows, size, width = 4, 20, 6
    shape = [3, 2, 5, 7][: max(axes) + 2]
    shape[axes[0]], shape[axes[1]] = rows, size
    entries = random.normal(size=shape).astype(np.float32)
    start, path = np.int32([0, 14, 17, 30]), paths(random, rows, width)
    wanted = np.moveaxis(entries.copy(), axes, (0, 1))
    old = wanted.copy()
    for row in range(rows):
        for to, place in enumerate(path[row]):
            if start[row] + to < size:
                wanted[row, start[row] + to] = old[row, min(start[row] + place, size - 1)]
    given = {"keys": jnp.asarray(entries), "values": (jnp.asarray(2 * entries, jnp.bfloat16),)}
    moved = jax.jit(lambda entries: jax_sa.move_entries(entries, start, path, axes=axes))(given)
    got = np.moveaxis(np.asarray(moved["keys"]), axes, (0, 1))
    inside = start[:3]  # what is beyond the array is never read
    for row, begin in enumerate(inside):
        end = min(begin + width, size)
        kept = [j for j in range(end - begin) if begin + path[row, j] < size]
        np.testing.assert_array_equal(got[row, begin:end][kept], wanted[row, begin:end][kept])
        np.testing.assert_array_equal(got[row, :begin], old[row, :begin])
        np.testing.assert_array_equal(got[row, end:], old[row, end:])
    np.testing.assert_array_equal(got[3], old[3])
    assert moved["values"][0].dtype == jnp.bfloat16


def test_paged():
    random = np.random.default_rng(1)
    size, width = 4, 7
    pool = random.normal(size=(2, 9, 3, size)).astype(np.float32)
    pages = np.int32([[3, 1, 7, 0], [8, 2, 0, 0]])  # page 0 is nobody's
    start, path = np.int32([5, 0]), paths(random, 2, width)
    entry = [[(pages[row, p // size], p % size) for p in range(16)] for row in range(2)]
    wanted = pool.copy()
    for row in range(2):
        for to, place in enumerate(path[row]):
            page, at = entry[row][start[row] + to]
            from_page, from_at = entry[row][start[row] + place]
            wanted[:, page, :, at] = pool[:, from_page, :, from_at]
    arguments = (jnp.asarray(pool), jnp.asarray(start), jnp.asarray(path))
    got = jax_sa.move_entries(*arguments, axes=(1, 3), pages=jnp.asarray(pages))
    np.testing.assert_array_equal(got[:, 1:], wanted[:, 1:])


def compile_move(sharding, paged, dtype=jnp.bfloat16):
    """In a loop, as a decoder moves."""
    shape = (4, 64, 2, 1024, 16) if paged else (4, 8, 2, 8192, 16)
    shapes = (
        [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)] * 2,
        jax.ShapeDtypeStruct((8,), jnp.int32, sharding=sharding),
        jax.ShapeDtypeStruct((8, 17), jnp.int32, sharding=sharding),
        jax.ShapeDtypeStruct((8, 8), jnp.int32, sharding=sharding) if paged else None,
    )

    def program(entries, start, path, pages):
        def body(i, entries):
            return jax_sa.move_entries(entries, start + i, path, axes=(1, 3), pages=pages)

        return jax.lax.fori_loop(0, 9, body, entries)

    return jax.jit(program, donate_argnums=0).lower(*shapes).compile(), shapes[0]


widens_bfloat16 = pytest.mark.xfail(
    jax.__version_info__ < (0, 11) and jax.default_backend() == "cpu",
    reason="jax scatters bfloat16 in float32 on a CPU before 0.11, so it converts the whole array",
)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.bfloat16, marks=widens_bfloat16)],
    ids=["float32", "bfloat16"],
)
def test_in_place(dtype, paged):
    compiled, entries = compile_move(None, paged, dtype)
    copies.assert_in_place(compiled, entries, smallest=2**20, room=2**22)


h100 = test_gpu_program.h100  # the fixture


@pytest.mark.parametrize("paged", [False, True])
def test_in_place_on_a_gpu(h100, paged):
    copies.assert_in_place(*compile_move(h100, paged), smallest=2**20, room=2**22)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"start": jnp.zeros(2)}, TypeError, "start: expected int32"),
        ({"path": jnp.zeros((3, 4), jnp.int32)}, ValueError, "path: expected int32"),
        ({"axes": (0, 2)}, ValueError, "axes: expected two of an array"),
        ({"axes": (1, 1)}, ValueError, "axes: expected two different axes"),
        ({"pages": jnp.zeros((3, 4), jnp.int32)}, ValueError, "pages: expected int32"),
    ],
)
def test_errors(changed, error, message):
    arguments = {
        "start": jnp.zeros(2, jnp.int32),
        "path": jnp.zeros((2, 4), jnp.int32),
        "axes": (0, 1),
    } | changed
    with pytest.raises(error, match=message):
        jax_sa.move_entries(jnp.zeros((2, 8)), **arguments)
