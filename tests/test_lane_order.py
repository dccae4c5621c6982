"""The GPU's algorithm without a GPU.

CPU and GPU run one source, `ffi/automaton.h`, on lanes that the CPU runs one after the other and
the GPU side by side. Here they run in random orders, compiled beside the library: the automaton
must be the same, up to the places of edges in their table.
"""

import ctypes
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
import texts
from calls import reference_of
from inspection import assert_slot_equals
from reference import draft

import jax_sa

HERE = pathlib.Path(__file__).parent
MAX_DRAFT = 6


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the library was built with a C++ compiler, but there is none now"
    path = tmp_path_factory.mktemp("lanes") / "shuffled_lanes.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    sources = ["-I", HERE.parent / "ffi", HERE / "support" / "shuffled_lanes.cc", "-o", path]
    subprocess.run([compiler, *flags, *sources], check=True)
    return ctypes.CDLL(str(path))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", texts.SMALL)
def test_any_order_of_lanes(library, name, seed):
    text = texts.SMALL[name]
    capacity = len(text)
    state = jax.tree.map(np.array, jax_sa.init(1, capacity))
    leaves = [pointer(leaf) for leaf in jax.tree.leaves(state)]
    width = 1 + 6 * seed
    for call, begin in enumerate(range(0, capacity, width)):
        block = np.array(text[begin : begin + width], np.int32)
        drafted = np.full(MAX_DRAFT, -9, np.int32)
        library.extend_lookup(
            (ctypes.c_void_p * len(leaves))(*leaves),
            *(capacity, state.edges.shape[1]),
            *(pointer(block), pointer(np.array([len(block)], np.int32)), len(block)),
            *(pointer(drafted), MAX_DRAFT, 1000 * seed + call),
        )
        if call % 9 == 0 or begin + width >= capacity:
            automaton = reference_of(text[: begin + width], capacity)
            assert_slot_equals(state, 0, automaton)
            expected = draft(automaton.text, automaton.lookup(), MAX_DRAFT)
            assert drafted.tolist() == (expected or [jax_sa.DRAFT_FILL] * MAX_DRAFT)
