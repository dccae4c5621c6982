"""Exported programs: for several platforms at once, serialised and called again."""

import jax
import pytest
from op_calls import OPS, arguments, equal, pick

TARGETS = {op: f"jax_sa_{op.split()[0]}" for op in OPS}
PLATFORMS = ("cpu", "cuda", "tpu")


def export(op, values, names):
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    run = jax.jit(OPS[op])
    return jax.export.export(run, platforms=PLATFORMS, disabled_checks=allowed)(*pick(op, values))


@pytest.mark.parametrize("op", OPS)
def test_an_op(op):
    values = arguments()
    exported = export(op, values, [TARGETS[op]])
    assert set(exported.platforms) == set(PLATFORMS)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        equal(exported.call(*pick(op, arguments())), OPS[op](*pick(op, values)))


def test_serialised():
    pytest.importorskip("flatbuffers", reason="flatbuffers, which jax.export needs, is missing")
    exported = export("lookup", arguments(), [TARGETS["lookup"]])
    again = jax.export.deserialize(exported.serialize())
    equal(again.call(*pick("lookup", arguments())), OPS["lookup"](*pick("lookup", arguments())))


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="jax 0.9 has no name for all")
def test_all_at_once():
    """One name that JAX takes for all."""
    assert export("extend_lookup", arguments(), ["ALL"]).platforms == PLATFORMS
