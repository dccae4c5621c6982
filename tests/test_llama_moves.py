"""The kernel that moves the entries of accepted paths, against a loop over the entries."""

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_gpu_program
from requirements import unavailable
from test_cache_moves import paths
from test_llama_attention import PAGE_SIZE, PAGES, TABLE, cache

import jax_sa
from jax_sa.llama import move_kernel

START = np.int32([61, 25, 0, 50])  # the second row's pages may end within its path


def places(row):
    """The page and the place in it of each entry of a row that has a page."""
    pages = TABLE[row][TABLE[row] < PAGES]
    return [(page, place) for page in pages for place in range(PAGE_SIZE)]


@pytest.mark.parametrize("width", [4, 7, 17, 40])
def test_the_entries_of_paths_are_moved(width):
    keys, values = cache(1, 16), cache(2, 16)
    path = paths(np.random.default_rng(width), len(TABLE), width)
    assert (path != np.arange(width)).any()
    wanted = [np.array(keys), np.array(values)]
    for row, start in enumerate(START):
        entries = places(row)
        for to, place in enumerate(path[row]):
            if start + place < len(entries):
                (page, at), (from_page, from_at) = entries[start + to], entries[start + place]
                for old, new in zip((keys, values), wanted, strict=True):
                    new[:, page, :, at] = old[:, from_page, :, from_at]
    arguments = (jnp.asarray(x) for x in (START, path, TABLE))
    got = move_kernel.move_entries(keys, values, *arguments, interpret=True)
    for new, old in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_entries_are_moved_on_a_gpu(dtype):
    """Long paths in many rows, with every place moved by one or more: none is read too late."""
    if jax.default_backend() != "gpu":
        unavailable("there is no GPU")
    rows, width, size = 64, 65, 16
    random = np.random.default_rng(0)
    keys, values = (jnp.asarray(random.normal(size=(4, 512, 3, size, 64)), dtype) for _ in range(2))
    pages = jnp.asarray(random.permutation(512).reshape(rows, 8), jnp.int32)
    path = paths(random, rows, width)
    path[:9, 1:-1] = np.arange(2, width)
    start = jnp.asarray(random.integers(0, 8 * size - width, rows), jnp.int32)
    moved = (start, jnp.asarray(path))
    wanted = jax_sa.move_entries((keys, values), *moved, axes=(1, 3), pages=pages)
    got = jax.jit(move_kernel.move_entries)(keys, values, *moved, pages)
    for new, old in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(new, np.float32), np.asarray(old, np.float32))


h100 = test_gpu_program.h100  # the fixture


def test_one_kernel_in_place_on_a_gpu(h100):
    """In a loop, as a decoder moves."""

    def program(memory, start, path, pages):
        def body(i, memory):
            return move_kernel.move_entries(*memory, start + i, path, pages)

        return jax.lax.fori_loop(0, 9, body, memory)

    def shape(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=h100)

    memory = (shape(jnp.bfloat16, 4, 64, 2, 1024, 64),) * 2
    numbers = [shape(jnp.int32, *sizes) for sizes in [(8,), (8, 17), (8, 8)]]
    with jax.sharding.use_abstract_mesh(h100.mesh.abstract_mesh):  # names the GPU to Pallas
        compiled = jax.jit(program, donate_argnums=0).lower(memory, *numbers).compile()
    copies.assert_in_place(compiled, memory, smallest=2**20, room=2**20)
    text = compiled.as_text()
    assert text.count("custom-call(") == 1
    assert not any(f" {op}(" in text for op in ("gather", "scatter"))
