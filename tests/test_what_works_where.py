"""The table of docs/sharding.md: every cell of it is tested, and every op has a row.

Ops on a state are tested in most of its ways by test_sharding.py, test_vmap.py and test_export.py,
for all of `op_calls.OPS`; here they are compiled for a GPU, and as a scan for a TPU. All others are
tested here in all ways.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from meshes import make_mesh
from op_calls import CAPACITY, OPS, arguments, equal, names_of
from other_calls import OTHERS, other_arguments
from test_gpu_program import h100  # noqa: F401 a fixture
from test_scan_platforms import monkeypatch_module, tpu  # noqa: F401 fixtures

import jax_sa

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "sharding.md"

COLUMNS = [
    "jit, rows split",
    "shard_map",
    "vmap",
    "scan",
    "while_loop",
    "export",
    "CPU",
    "CUDA",
    "TPU",
]

TABLE = {
    "`extend`, `lookup`, `extend_lookup`, `read_tokens`": [
        "extend",
        "lookup",
        "extend_lookup",
        "read_tokens",
    ],
    "the same with `slots=`": [
        "extend slots",
        "lookup slots",
        "extend_lookup slots",
        "read_tokens slots",
    ],
    "`lookup_after`, `lookup_tree`, `extend_lookup_tree`": [
        "lookup_after",
        "lookup_after slots",
        "lookup_after pool",
        "lookup_tree",
        "extend_lookup_tree slots",
    ],
    "`lookup`, `extend_lookup` with a pool": [
        "lookup pool",
        "lookup slots pool",
        "extend_lookup pool",
    ],
    "`lookup_tree`, `extend_lookup_tree` with followers": [
        "lookup_tree followers",
        "lookup_tree pool followers",
        "lookup_tree slots followers",
        "extend_lookup_tree followers",
    ],
    "`reset`, `insert` into a state": ["reset", "insert"],
    "`copy_slots`": ["copy_slots"],
    "`validate`": ["validate"],
    "`insert` into a pool": ["insert pool"],
    "`insert_slots`": ["insert_slots"],
    "`note_followers`": ["note_followers"],
    "`accept_greedy`, `accept_sampled`": ["accept_greedy", "accept_sampled"],
    "`accept_tree_greedy`, `accept_tree_sampled`": ["accept_tree_greedy", "accept_tree_sampled"],
    "`merge_drafts`, `share_budget`, `tree_mask`": ["merge_drafts", "share_budget", "tree_mask"],
    "`move_entries`, `pack`": ["move_entries", "pack"],
    "`fused_copy`": ["fused_copy"],
    "`expand_seqlens`": ["expand_seqlens"],
}
"""The calls behind each row of the table, by its first cell."""

ONLY_BY_HANDLERS = [
    "lookup_after",
    "lookup_after slots",
    "lookup_after pool",
    "lookup_tree",
    "lookup_tree followers",
    "lookup_tree pool followers",
    "lookup_tree slots followers",
    "extend_lookup_tree slots",
    "extend_lookup_tree followers",
    "lookup pool",
    "lookup slots pool",
    "extend_lookup pool",
    "insert pool",
    "insert_slots",
    "note_followers",
    "pack",
    "fused_copy",
    "expand_seqlens",
]
"""Calls that run on no TPU."""


def cell(line):
    return [part.strip() for part in line.strip().strip("|").split("|")]


def test_the_table():
    """Its rows and columns are those that are tested, and it says "no" where nothing is."""
    section = DOCS.read_text().split("## What works where")[1].split("\n## ")[0]
    header, _, *rows = [cell(line) for line in section.splitlines() if line.startswith("|")]
    assert header == ["op", *COLUMNS]
    assert [row[0] for row in rows] == list(TABLE)
    for name, *cells in rows:
        assert all(text and not text.startswith("no") for text in cells[:-1])
        assert (cells[-1] == "no") == all(call in ONLY_BY_HANDLERS for call in TABLE[name]), name
        named = {call.split()[0] for call in TABLE[name]}
        assert set(re.findall(r"`(\w+)`", name)) <= named, f"{name}: untested"
    tested = sorted(call for calls in TABLE.values() for call in calls)
    assert tested == sorted([*OPS, *OTHERS])


def part(value, is_split, shard, shards):
    """One device's part of an argument."""

    def cut(leaf):
        size = leaf.shape[0] // shards
        return leaf[shard * size : (shard + 1) * size]

    return jax.tree.map(cut, value) if is_split else value


def jitted(op):
    """The op on one device."""
    return jax.jit(OTHERS[op].run)


