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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from programs import PROGRAMS, SLOTS, compile_program

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
        pytest.skip(f"libtpu is missing: {str(error).splitlines()[0]}")
    return topology.devices


@pytest.mark.parametrize("program", [*PROGRAMS, prompts], ids=lambda program: program.__name__)
def test_compiled_for_tpu(tpu, program):
    sharding = NamedSharding(Mesh(np.array(tpu[:1]), ("device",)), PartitionSpec())
    compiled = compile_program(program, sharding, "scan")
    assert "jax_sa" not in "".join(re.findall('custom_call_target="[^"]*"', compiled.as_text()))
    state = jax.eval_shape(lambda: jax_sa.init(SLOTS, 32_768, index="scan"))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= size


@pytest.fixture(params=["kernel", "jnp"])
def implementation(request, monkeypatch):
    jax.clear_caches()
    if request.param == "jnp":
        monkeypatch.setattr(scan, "platforms", tuple)
    yield request.param
    jax.clear_caches()


def step(state, tokens, lengths):
    return jax_sa.extend_lookup(state, tokens, lengths, max_draft=4)


def batch(rows=8):
    tokens = int32([texts.random_text(2, 9, seed=seed) for seed in range(rows)])
    return jax_sa.init(rows, 64, index="scan"), tokens, jnp.full(rows, 9, jnp.int32)


def one_device(rows=8):
    return jax.jit(step)(*batch(rows))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("through", ["jit", "shard_map", "loop"])
def test_sharded(implementation, through, axis_type):
    """Over the slots: no collective, in place, and the result sharded as the state came."""
    mesh = jax.make_mesh((4,), ("slots",), (axis_type,), devices=jax.devices("cpu")[:4])
    spec = PartitionSpec("slots")
    sharding = NamedSharding(mesh, spec)
    arguments = jax.device_put(batch(), sharding)
    run = {
        "jit": step,
        "shard_map": jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec),
        "loop": lambda state, tokens, lengths: jax.lax.fori_loop(
            0, 1, lambda _, carry: step(carry[0], tokens, lengths), step(state, tokens, lengths * 0)
        ),
    }[through]
    with jax.set_mesh(mesh):
        compiled = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
        assert not COLLECTIVE.search(compiled.as_text())
        state, draft = compiled(*arguments)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, (state, draft), one_device())


@pytest.mark.parametrize("shared", [False, True])
def test_vmapped(implementation, shared):
    """A batch of states, or one state and a batch of tokens."""
    rows = 4 if shared else 8
    state, tokens, lengths = batch(rows)
    if shared:
        got = jax.jit(jax.vmap(step, in_axes=(None, 0, None)))(state, tokens[None], lengths)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y), got, one_device(rows))
        return
    halves = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), (state, tokens, lengths))
    got = jax.jit(jax.vmap(step))(*halves)
    whole = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), got)
    jax.tree.map(np.testing.assert_array_equal, whole, one_device())


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
