"""vmap over any op is a Python loop over its elements, in place where that is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from copies import assert_in_place
from op_calls import CAPACITY, OPS, UPDATING, arguments, equal, names_of, pick

import jax_sa

ELEMENTS = 3


@pytest.fixture(scope="module")
def elements():
    return [arguments(seed) for seed in range(ELEMENTS)]


def stack(values):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)


def cases():
    """Every op with every choice of arguments that are vmapped."""
    for op in OPS:
        names = names_of(op)
        for axes in itertools.product((0, None), repeat=len(names)):
            if any(axis == 0 for axis in axes):
                vmapped = "+".join(n for n, axis in zip(names, axes, strict=True) if axis == 0)
                yield pytest.param(op, axes, id=f"{op}-{vmapped}")


@pytest.mark.parametrize(("op", "axes"), list(cases()))
def test_is_a_loop(elements, op, axes):
    by_element = [
        [value if axis == 0 else other for value, other, axis in zip(*both, axes, strict=True)]
        for both in ((pick(op, values), pick(op, elements[0])) for values in elements)
    ]
    together = [
        stack(values) if axis == 0 else values[0]
        for values, axis in zip(zip(*by_element, strict=True), axes, strict=True)
    ]
    expected = stack([OPS[op](*values) for values in by_element])
    equal(jax.jit(jax.vmap(OPS[op], in_axes=axes))(*together), expected)


@pytest.mark.parametrize("op", UPDATING)
def test_in_place(elements, op):
    values = stack([pick(op, values) for values in elements])
    compiled = jax.jit(jax.vmap(OPS[op]), donate_argnums=0).lower(*values).compile()
    eighth = jax_sa.get_state_size(CAPACITY) // 8
    assert_in_place(compiled, values[0], smallest=eighth, room=eighth)


def test_in_place_in_a_loop(elements):
    def run(state, tokens, lengths):
        def step(state, _):
            state, draft = jax_sa.extend_lookup(state, tokens, lengths, max_draft=4)
            return state, draft.length

        return jax.lax.scan(step, state, length=3)

    values = [stack([element[n] for element in elements]) for n in ("state", "tokens", "lengths")]
    expected = stack(
        [run(*(element[n] for n in ("state", "tokens", "lengths"))) for element in elements]
    )
    compiled = jax.jit(jax.vmap(run), donate_argnums=0).lower(*values).compile()
    eighth = jax_sa.get_state_size(CAPACITY) // 8
    assert_in_place(compiled, values[0], smallest=eighth, room=eighth)
    equal(jax.vmap(run)(*values), expected)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: f])
@pytest.mark.parametrize("op", ["lookup", "lookup slots", "extend_lookup slots", "insert"])
def test_twice(elements, op, wrap):
    """Over the arguments beside the state, and over states and arguments around that."""
    inner = tuple(None if name == "state" else 0 for name in names_of(op))
    groups = [
        [
            stack([element[name] for element in both]) if axis == 0 else both[0][name]
            for name, axis in zip(names_of(op), inner, strict=True)
        ]
        for both in (elements[:2], elements[1:])
    ]
    expected = stack([jax.vmap(OPS[op], in_axes=inner)(*values) for values in groups])
    both = stack(groups)
    equal(jax.vmap(wrap(jax.vmap(OPS[op], in_axes=inner)))(*both), expected)


def test_other_axes(elements):
    """What is vmapped over another axis than the first."""
    tokens = stack([element["tokens"] for element in elements])
    lengths = stack([element["lengths"] for element in elements])
    states = stack([element["state"] for element in elements])
    last = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), (states, tokens, lengths))
    got = jax.vmap(jax_sa.extend, in_axes=-1, out_axes=1)(*last)
    expected = jax.vmap(jax_sa.extend, out_axes=1)(states, tokens, lengths)
    equal(got, expected)


def test_inserts_into_pools(elements):
    def insert(pool, tokens, lengths, groups):
        return jax_sa.insert(pool, tokens, lengths, groups=groups)

    def insert_slots(pool, state, slots, groups):
        return jax_sa.insert_slots(pool, state, slots, groups=groups[: slots.shape[0]])

    for function, names in (
        (insert, ("pool", "tokens", "lengths", "groups")),
        (insert_slots, ("pool", "state", "slots", "groups")),
    ):
        values = [[element[name] for name in names] for element in elements]
        expected = stack([function(*value) for value in values])
        equal(jax.vmap(function)(*stack(values)), expected)
        shared = stack([function(values[0][0], *value[1:]) for value in values])
        axes = (None, *[0] * (len(names) - 1))
        equal(jax.vmap(function, in_axes=axes)(values[0][0], *stack(values)[1:]), shared)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_expand_seqlens(axes):
    rng = np.random.default_rng(0)
    lengths = [jnp.asarray(rng.integers(-1, 5, (ELEMENTS, 4)), jnp.int32) for _ in axes]
    lengths = [x if axis == 0 else x[0] for x, axis in zip(lengths, axes, strict=True)]

    def expand(kv_lens, q_lens):
        return jax_sa.expand_seqlens(
            kv_lens, q_lens, total=9, return_offsets=True, return_row_ids=True
        )

    expected = stack(
        [
            expand(*(x[i] if axis == 0 else x for x, axis in zip(lengths, axes, strict=True)))
            for i in range(ELEMENTS)
        ]
    )
    equal(jax.vmap(expand, in_axes=axes)(*lengths), expected)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)])
def test_fused_copy(axes):
    rng = np.random.default_rng(0)
    values = (
        {"a": jnp.zeros((ELEMENTS, 5, 4)), "b": jnp.zeros((ELEMENTS, 6), jnp.int32)},
        {
            "a": jnp.asarray(rng.normal(size=(ELEMENTS, 5, 4)), jnp.float32),
            "b": jnp.asarray(rng.integers(0, 9, (ELEMENTS, 6)), jnp.int32),
        },
        jnp.asarray([1, 3, 7], jnp.int32),
    )

    def element(i):
        return [
            jax.tree.map(lambda x, i=i if axis == 0 else 0: x[i], value)
            for value, axis in zip(values, axes, strict=True)
        ]

    def copy(destinations, sources, rows):
        return jax_sa.fused_copy(destinations, sources, rows=rows, fill=3)

    expected = stack([copy(*element(i)) for i in range(ELEMENTS)])
    together = [
        value if axis == 0 else jax.tree.map(lambda x: x[0], value)
        for value, axis in zip(values, axes, strict=True)
    ]
    equal(jax.vmap(copy, in_axes=axes)(*together), expected)


def test_fused_copy_in_place():
    """Of what is vmapped, one element at a time is copied out and back."""
    destinations = jax.ShapeDtypeStruct((8, 1024, 64), jnp.float32)
    sources = jax.ShapeDtypeStruct((8, 16, 64), jnp.float32)
    copy = jax.jit(jax.vmap(jax_sa.fused_copy), donate_argnums=0)
    compiled = copy.lower(destinations, sources).compile()
    element = 4 * 1024 * 64
    assert_in_place(compiled, destinations, smallest=2 * element, room=3 * element)