def place(op, values, mesh):
    return [
        jax.device_put(value, NamedSharding(mesh, PartitionSpec(*(["data"] if is_split else []))))
        for value, is_split in zip(values, OTHERS[op].split, strict=True)
    ]


@pytest.mark.parametrize("op", OTHERS)
def test_plain_jit(op):
    mesh, values = make_mesh(), other_arguments(op)
    equal(jitted(op)(*place(op, values, mesh)), jitted(op)(*values))


@pytest.mark.parametrize("op", OTHERS)
def test_shard_map(op):
    """Each shard does what the op does to its part alone."""
    mesh, values, split = make_mesh(), other_arguments(op), OTHERS[op].split
    shards = mesh.shape["data"]
    specs = tuple(PartitionSpec(*(["data"] if is_split else [])) for is_split in split)
    out = PartitionSpec("data") if any(split) else PartitionSpec()
    run = jax.shard_map(OTHERS[op].run, mesh=mesh, in_specs=specs, out_specs=out)
    parts = [
        jitted(op)(*(part(v, s, shard, shards) for v, s in zip(values, split, strict=True)))
        for shard in range(shards)
    ]
    expected = jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if any(split) else parts[0]
    equal(jax.jit(run)(*place(op, values, mesh)), expected)


@pytest.mark.parametrize("op", OTHERS)
def test_vmap(op):
    elements = [other_arguments(op, seed) for seed in range(2)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *elements)
    expected = [jitted(op)(*values) for values in elements]
    equal(
        jax.jit(jax.vmap(OTHERS[op].run))(*together),
        jax.tree.map(lambda *x: jnp.stack(x), *expected),
    )


def in_scan(call):
    def run(first, *rest):
        def body(carry, _):
            result = call.run(carry, *rest)
            return (result, None) if call.updates else (carry, result)

        carry, results = jax.lax.scan(body, first, length=2)
        return carry if call.updates else jax.tree.map(lambda leaf: leaf[1], results)

    return run


def in_while(call):
    def run(first, *rest):
        def body(carry):
            step, result = carry
            return step + 1, call.run(result if call.updates else first, *rest)

        carry = (0, call.run(first, *rest))
        return jax.lax.while_loop(lambda carry: carry[0] < 1, body, carry)[1]

    return run


@pytest.mark.parametrize("loop", [in_scan, in_while])
@pytest.mark.parametrize("op", OTHERS)
def test_loops(op, loop):
    call, values = OTHERS[op], other_arguments(op)
    expected = jitted(op)(*values)
    if call.updates:
        expected = jitted(op)(expected, *values[1:])
    equal(jax.jit(loop(call))(*values), expected)


@pytest.mark.parametrize("op", OTHERS)
def test_export(op):
    values = other_arguments(op)
    exported = jax.export.export(
        jitted(op),
        platforms=("cpu", "cuda", "tpu"),
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("ALL")],
    )(*values)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        equal(exported.call(*other_arguments(op)), jitted(op)(*values))


def compile_for(sharding, run, values):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tuple(values)
    )
    return jax.jit(run).lower(*shapes).compile().as_text()


def call_of(op, index="automaton"):
    """A function and its arguments."""
    if op in OTHERS:
        return OTHERS[op].run, other_arguments(op)
    values = arguments()
    if index == "scan":
        values["state"] = jax_sa.init(len(values["state"].length), CAPACITY, index="scan")
        values["built"] = jax_sa.init(1, CAPACITY, index="scan")
    return OPS[op], [values[name] for name in names_of(op)]


def handlers(text):
    return set(re.findall(r'custom_call_target="(jax_sa_\w+)"', text))


@pytest.mark.parametrize("op", [*OPS, *OTHERS])
def test_compiled_for_cuda(h100, op):  # noqa: F811
    found = handlers(compile_for(h100, *call_of(op)))
    assert bool(found) == (op in OPS or op in ONLY_BY_HANDLERS)


@pytest.mark.parametrize("op", [op for op in [*OPS, *OTHERS] if op not in ONLY_BY_HANDLERS])
def test_compiled_for_tpu(tpu, op):  # noqa: F811
    sharding = NamedSharding(Mesh(np.array(tpu[:1]), ("device",)), PartitionSpec())
    assert not handlers(compile_for(sharding, *call_of(op, "scan")))


@pytest.mark.parametrize("op", OTHERS)
def test_on_this_platform(op):
    """On a GPU where there is one: what a CPU gives."""
    values = other_arguments(op)
    cpu = jax.local_devices(backend="cpu")[0]
    equal(jitted(op)(*values), jitted(op)(*jax.device_put(values, cpu)))
