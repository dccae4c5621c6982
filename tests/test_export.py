"""Exported programs: for several platforms at once, serialised and called again."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest
from op_calls import OPS, arguments, equal, pick

import jax_sa
from jax_sa._serialization import PYTREES

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


@pytest.mark.parametrize(
    "op", ["extend", "lookup pool", "lookup_tree", "lookup_tree followers", "extend_lookup"]
)
def test_serialised(op):
    exported = export(op, arguments(), [TARGETS[op]])
    again = jax.export.deserialize(exported.serialize())
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        equal(again.call(*pick(op, arguments())), OPS[op](*pick(op, arguments())))


def example(type_):
    """A pytree with a number in each field."""
    tree = object.__new__(type_)
    for number, field in enumerate(dataclasses.fields(type_)):
        is_static = field.metadata.get("static")
        object.__setattr__(tree, field.name, number if is_static else jnp.full(2, number))
    return tree


@pytest.mark.parametrize("type_", PYTREES, ids=lambda type_: type_.__name__)
def test_a_pytree_is_serialised(type_):
    """With its static fields."""
    tree = example(type_)
    exported = jax.export.export(jax.jit(lambda tree: tree), platforms=PLATFORMS)(tree)
    again = jax.export.deserialize(exported.serialize())
    assert again.in_tree == exported.in_tree
    assert again.out_tree == exported.out_tree == jax.tree.structure(tree)


def test_the_package_can_be_reloaded():
    importlib.reload(jax_sa)


def test_all_public_pytrees_are_serialised():
    public = {value for value in vars(jax_sa).values() if dataclasses.is_dataclass(value)}
    pytrees = {type_ for type_ in public if not jax.tree_util.all_leaves([example(type_)])}
    assert {jax_sa.State, jax_sa.Draft} <= pytrees <= set(PYTREES)


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="jax 0.9 has no name for all")
def test_all_at_once():
    """One name that JAX takes for all."""
    assert export("extend_lookup", arguments(), ["ALL"]).platforms == PLATFORMS
