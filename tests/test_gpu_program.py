"""The program that XLA compiles for an H100, also where there is none.

Needs the CUDA handlers and JAX's CUDA plugin, of jaxlib's own version, but no GPU.
"""

import pathlib
import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from metadata_programs import (
    METADATA_PROGRAMS,
    assert_copies_in_place,
    compile_metadata_program,
)
from programs import (
    POOL_PROGRAMS,
    PROGRAMS,
    assert_in_place,
    assert_pool_in_place,
    compile_insert,
    compile_pool_program,
    compile_program,
)
from requirements import unavailable

from jax_sa import _targets

TARGET = pathlib.Path(__file__).parent / "support" / "h100.txtpb"


@pytest.fixture(scope="module")
def h100():
    cuda = next(platform for platform in _targets.platforms() if platform.name == "CUDA")
    if cuda.problem:
        unavailable(f"the CUDA handlers are {cuda.problem}")
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
        )
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        unavailable(f"JAX's CUDA plugin is missing: {str(error).splitlines()[0]}")
    return NamedSharding(Mesh(np.array(topology.devices), ("device",)), PartitionSpec())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_in_place(h100, program):
    assert_in_place(compile_program(program, h100))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_captured(h100, program, tmp_path):
    """Every custom call sits inside a command buffer, which becomes a CUDA graph."""
    compile_program(program, h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1)
    assert_captured(tmp_path)


@pytest.mark.parametrize("program", POOL_PROGRAMS, ids=lambda program: program.__name__)
def test_pool_in_place_and_captured(h100, program, tmp_path):
    options = {"xla_dump_to": str(tmp_path), "xla_gpu_graph_min_graph_size": 1}
    assert_pool_in_place(compile_pool_program(program, h100, **options))
    assert_captured(tmp_path)


def test_insert_in_place_and_captured(h100, tmp_path):
    assert_in_place(compile_insert(h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1))
    assert_captured(tmp_path)


@pytest.mark.parametrize("program", METADATA_PROGRAMS, ids=lambda program: program.__name__)
def test_metadata_in_place_and_captured(h100, program, tmp_path):
    compiled = compile_metadata_program(
        program, h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1
    )
    assert_copies_in_place(compiled)
    assert_captured(tmp_path)


def assert_captured(dumps):
    (dump,) = dumps.glob("*thunk_sequence_after_thunk_passes.txt")
    assert set(custom_calls_captured(dump.read_text())) == {True}


def custom_calls_captured(thunks):
    """For each custom call, whether it is indented under a command buffer."""
    buffer_indent = None
    for line in thunks.splitlines():
        thunk = re.match(r"( *)\d+: (k\w+)", line)
        if thunk is None:
            buffer_indent = None
            continue
        indent, kind = len(thunk[1]), thunk[2]
        if kind == "kCommandBuffer":
            buffer_indent = indent
        elif buffer_indent is not None and indent <= buffer_indent:
            buffer_indent = None
        if kind == "kCustomCall":
            yield buffer_indent is not None


def test_the_check_sees_calls_outside():
    assert list(
        custom_calls_captured("000: kCustomCall [x]\n001: kCommandBuffer\n    002: kCustomCall")
    ) == [
        False,
        True,
    ]
