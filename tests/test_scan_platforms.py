"""A scan's programs for platforms that are not here, in plain jnp, and sharded ones."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import int32
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import PROGRAMS, SLOTS, compile_program
from requirements import unavailable

import jax_sa
from jax_sa import scan

COLLECTIVE = re.compile(r"= .* (all|collective|reduce-scatter)[\w-]*\(")


def prompts(state, targets):
    """More tokens at a time than are compared without a loop."""
    tokens = jnp.tile(targets, (1, 8))
    lengths = jnp.full(state.num_slots, tokens.shape[1], jnp.int32)
    return jax_sa.extend_lookup(state, tokens, lengths, max_draft=4, draft_factor=0.5)


@pytest.mark.parametrize("program", [*PROGRAMS, prompts], ids=lambda program: program.__name__)
@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_lowered(platform, program):
    state = jax.eval_shape(lambda: jax_sa.init(SLOTS, 1024, index="scan"))
    targets = jax.ShapeDtypeStruct((SLOTS, 9), jnp.int32)
    traced = jax.jit(program, donate_argnums=0).trace(state, targets)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "jax_sa" not in re.sub(r"@\w+|module.*", "", text), "a handler that is not there"


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def tpu(monkeypatch_module):
    """TPUs to compile for, which needs libtpu but none of them."""
    # Or libtpu refuses a second process of the same machine, such as another worker of the tests.
    monkeypatch_module.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    except Exception as error:
        unavailable(f"libtpu is missing: {str(error).splitlines()[0]}")
    return topology.devices


@pytest.mark.parametrize("program", [*PROGRAMS, prompts], ids=lambda program: program.__name__)
def test_compiled_for_tpu(tpu, program):
    sharding = NamedSharding(Mesh(np.array(tpu[:1]), ("device",)), PartitionSpec())
    compiled = compile_program(program, sharding, "scan")
    assert "jax_sa" not in "".join(re.findall('custom_call_target="[^"]*"', compiled.as_text()))
    state = jax.eval_shape(lambda: jax_sa.init(SLOTS, 32_768, index="scan"))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= size


def test_sharded_by_plain_jit(monkeypatch):
    """Over the slots, in plain jnp: no collective, and the result sharded as the state came."""
    monkeypatch.setattr(scan, "platforms", tuple)
    jax.clear_caches()
    mesh = Mesh(np.array(jax.devices("cpu")[:4]), ("slots",))
    sharding = NamedSharding(mesh, PartitionSpec("slots"))
    rows = [texts.random_text(2, 9, seed=seed) for seed in range(8)]
    tokens, lengths = jax.device_put((int32(rows), jnp.full(8, 9, jnp.int32)), sharding)
    state = jax.device_put(jax_sa.init(8, 64, index="scan"), sharding)
    step = jax.jit(functools.partial(jax_sa.extend_lookup, max_draft=4), donate_argnums=0)
    compiled = step.lower(state, tokens, lengths).compile()
    assert not COLLECTIVE.search(compiled.as_text())
    state, draft = compiled(state, tokens, lengths)
    assert all(
        leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(state)
    )
    expected = step(jax_sa.init(8, 64, index="scan"), int32(rows), jnp.full(8, 9, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, (state, draft), expected)


def test_exported_for_several_platforms():
    """One program, whose platform decides which implementation it runs."""
    state = jax_sa.init(2, 32, index="scan")
    tokens, lengths = int32([[1, 2, 1, 2], [3, 3, 3, 4]]), int32([4, 3])
    step = jax.jit(functools.partial(jax_sa.extend_lookup, max_draft=4))
    disabled = [
        jax.export.DisabledSafetyCheck.custom_call(f"jax_sa_scan_{op}")
        for op in ("extend", "lookup", "extend_lookup")
    ]
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"), disabled_checks=disabled)(
        state, tokens, lengths
    )
    got = exported.call(state, tokens, lengths)
    jax.tree.map(np.testing.assert_array_equal, got, step(state, tokens, lengths))
