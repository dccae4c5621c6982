"""The program that XLA compiles for an H100, also where there is none.

Needs the CUDA handlers and JAX's CUDA plugin, of jaxlib's own version, but no GPU.
"""

import collections
import functools
import pathlib
import re

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from metadata_programs import (
    METADATA_PROGRAMS,
    assert_copies_in_place,
    compile_metadata_program,
)
from programs import (
    CAPACITY,
    POOL_PROGRAMS,
    PROMPT,
    SLOTS,
    WITH_INDEX,
    assert_in_place,
    assert_pool_in_place,
    compile_insert,
    compile_pool_program,
    compile_program,
    compile_prompt,
    housekeeping,
    program_id,
    prompt_workspace,
    scan,
    while_loop,
)
from requirements import unavailable

import jax_sa
from jax_sa import _prefill, _targets

TARGET = pathlib.Path(__file__).parent / "support" / "h100.txtpb"


def find_devices(topology, **options):
    """A mesh of H100s that are not there."""
    cuda = next(platform for platform in _targets.platforms() if platform.name == "CUDA")
    if cuda.problem:
        unavailable(f"the CUDA handlers are {cuda.problem}")
    try:
        described = topologies.get_topology_desc(
            platform="cuda", target_config=TARGET.read_text(), topology=topology
        )
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        unavailable(f"JAX's CUDA plugin is missing: {str(error).splitlines()[0]}")
    return Mesh(np.array(described.devices), ("device",), **options)


@pytest.fixture(scope="module")
def h100():
    return NamedSharding(find_devices("1x1x1"), PartitionSpec())


@pytest.fixture(scope="module")
def two_h100():
    return find_devices("1x1x2")


@pytest.mark.parametrize(("program", "index"), WITH_INDEX, ids=program_id)
def test_in_place(h100, program, index):
    assert_in_place(compile_program(program, h100, index), index)


@pytest.mark.parametrize(("program", "index"), WITH_INDEX, ids=program_id)
def test_captured(h100, program, index, tmp_path):
    """Every custom call sits inside a command buffer, which becomes a CUDA graph."""
    compile_program(program, h100, index, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1)
    calls = captured_calls(tmp_path)
    assert calls == {True} or (index == "scan" and program is housekeeping and not calls)


def test_insert_of_a_scan_in_place(h100):
    assert_in_place(compile_insert(h100, "scan"), "scan")


@pytest.mark.parametrize("program", POOL_PROGRAMS, ids=lambda program: program.__name__)
def test_pool_in_place_and_captured(h100, program, tmp_path):
    options = {"xla_dump_to": str(tmp_path), "xla_gpu_graph_min_graph_size": 1}
    assert_pool_in_place(compile_pool_program(program, h100, **options))
    assert_captured(tmp_path)


def test_insert_in_place_and_captured(h100, tmp_path):
    assert_in_place(compile_insert(h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1))
    assert_captured(tmp_path)


def test_long_rows_in_place_and_captured(h100, tmp_path):
    """With a workspace of bounded size, and the state where it is."""
    compiled = compile_prompt(h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1)
    workspace = prompt_workspace()
    assert workspace < 112 * _prefill.capacity(SLOTS, PROMPT, CAPACITY) + 2**19
    assert_in_place(compiled, workspace=workspace)
    assert "jax_sa_prefill" in compiled.as_text()
    assert_captured(tmp_path)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_long_rows_on_two_gpus(axes):
    """Each builds the texts of its own slots, and nothing is communicated."""
    mesh = find_devices("1x1x2", axis_types=(axes,))
    compiled = compile_prompt(NamedSharding(mesh, PartitionSpec("device")))
    program = compiled.as_text()
    assert "jax_sa_prefill" in program
    assert not re.search(r"all-(reduce|gather|to-all)|collective-permute| copy\(", program)
    assert compiled.memory_analysis().temp_size_in_bytes < prompt_workspace() + 2**20


@pytest.mark.parametrize("program", METADATA_PROGRAMS, ids=lambda program: program.__name__)
def test_metadata_in_place_and_captured(h100, program, tmp_path):
    compiled = compile_metadata_program(
        program, h100, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1
    )
    assert_copies_in_place(compiled)
    assert_captured(tmp_path)


@pytest.mark.parametrize("program", [scan, while_loop], ids=lambda program: program.__name__)
def test_split_over_two(two_h100, program, tmp_path):
    """No collective and no copy, and each device's loop still becomes a CUDA graph."""
    compiled = compile_program(
        program,
        NamedSharding(two_h100, PartitionSpec("device")),
        xla_dump_to=str(tmp_path),
        xla_gpu_graph_min_graph_size=1,
    )
    eighth = jax_sa.get_state_size(CAPACITY) // 8
    part = jax.eval_shape(functools.partial(jax_sa.init, SLOTS // 2, CAPACITY))
    copies.assert_in_place(compiled, part, smallest=eighth, room=eighth)
    found = re.findall(r" (all-\w+|collective-\w+)(?:-start)?\(", compiled.as_text())
    # Whether some slot goes on is for all devices together to say.
    assert set(found) <= ({"all-reduce"} if program is while_loop else set())
    assert_captured(tmp_path)


def test_plain_jit_is_as_good_as_shard_map(two_h100):
    """On each of two devices both loops have the same instructions."""
    split = PartitionSpec("device")

    def loop(state, tokens):
        lengths = jnp.full_like(state.length, 1)

        def step(state, column):
            return jax_sa.extend_lookup(state, column[:, None], lengths, max_draft=8)

        return jax.lax.scan(step, state, tokens.T)

    def instructions(function):
        arguments = jax.eval_shape(
            lambda: (jax_sa.init(SLOTS, CAPACITY), jnp.zeros((SLOTS, 16), jnp.int32))
        )
        split_arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(two_h100, split)
            ),
            arguments,
        )
        compiled = jax.jit(function, donate_argnums=0).lower(*split_arguments).compile()
        return collections.Counter(re.findall(r" = .*? ([a-z][\w-]*)\(", compiled.as_text()))

    of_a_part = jax.shard_map(
        loop, mesh=two_h100, in_specs=split, out_specs=(split, PartitionSpec(None, "device"))
    )
    assert instructions(loop) == instructions(of_a_part)


def assert_captured(dumps):
    assert captured_calls(dumps) == {True}


def captured_calls(dumps, kind="kCustomCall"):
    (dump,) = dumps.glob("*thunk_sequence_after_thunk_passes.txt")
    return set(calls_captured(dump.read_text(), kind))


def calls_captured(thunks, wanted="kCustomCall"):
    """For each custom call, or thunk of another kind, whether it is under a command buffer."""
    buffer_indent = None
    for line in thunks.splitlines():
        thunk = re.match(r"( *)\d+: (k\w+)", line)
        if thunk is None:
            if "branch_" not in line:  # a conditional can be in a buffer, a loop cannot
                buffer_indent = None
            continue
        indent, kind = len(thunk[1]), thunk[2]
        if kind == "kCommandBuffer":
            buffer_indent = indent
        elif buffer_indent is not None and indent <= buffer_indent:
            buffer_indent = None
        if kind == wanted:
            yield buffer_indent is not None


def test_the_check_sees_calls_outside():
    assert list(
        calls_captured("000: kCustomCall [x]\n001: kCommandBuffer\n    002: kCustomCall")
    ) == [
        False,
        True,
    ]
